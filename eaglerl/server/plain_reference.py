"""Speed of plain decoding of the same prompt, measured during a live session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eaglerl.eagle3 import NO_DRAFT, Generation, SpeculativeDecoder
from eaglerl.eagle3.prompt_inputs import all_read

# Cycles at the beginning, and their share of the other cycles after that.
_FIRST_CYCLES = 8
_SHARE = 1 / 16


class PlainReference:
    """Plain decoding of the same prompt, for as many cycles as its speed needs.

    Eight cycles run first, then one for every sixteen cycles of the lanes, so that other load on
    the machine slows both down.
    """

    def __init__(
        self, decoder: SpeculativeDecoder, prompt_ids: Sequence[int], sampling: dict[str, Any]
    ) -> None:
        """Set up; nothing is decoded yet.

        Args:
            decoder: the decoder of the lanes.
            prompt_ids: their prompt.
            sampling: options of `SpeculativeDecoder.start`.
        """
        self._start = lambda: decoder.start(all_read(prompt_ids), NO_DRAFT, **sampling)
        self._generation: Generation | None = None
        self._over = False

    @property
    def tokens_per_second(self) -> float | None:
        """Speed over its cycles so far; None before the first."""
        if self._generation is None or not self._generation.cycles:
            return None
        return len(self._generation.cycles) / self._generation.decode_seconds

    def due(self, cycles: int) -> bool:
        """Return whether a plain cycle is due.

        Args:
            cycles: number of cycles of all lanes.
        """
        if self._over:
            return False
        done = 0 if self._generation is None else len(self._generation.cycles)
        return done < _FIRST_CYCLES or done < cycles * _SHARE

    def advance(self, most_rows: int) -> None:
        """Read a part of the prompt, or run one cycle.

        Args:
            most_rows: most rows of the prompt to read.
        """
        if self._generation is None:
            self._generation = self._start()
        if not self._generation.read_chunk(most_rows):
            self._generation.advance()
        self._over = self._generation.finish_reason is not None

    def close(self) -> None:
        """Give its caches back."""
        if self._generation is not None:
            self._generation.close()
        self._over = True
