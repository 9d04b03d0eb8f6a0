"""The candidates of a cycle, from both sources, and what is known of them before they are verified.

All functions work on N cycles at once: one while decoding, all positions of the traces in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.traces.trace_set import Trace

#: Weight of the newest lookup in the running success of lookups.
SUCCESS_ALPHA = 0.2
#: Success of lookups before the first one.
INITIAL_SUCCESS = 0.5

#: Matches that are longer count as this long.
LONGEST_MATCH = 16
#: Lookups after which a sequence's running success is as sure as it gets.
MANY_LOOKUPS = 10


@dataclass(frozen=True, eq=False)
class Candidates:
    """N cycles' candidates after `depth` draft rounds, and the state that they are judged in.

    Attributes:
        top_k: K.
        depth: rounds done after the first.
        scores: (N, K + depth K^2) float32 cumulative log-probabilities, in the order of the rounds.
        context_length: (N,) tokens before the tree, the root included.
        match_length: (N,) length of the lookup's match, 0 for no lookup.
        chain_nodes: (N, depth + 1) index in the pool of the looked-up chain's token at each level;
            -1 from the level on where the draft did not propose it.
        success: (N,) running success of lookups: how often the first token came true.
        lookups: (N,) lookups so far in this sequence.
    """

    top_k: int
    depth: int
    scores: np.ndarray
    context_length: np.ndarray
    match_length: np.ndarray
    chain_nodes: np.ndarray
    success: np.ndarray
    lookups: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def at_depth(self, depth: int) -> Candidates:
        """What was known after fewer rounds."""
        size = self.top_k + depth * self.top_k**2
        return replace(
            self,
            depth=depth,
            scores=self.scores[:, :size],
            chain_nodes=self.chain_nodes[:, : depth + 1],
        )

    def take(self, rows: np.ndarray | slice) -> Candidates:
        """Some of the cycles: indices, a mask or a slice."""
        names = ("scores", "context_length", "match_length", "chain_nodes", "success", "lookups")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def levels(self) -> np.ndarray:
        """(K + depth K^2,) level of each candidate, 0 for the root's children."""
        later = [np.full(self.top_k**2, level) for level in range(1, self.depth + 1)]
        return np.concatenate([np.zeros(self.top_k, dtype=np.int64), *later])

    def parents(self) -> np.ndarray:
        """(N, K + depth K^2) index of each candidate's parent; -1 for the root's children.

        The frontier of a round is the K best of the round before, the better first and among equals
        the earlier; its r-th node has the r-th K of the round's candidates.
        """
        width = self.top_k
        parents = np.full(self.scores.shape, -1, dtype=np.int64)
        for level in range(1, self.depth + 1):
            begin = 0 if level == 1 else width + (level - 2) * width**2
            end = width + (level - 1) * width**2
            best = np.argsort(-self.scores[:, begin:end], axis=1, kind="stable")[:, :width]
            parents[:, end : end + width**2] = np.repeat(best + begin, width, axis=1)
        return parents

    def on_chain(self) -> np.ndarray:
        """(N, K + depth K^2) bool: whether a candidate is the looked-up chain's."""
        marked = np.zeros(self.scores.shape, dtype=bool)
        rows, levels = np.nonzero(self.chain_nodes >= 0)
        marked[rows, self.chain_nodes[rows, levels]] = True
        return marked

    def chain_levels(self) -> np.ndarray:
        """(N,) leading levels of the chain that are in the pool."""
        return (self.chain_nodes >= 0).sum(axis=1)


def pool_features(candidates: Candidates, parents: np.ndarray) -> np.ndarray:
    """(N, K + depth K^2, 14) float32 inputs of the net that judges the draft's candidates."""
    scores = candidates.scores
    above = np.where(parents >= 0, np.take_along_axis(scores, np.maximum(parents, 0), axis=1), 0.0)
    level = np.broadcast_to(candidates.levels, scores.shape)
    match = np.log1p(np.minimum(candidates.match_length, LONGEST_MATCH))[:, None]
    on_chain = candidates.on_chain()
    # A lookup that proposes something else speaks against a candidate.
    against = (match > 0) & ~on_chain
    success = candidates.success[:, None]
    columns = (
        scores,
        above,
        np.sqrt(np.maximum(-scores, 0.0)),
        scores - above,
        level,
        level * scores / 4,
        level == 0,
        on_chain,
        on_chain * match,
        against,
        against * match,
        on_chain * success,
        against * success,
        on_chain * scores,
    )
    return np.stack(columns, axis=-1).astype(np.float32)


def chain_features(candidates: Candidates, length: int) -> np.ndarray:
    """(N, length, 13) float32 inputs of the net that judges the levels of the looked-up chain."""
    count = len(candidates)
    level = np.arange(length)[None]
    match = np.minimum(candidates.match_length, LONGEST_MATCH)[:, None]
    inside = candidates.chain_levels()[:, None]
    last = np.take_along_axis(candidates.chain_nodes, np.maximum(inside - 1, 0), axis=1)
    score = np.take_along_axis(candidates.scores, np.maximum(last, 0), axis=1)
    columns = (
        level / 4,
        np.log1p(match),
        match >= 3,
        match >= LONGEST_MATCH,
        candidates.success[:, None],
        np.minimum(candidates.lookups, MANY_LOOKUPS)[:, None] / MANY_LOOKUPS,
        level == 0,
        np.log1p(level),
        np.log1p(match) * np.log1p(level),
        inside == 0,
        inside,
        np.where(inside > 0, score, 0.0),
        candidates.scores[:, :1],
    )
    shape = (count, length)
    return np.stack([np.broadcast_to(c, shape) for c in columns], axis=-1).astype(np.float32)


def trace_candidates(
    traces: Iterable[Trace], top_k: int, depth: int, chain_length: int | None = None
) -> Candidates:
    """The candidates of every position of some traces, all rounds done.

    Args:
        traces: recorded continuations.
        top_k: K.
        depth: rounds after the first.
        chain_length: looked-up tokens that a policy asks for, so that it knows no more than in
            decoding: 0 hides the lookups; None for all that were recorded.

    Raises:
        ValueError: a width that was not recorded, or a depth or a chain beyond what was.
    """
    parts = [_of_trace(trace, top_k, depth, chain_length) for trace in traces]
    names = ("scores", "context_length", "match_length", "chain_nodes", "success", "lookups")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Candidates(top_k=top_k, depth=depth, **joined)


def _of_trace(trace: Trace, top_k: int, depth: int, chain_length: int | None) -> Candidates:
    if top_k not in trace.top_ks or depth > trace.max_depth:
        raise ValueError(
            f"top_k={top_k} and depth={depth} are not in the trace, which has top_k in "
            f"{list(trace.top_ks)} and depth up to {trace.max_depth}"
        )
    longest = trace.lookup_tokens if chain_length is None else chain_length
    if longest > trace.lookup_tokens:
        raise ValueError(
            f"chain_length must be at most the {trace.lookup_tokens} looked-up tokens of the "
            f"trace, got {chain_length}"
        )
    column = trace.top_ks.index(top_k)
    match = trace.lookup_match.astype(np.int64) * (longest > 0)
    chain_nodes = trace.lookup_path[:, column, : depth + 1].astype(np.int64)
    chain_nodes[:, longest:] = -1
    success, lookups = np.empty(len(trace)), np.empty(len(trace))
    running, count = INITIAL_SUCCESS, 0
    for position in range(len(trace)):
        success[position], lookups[position] = running, count
        if match[position]:
            running = next_success(running, came_true=trace.lookup_accepted[position] > 0)
            count += 1
    return Candidates(
        top_k=top_k,
        depth=depth,
        scores=trace.scores[top_k][:, : top_k + depth * top_k**2].astype(np.float32),
        context_length=trace.context_lengths,
        match_length=match,
        chain_nodes=chain_nodes,
        success=success,
        lookups=lookups,
    )


def next_success(
    success: float | np.ndarray, *, came_true: bool | np.ndarray
) -> float | np.ndarray:
    """The running success after one more lookup, of one sequence or of several."""
    return (1 - SUCCESS_ALPHA) * success + SUCCESS_ALPHA * came_true
