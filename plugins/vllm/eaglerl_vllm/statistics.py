"""Counts of what was chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eaglerl.eagle3.tree.prompt_lookup import common_length
from eaglerl_vllm.metrics import FOLDER, LENGTHS, NAMES, PLACES

if TYPE_CHECKING:
    from eaglerl_vllm.adaptive_proposer import Planned


class Statistics:
    """Counts, in a file that the process which serves /metrics reads."""

    def __init__(self) -> None:
        """Begin at zero."""
        folder = os.environ.get(FOLDER)
        if folder is None:
            self._counts = np.zeros(len(NAMES))
            return
        path = Path(folder) / f"{os.getpid()}-{id(self):x}.counts"
        self._counts = np.memmap(path, np.float64, "w+", shape=(len(NAMES),))

    def observe(self, planned: Planned, tokens: Sequence[int], price: float) -> None:
        """Count a request's step.

        Args:
            planned: what was drafted and verified.
            tokens: what it emitted.
            price: what verifying a token costs, in tokens.
        """
        accepted = min(common_length(planned.chain, tokens), len(tokens) - 1)
        length, counts = len(planned.chain), self._counts
        counts[PLACES[f"chains_{planned.source}"]] += 1
        counts[PLACES[f"drafted_{planned.source}"]] += length
        counts[PLACES[f"accepted_{planned.source}"]] += accepted
        counts[PLACES[f"length_{min(length, LENGTHS)}"]] += 1
        counts[PLACES["length_sum"]] += length
        # The best choice among those whose result is known: each chain up to its first error.
        known = (planned.drafted, planned.lookup.token_ids)
        best = max(min(common_length(chain, tokens), planned.room) for chain in known) * (
            1.0 - price
        )
        counts[PLACES["regret"]] += max(best, 0.0) - (accepted - price * length)

    def end_step(self, rate: float) -> None:
        """Count a step.

        Args:
            rate: tokens per second of the last steps.
        """
        self._counts[PLACES["steps"]] += 1
        self._counts[PLACES["rate"]] = rate

    def value(self, name: str) -> float:
        """Return a count by its name."""
        return float(self._counts[PLACES[name]])
