"""A completion at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eaglerl.eagle3 import Generation, TreePolicy
from eaglerl.server.engine import Task
from eaglerl.server.modes import Mode
from eaglerl.server.service import Service
from eaglerl.server.text import IncrementalText, StopTexts


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that has come."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer.

    Attributes:
        reason: "stop" or "length".
        completion_tokens: tokens of the answer, with those of a stop text or an end token.
        statistics: what speculation did.
    """

    reason: str
    completion_tokens: int
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer has no end."""

    error: Exception


Event = Piece | Finished | Failed


class CompletionTask(Task):
    """Decodes one answer and tells what comes of it, from the engine's thread."""

    def __init__(
        self,
        service: Service,
        mode: Mode,
        prompt_ids: Sequence[int],
        emit: Callable[[Event], None],
        *,
        stops: Sequence[str] = (),
        **sampling: Any,
    ) -> None:
        """Set up.

        Args:
            service: whose decoder decodes.
            mode: of drafting.
            prompt_ids: the prompt.
            emit: told of every event; the last one is `Finished` or `Failed`.
            stops: texts that end the answer.
            sampling: options of `SpeculativeDecoder.start`.
        """
        self._service = service
        self._mode = mode
        self._prompt_ids = prompt_ids
        self._emit = emit
        self._sampling = sampling
        self._text = IncrementalText(service.decoder.tokenizer)
        self._stops = StopTexts(stops)
        self._policy: TreePolicy | None = None
        self._generation: Generation | None = None
        self._tokens = 0
        self._queued = time.perf_counter()

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def advance(self) -> bool:
        """Read the prompt, or run a cycle."""
        if self._generation is None:
            self._queued = time.perf_counter() - self._queued
            self._policy = self._mode.take()
            self._generation = self._service.decoder.start(
                self._prompt_ids, self._policy, **self._sampling
            )
        kept = self._generation.advance()
        piece = ""
        for token in kept:
            self._tokens += 1
            piece += self._stops.push(self._text.push(token))
            if self._stops.found:
                break
        ended = self._generation.finish_reason
        if ended is not None and not self._stops.found:
            piece += self._stops.push(self._text.finish())
            if not self._stops.found:
                piece += self._stops.finish()
        if piece:
            self._emit(Piece(piece))
        if ended is None and not self._stops.found:
            return False
        reason = "stop" if self._stops.found or ended == "stop" else "length"
        self._emit(Finished(reason, self._tokens, self._statistics(self._generation)))
        return True

    def close(self, error: Exception | None) -> None:
        """Give the policy back."""
        if self._policy is not None:
            self._mode.give_back(self._policy)
        self._generation = self._policy = None
        if error is not None:
            self._emit(Failed(error))

    def _statistics(self, generation: Generation) -> dict[str, Any]:
        statistics = generation.statistics
        cycles = statistics.cycles
        return {
            "mode": self._mode.name,
            "cycles": len(cycles),
            "mean_acceptance_length": statistics.mean_acceptance_length,
            "verified_rows": sum(cycle.rows for cycle in cycles),
            "drafted_tokens": sum(cycle.rows - 1 for cycle in cycles),
            "accepted_tokens": sum(cycle.accepted for cycle in cycles),
            "lookup_accepted_tokens": sum(cycle.lookup_accepted for cycle in cycles),
            "tokens_per_second": statistics.tokens_per_second,
            "queue_seconds": self._queued,
            "prefill_seconds": statistics.prefill_seconds,
            "decode_seconds": statistics.decode_seconds,
            "draft_seconds": sum(cycle.draft_seconds for cycle in cycles),
            "verify_seconds": sum(cycle.verify_seconds for cycle in cycles),
            "policy_seconds": generation.policy_seconds,
        }
