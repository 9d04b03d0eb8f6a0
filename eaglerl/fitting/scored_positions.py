"""Positions of traces as the nets judge them, and what came true there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eaglerl.policies.acceptance_model import (
    AcceptanceModel,
    Survival,
    needed_rows,
    rank_candidates,
)
from eaglerl.policies.candidates import Candidates, trace_candidates
from eaglerl.traces.trace_set import Trace

# Positions that are judged together: few enough for the nets' activations to stay small.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class TracePositions:
    """All positions of some traces, one after another.

    Attributes:
        candidates: what was drafted and looked up, all rounds done.
        path: (N, D + 1) index in the pool of the true node of each level; -1 for none.
        chain_accepted: (N,) leading tokens of the looked-up chain that came true.
        remaining: (N,) tokens to the end of the trace.
        lengths: positions of each trace.
    """

    candidates: Candidates
    path: np.ndarray
    chain_accepted: np.ndarray
    remaining: np.ndarray
    lengths: list[int]

    @classmethod
    def of(
        cls, traces: Sequence[Trace], top_k: int, depth: int, chain_length: int
    ) -> TracePositions:
        """Read traces as a policy with such trees and chains sees them.

        Raises:
            ValueError: no traces, or a width, depth or chain that they do not have.
        """
        if not traces:
            raise ValueError("traces must hold at least one trace")
        candidates = trace_candidates(traces, top_k, depth, chain_length)
        column = traces[0].top_ks.index(top_k)
        accepted = np.concatenate([trace.lookup_accepted for trace in traces]).astype(np.int64)
        return cls(
            candidates,
            np.concatenate([trace.path[:, column, : depth + 1] for trace in traces]).astype(
                np.int64
            ),
            np.minimum(accepted, chain_length),
            np.concatenate([trace.remaining for trace in traces]),
            [len(trace) for trace in traces],
        )

    def __len__(self) -> int:
        return len(self.path)

    @property
    def starts(self) -> np.ndarray:
        """(traces,) first position of each trace."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)

    def chunks(self, size: int = _CHUNK) -> Iterator[slice]:
        """Slices of positions that together are all."""
        return (slice(begin, begin + size) for begin in range(0, len(self), size))

    def seconds(self, tokens: np.ndarray, seconds: np.ndarray) -> float:
        """Time to decode all traces with a choice per position."""
        total = 0.0
        for start, length in zip(self.starts, self.lengths, strict=True):
            position = int(start)
            while position < start + length:
                total += float(seconds[position])
                position += int(tokens[position])
        return total


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model's nets say after a number of rounds, which no lambda changes.

    Attributes:
        candidates: the candidates so far.
        survival: of each of them.
        length: (N, n + 1) expected acceptance lengths of the best trees of 1, 2, ... rows.
        needed: see `needed_rows`.
    """

    candidates: Candidates
    survival: Survival
    length: np.ndarray
    needed: np.ndarray


def judge_positions(
    model: AcceptanceModel,
    positions: TracePositions,
    progress: Callable[[float], None] | None = None,
) -> list[Judged]:
    """Judge all positions after each number of rounds.

    Args:
        model: its nets count, not its stopping rule.
        positions: of the traces.
        progress: is told the share done.

    Returns:
        One entry for each depth from 0 on.
    """
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in range(model.max_depth + 1)]
    for chunk in positions.chunks():
        candidates = positions.candidates.take(chunk)
        for depth, survival in enumerate(model.survivals(candidates)):
            order, length = rank_candidates(survival, model.max_rows)
            needed = needed_rows(
                order,
                survival.pool.shape[1],
                positions.path[chunk],
                candidates.chain_nodes[:, : depth + 1],
                positions.chain_accepted[chunk],
                model.chain_length,
            )
            parts[depth].append((survival.pool, survival.chain, length, needed))
        if progress is not None:
            progress(min(1.0, chunk.stop / len(positions)))
    judged = []
    # The pool of the last round holds those of the rounds before.
    whole = np.concatenate([pool for pool, *_ in parts[-1]])
    for depth, found in enumerate(parts):
        candidates = positions.candidates.at_depth(depth)
        _, chain, length, needed = (
            np.concatenate(arrays) if index else None
            for index, arrays in enumerate(zip(*found, strict=True))
        )
        survival = Survival(whole[:, : candidates.scores.shape[1]], chain)
        judged.append(Judged(candidates, survival, length, needed))
    return judged
