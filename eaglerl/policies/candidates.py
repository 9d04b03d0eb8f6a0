"""The candidates of a cycle, from draft and lookup, and what is known before they are verified.

All functions work on N cycles at once: all positions of the traces in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from eaglerl.traces.trace_set import Trace

#: Weight of the newest lookup in the running success of lookups.
SUCCESS_ALPHA = 0.2
#: Running success before the first lookup.
INITIAL_SUCCESS = 0.5

#: Longer matches count as this long.
LONGEST_MATCH = 16
#: Number of lookups from which on a sequence's running success counts as well known.
MANY_LOOKUPS = 10


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of N cycles after `depth` draft rounds, and the state to score them in.

    Attributes:
        top_k: K.
        depth: rounds after the first pass.
        scores: (N, K + depth K^2) float32 cumulative log-probabilities, in the order of the rounds.
        context_length: (N,) tokens before the tree, the root included.
        match_length: (N,) length of the lookup's match; 0 for no lookup.
        lookup_nodes: (N, depth + 1) index in the pool of the looked-up token of each level; -1 from
            the first level on whose token the draft did not propose.
        success: (N,) running success of lookups: how often the first token was accepted.
        lookups: (N,) number of lookups so far in this sequence.
    """

    top_k: int
    depth: int
    scores: np.ndarray
    context_length: np.ndarray
    match_length: np.ndarray
    lookup_nodes: np.ndarray
    success: np.ndarray
    lookups: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def at_depth(self, depth: int) -> Candidates:
        """Return the candidates as of an earlier round."""
        size = self.top_k + depth * self.top_k**2
        return replace(
            self,
            depth=depth,
            scores=self.scores[:, :size],
            lookup_nodes=self.lookup_nodes[:, : depth + 1],
        )

    def take(self, rows: np.ndarray | slice) -> Candidates:
        """Return some of the cycles, by indices, mask or slice."""
        names = ("scores", "context_length", "match_length", "lookup_nodes", "success", "lookups")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @property
    def levels(self) -> np.ndarray:
        """Level of each candidate, (K + depth K^2,); 0 for the root's children."""
        later = [np.full(self.top_k**2, level) for level in range(1, self.depth + 1)]
        return np.concatenate([np.zeros(self.top_k, dtype=np.int64), *later])

    def parents(self) -> np.ndarray:
        """Return each candidate's parent, (N, K + depth K^2); -1 for the root's children.

        The frontier of a round holds the K best candidates of the round before, in descending
        order, earlier candidates first among equals. The r-th K candidates of the round are the
        children of its r-th node.
        """
        width = self.top_k
        parents = np.full(self.scores.shape, -1, dtype=np.int64)
        for level in range(1, self.depth + 1):
            begin = 0 if level == 1 else width + (level - 2) * width**2
            end = width + (level - 1) * width**2
            best = np.argsort(-self.scores[:, begin:end], axis=1, kind="stable")[:, :width]
            parents[:, end : end + width**2] = np.repeat(best + begin, width, axis=1)
        return parents

    def looked_up(self) -> np.ndarray:
        """Return, as (N, K + depth K^2) bool, which candidates are looked-up tokens too."""
        marked = np.zeros(self.scores.shape, dtype=bool)
        rows, levels = np.nonzero(self.lookup_nodes >= 0)
        marked[rows, self.lookup_nodes[rows, levels]] = True
        return marked

    def lookup_levels(self) -> np.ndarray:
        """Return the (N,) number of leading looked-up tokens that are in the pool."""
        return (self.lookup_nodes >= 0).sum(axis=1)


def pool_features(candidates: Candidates, parents: np.ndarray) -> np.ndarray:
    """Return the (N, K + depth K^2, 14) float32 inputs of the net for the draft's candidates."""
    scores = candidates.scores
    above = np.where(parents >= 0, np.take_along_axis(scores, np.maximum(parents, 0), axis=1), 0.0)
    level = np.broadcast_to(candidates.levels, scores.shape)
    match = np.log1p(np.minimum(candidates.match_length, LONGEST_MATCH))[:, None]
    looked_up = candidates.looked_up()
    # A lookup that proposes another token is evidence against a candidate.
    against = (match > 0) & ~looked_up
    success = candidates.success[:, None]
    columns = (
        scores,
        above,
        np.sqrt(np.maximum(-scores, 0.0)),
        scores - above,
        level,
        level * scores / 4,
        level == 0,
        looked_up,
        looked_up * match,
        against,
        against * match,
        looked_up * success,
        against * success,
        looked_up * scores,
    )
    return np.stack(columns, axis=-1).astype(np.float32)


def lookup_features(candidates: Candidates, length: int) -> np.ndarray:
    """Return the (N, length, 13) float32 inputs of the net for looked-up tokens, level by level."""
    count = len(candidates)
    level = np.arange(length)[None]
    match = np.minimum(candidates.match_length, LONGEST_MATCH)[:, None]
    inside = candidates.lookup_levels()[:, None]
    last = np.take_along_axis(candidates.lookup_nodes, np.maximum(inside - 1, 0), axis=1)
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
    traces: Iterable[Trace], top_k: int, depth: int, lookup_tokens: int | None = None
) -> Candidates:
    """Return the candidates of every position of some traces, after all rounds.

    Args:
        traces: recorded continuations.
        top_k: K.
        depth: rounds after the first pass.
        lookup_tokens: number of tokens that the policy looks up, so that it sees no more than in
            decoding; 0 hides the lookups, None shows all recorded tokens.

    Raises:
        ValueError: the traces lack the width, the depth or the number of looked-up tokens.
    """
    parts = [_of_trace(trace, top_k, depth, lookup_tokens) for trace in traces]
    names = ("scores", "context_length", "match_length", "lookup_nodes", "success", "lookups")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Candidates(top_k=top_k, depth=depth, **joined)


def _of_trace(trace: Trace, top_k: int, depth: int, lookup_tokens: int | None) -> Candidates:
    if top_k not in trace.top_ks or depth > trace.max_depth:
        raise ValueError(
            f"top_k={top_k} and depth={depth} are not in the trace, which has top_k in "
            f"{list(trace.top_ks)} and depth up to {trace.max_depth}"
        )
    longest = trace.lookup_tokens if lookup_tokens is None else lookup_tokens
    if longest > trace.lookup_tokens:
        raise ValueError(
            f"lookup_tokens must be at most the {trace.lookup_tokens} looked-up tokens of the "
            f"trace, got {lookup_tokens}"
        )
    column = trace.top_ks.index(top_k)
    match = trace.lookup_match.astype(np.int64) * (longest > 0)
    lookup_nodes = trace.lookup_path[:, column, : depth + 1].astype(np.int64)
    lookup_nodes[:, longest:] = -1
    # Before each position, as in decoding: the lookup at the position itself is not known yet.
    success, lookups = np.empty(len(trace)), np.empty(len(trace))
    running, count = INITIAL_SUCCESS, 0
    for position in range(len(trace)):
        success[position], lookups[position] = running, count
        if match[position]:
            accepted = bool(trace.lookup_accepted[position] > 0)
            running = next_success(running, accepted=accepted)
            count += 1
    return Candidates(
        top_k=top_k,
        depth=depth,
        scores=trace.scores[top_k][:, : top_k + depth * top_k**2].astype(np.float32),
        context_length=trace.context_lengths,
        match_length=match,
        lookup_nodes=lookup_nodes,
        success=success,
        lookups=lookups,
    )


@overload
def next_success(success: float, *, accepted: bool) -> float: ...
@overload
def next_success(success: np.ndarray, *, accepted: np.ndarray) -> np.ndarray: ...


def next_success(success: float | np.ndarray, *, accepted: bool | np.ndarray) -> float | np.ndarray:
    """Return the running success after one more lookup, of one sequence or of several.

    Args:
        success: the running success before.
        accepted: whether the first looked-up token was accepted.
    """
    return (1 - SUCCESS_ALPHA) * success + SUCCESS_ALPHA * accepted
