"""Positions of traces, scored by an acceptance model's nets, and what was accepted there."""

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

# Positions that are scored together; more would only enlarge the nets' activations.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class TracePositions:
    """All positions of some traces, one trace after another.

    Attributes:
        candidates: the candidates of draft and lookup after all rounds.
        path: (N, D + 1) index in the pool of the true node of each level; -1 for none.
        lookup_accepted: (N,) leading looked-up tokens that were accepted.
        remaining: (N,) tokens to the end of the trace.
        lengths: number of positions of each trace.
    """

    candidates: Candidates
    path: np.ndarray
    lookup_accepted: np.ndarray
    remaining: np.ndarray
    lengths: list[int]

    @classmethod
    def of(
        cls, traces: Sequence[Trace], top_k: int, depth: int, lookup_tokens: int
    ) -> TracePositions:
        """Read what a policy with trees and lookups of these sizes sees of some traces.

        Raises:
            ValueError: there are no traces, or they lack the width, depth or looked-up tokens.
        """
        if not traces:
            raise ValueError("traces must hold at least one trace")
        candidates = trace_candidates(traces, top_k, depth, lookup_tokens)
        column = traces[0].top_ks.index(top_k)
        accepted = np.concatenate([trace.lookup_accepted for trace in traces]).astype(np.int64)
        return cls(
            candidates,
            np.concatenate([trace.path[:, column, : depth + 1] for trace in traces]).astype(
                np.int64
            ),
            np.minimum(accepted, lookup_tokens),
            np.concatenate([trace.remaining for trace in traces]),
            [len(trace) for trace in traces],
        )

    def __len__(self) -> int:
        return len(self.path)

    @property
    def starts(self) -> np.ndarray:
        """First position of each trace, (traces,)."""
        return np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)

    def chunks(self, size: int = _CHUNK) -> Iterator[slice]:
        """Split the positions into slices."""
        return (slice(begin, begin + size) for begin in range(0, len(self), size))

    def seconds(self, tokens: np.ndarray, seconds: np.ndarray) -> float:
        """Return the time to decode all traces, given each position's tokens and seconds."""
        total = 0.0
        for start, length in zip(self.starts, self.lengths, strict=True):
            position = int(start)
            while position < start + length:
                total += float(seconds[position])
                position += int(tokens[position])
        return total


@dataclass(frozen=True, eq=False)
class ScoredPositions:
    """What a model's nets predict after some number of rounds, independent of the rate.

    Attributes:
        candidates: the candidates so far.
        survival: their survivals.
        length: (N, n + 1) expected acceptance lengths of the best trees of 1, 2, ... rows.
        needed: rows needed for each level to be accepted; see `needed_rows`.
    """

    candidates: Candidates
    survival: Survival
    length: np.ndarray
    needed: np.ndarray


def score_positions(
    model: AcceptanceModel,
    positions: TracePositions,
    progress: Callable[[float], None] | None = None,
) -> list[ScoredPositions]:
    """Score all positions as of the first pass and of each round.

    Args:
        model: a model whose nets are fitted; its stopping rule is not used.
        positions: the positions.
        progress: called with the share done.

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
                candidates.lookup_nodes[:, : depth + 1],
                positions.lookup_accepted[chunk],
                model.lookup_tokens,
            )
            parts[depth].append((survival.pool, survival.lookup, length, needed))
        if progress is not None:
            progress(min(1.0, chunk.stop / len(positions)))
    scored = []
    # A pool begins with the pools of the rounds before, so one array serves all depths.
    whole = np.concatenate([pool for pool, *_ in parts[-1]])
    for depth, found in enumerate(parts):
        candidates = positions.candidates.at_depth(depth)
        lookup, length, needed = (
            np.concatenate([arrays[index] for arrays in found]) for index in (1, 2, 3)
        )
        survival = Survival(whole[:, : candidates.scores.shape[1]], lookup)
        scored.append(ScoredPositions(candidates, survival, length, needed))
    return scored
