"""Predict which candidates the target will accept, and decide what to draft and verify.

A candidate's survival is the probability that the target accepts it and all its ancestors. The
expected acceptance length E[L] of a tree is 1 plus the sum of its nodes' survivals, whether they
come from the draft or from prompt lookup. The nets that predict survivals are independent of the
machine. Only the decisions depend on it, through the cost table: the nodes that maximise
E[L] - rate * seconds are verified, and another round is drafted while it promises more than it
costs. The rate, in tokens per second, converts seconds into the tokens that they could yield.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from eaglerl._renamed import renamed_fields
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.policies.candidates import Candidates, lookup_features, pool_features
from eaglerl.policies.small_net import SmallNet

#: Inputs of the net for the draft's candidates, of the net for looked-up tokens, and of the
#: stopping rule (1, 10 figures, and their 55 products of two).
POOL_INPUTS, LOOKUP_INPUTS, STOP_INPUTS = 14, 13, 66

#: More rows than any tree has.
NEVER = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class Survival:
    """Survivals of the candidates of N cycles.

    Attributes:
        pool: (N, K + depth K^2) survivals of the draft's candidates, none above its parent's.
        lookup: (N, C) survivals of the looked-up tokens that the draft has not proposed, and 0 for
            those that it has.
    """

    pool: np.ndarray
    lookup: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """The best tree of N cycles after a number of rounds.

    Attributes:
        rows: (N,) rows to verify, the root included.
        expected: (N,) expected acceptance length.
        value: (N,) expected length - rate * seconds of the verification.
        seconds: (N,) duration of the verification.
        order: (N, n) candidates, the best first; indices from the pool's size on are looked-up
            tokens.
    """

    rows: np.ndarray
    expected: np.ndarray
    value: np.ndarray
    seconds: np.ndarray
    order: np.ndarray


@renamed_fields(chain_net="lookup_net", chain_length="lookup_tokens")
@dataclass(frozen=True, eq=False)
class AcceptanceModel:
    """The nets that predict survivals, and the rule that stops drafting.

    Attributes:
        top_k: K of the trees.
        max_depth: most rounds after the first.
        max_rows: most rows to verify.
        lookup_tokens: most looked-up tokens C to verify; 0 for no lookups.
        pool_net: survival of the draft's candidates.
        lookup_net: probability of each looked-up token, given that the one before is accepted;
            None for no lookups.
        stop_weights: (max_depth, F) float32; after d rounds, another one is worth
            ``features @ stop_weights[d]`` tokens, net of its cost.
        rate: tokens per second that training reached, by its cost table.
        constant: the best constant tree in training; None if it is unknown.
        gain: relative gain of the policy over that tree in tokens per second, on prompts that it
            was not fitted to; 0.03 for 3 %.
    """

    top_k: int
    max_depth: int
    max_rows: int
    lookup_tokens: int
    pool_net: SmallNet
    lookup_net: SmallNet | None
    stop_weights: np.ndarray
    rate: float
    constant: TreeParams | None = None
    gain: float = 0.0

    def without_lookups(self) -> AcceptanceModel:
        """Return the model with the draft's candidates as its only source."""
        return replace(self, lookup_tokens=0, lookup_net=None)

    def survival(self, candidates: Candidates) -> Survival:
        """Predict the survivals of candidates of any depth up to `max_depth`."""
        pool = self._pool_survival(candidates)
        return Survival(pool, self._lookup_survival(candidates, pool))

    def survivals(self, candidates: Candidates) -> list[Survival]:
        """Predict survivals as of the first pass and as of each round, one entry for each."""
        # A candidate's inputs do not depend on later rounds, so the pool is scored once.
        whole = self._pool_survival(candidates)
        found = []
        for depth in range(candidates.depth + 1):
            early = candidates.at_depth(depth)
            pool = whole[:, : early.scores.shape[1]]
            found.append(Survival(pool, self._lookup_survival(early, pool)))
        return found

    def _pool_survival(self, candidates: Candidates) -> np.ndarray:
        parents = candidates.parents()
        pool = self.pool_net(pool_features(candidates, parents))
        # A node is accepted only with its parent, so its survival is at most its parent's.
        begin = candidates.top_k
        while begin < pool.shape[1]:
            block = slice(begin, begin + candidates.top_k**2)
            above = np.take_along_axis(pool, parents[:, block], axis=1)
            pool[:, block] = np.minimum(pool[:, block], above)
            begin += candidates.top_k**2
        return pool

    def _lookup_survival(self, candidates: Candidates, pool: np.ndarray) -> np.ndarray:
        conditional = np.zeros((len(candidates), self.lookup_tokens))
        if self.lookup_net is None or not candidates.match_length.any():
            return conditional
        conditional[:] = self.lookup_net(lookup_features(candidates, self.lookup_tokens))
        inside = candidates.lookup_levels()
        # Looked-up tokens that the draft proposes too are scored in the pool. The net gives the
        # probabilities of the others, each given the level before; their running product begins
        # with the survival of the last looked-up token in the pool.
        last = np.take_along_axis(
            candidates.lookup_nodes, np.maximum(inside - 1, 0)[:, None], axis=1
        )
        reached = np.where(
            inside > 0, np.take_along_axis(pool, np.maximum(last, 0), axis=1)[:, 0], 1.0
        )
        outside = np.arange(self.lookup_tokens) >= inside[:, None]
        product = np.cumprod(np.where(outside, conditional, 1.0), axis=1) * reached[:, None]
        return np.where(outside & (candidates.match_length > 0)[:, None], product, 0.0)

    def plan(
        self,
        candidates: Candidates,
        survival: Survival,
        cost: CostTable,
        rate: float | np.ndarray,
    ) -> Plan:
        """Choose how many of the most probable candidates to verify.

        Args:
            candidates: the candidates so far.
            survival: their survivals.
            cost: duration of a verification.
            rate: tokens per second; one value, or (N,).
        """
        order, length = rank_candidates(survival, self.max_rows)
        return plan_of_ranked(order, length, candidates.context_length, cost, rate)

    def should_continue(self, candidates: Candidates, survival: Survival, plan: Plan) -> np.ndarray:
        """Return, as (N,) bool, whether another round promises more than it costs."""
        if candidates.depth >= self.max_depth:
            return np.zeros(len(candidates), dtype=bool)
        features = stop_features(candidates, survival, plan)
        return features @ self.stop_weights[candidates.depth] > 0


def rank_candidates(survival: Survival, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the candidates by survival, and compute the expected lengths of trees of the best.

    For every number of rows, the tree with the largest expected length consists of the candidates
    with the largest survivals. It is a tree because no survival exceeds the parent's.

    Returns:
        order, (N, n) as in `Plan`, and the expected lengths of 1 to n + 1 rows, (N, n + 1).
    """
    joined = np.concatenate((survival.pool, survival.lookup), axis=1)
    # A stable sort: among equal survivals a parent stays before its children.
    order = np.argsort(-joined, axis=1, kind="stable")[:, : max_rows - 1]
    best = np.take_along_axis(joined, order, axis=1)
    nothing = np.zeros((len(best), 1))
    return order, 1.0 + np.concatenate((nothing, np.cumsum(best, axis=1)), axis=1)


def plan_of_ranked(
    order: np.ndarray,
    length: np.ndarray,
    context_length: np.ndarray,
    cost: CostTable,
    rate: float | np.ndarray,
) -> Plan:
    """Choose the best number of rows of what `rank_candidates` returned, at a rate."""
    rows = np.arange(1, length.shape[1] + 1)
    seconds = cost.verify_seconds(rows[None], context_length[:, None])
    value = length - np.reshape(rate, (-1, 1)) * seconds
    chosen = value.argmax(axis=1)[:, None]
    expected, highest, duration = (
        np.take_along_axis(array, chosen, axis=1)[:, 0] for array in (length, value, seconds)
    )
    return Plan(chosen[:, 0] + 1, expected, highest, duration, order)


def stop_features(candidates: Candidates, survival: Survival, plan: Plan) -> np.ndarray:
    """Return the (N, 66) float64 inputs of the stopping rule: 1, ten figures, and their products.

    The figures are the survivals of the last round's K best (their sum, the first, the second), the
    sum of the round before, the ratio of the two sums, the expected length and the rows of the best
    tree, whether there is a lookup, whether the draft has proposed its tokens so far, and the
    survival of its next token.
    """
    width, depth = candidates.top_k, candidates.depth
    size = survival.pool.shape[1]
    last = _best(survival.pool[:, 0 if depth == 0 else size - width**2 :], width)
    before = np.ones(len(last))
    if depth:
        begin = 0 if depth == 1 else size - 2 * width**2
        before = _best(survival.pool[:, begin : size - width**2], width).sum(axis=1)
    total = last.sum(axis=1)
    inside = candidates.lookup_levels()
    length = survival.lookup.shape[1]
    following = np.zeros(len(last))
    if length:
        index = np.minimum(inside, length - 1)[:, None]
        following = np.take_along_axis(survival.lookup, index, axis=1)[:, 0]
    matched = candidates.match_length > 0
    figures = (
        total,
        last[:, 0],
        last[:, min(1, width - 1)],
        before,
        # 0.05 bounds the ratio where almost nothing survived the round before.
        total / (before + 0.05),
        plan.expected,
        plan.rows / 10,
        matched,
        matched & (inside == depth + 1),
        following,
    )
    x = np.stack(figures, axis=1).astype(np.float64)
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate((np.ones((len(x), 1)), x, x[:, first] * x[:, second]), axis=1)


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` largest values of each row, descending."""
    return -np.sort(-values, axis=1)[:, :count]


def accepted_lengths(
    plan: Plan,
    pool_size: int,
    path: np.ndarray,
    lookup_nodes: np.ndarray,
    lookup_accepted: np.ndarray,
    lookup_tokens: int,
) -> np.ndarray:
    """Return the acceptance lengths of plans, given what was accepted; see `needed_rows`.

    Returns:
        (N,) int64, the bonus token included.
    """
    needed = needed_rows(plan.order, pool_size, path, lookup_nodes, lookup_accepted, lookup_tokens)
    return 1 + (needed <= plan.rows[:, None]).sum(axis=1)


def needed_rows(
    order: np.ndarray,
    pool_size: int,
    path: np.ndarray,
    lookup_nodes: np.ndarray,
    lookup_accepted: np.ndarray,
    lookup_tokens: int,
) -> np.ndarray:
    """Return how many rows must be verified for the first 1, 2, ... levels to be accepted.

    A level is reached by a node of the draft or by a looked-up token, whichever needs fewer rows.
    With these numbers the acceptance length of any number of rows is a count, so plans at several
    rates cost no further pass over the candidates.

    Args:
        order: (N, n) candidates, the best first, as in `Plan`.
        pool_size: candidates of the draft; looked-up tokens are numbered after them.
        path: (N, levels) index in the pool of the true node of each level; -1 for none.
        lookup_nodes: (N, levels) index in the pool of the looked-up token of each level; -1 for
            none.
        lookup_accepted: (N,) leading looked-up tokens that were accepted.
        lookup_tokens: C.

    Returns:
        (N, most levels) int16 rows, the root included; `NEVER` where no number of rows is enough.
    """
    count = len(path)
    rank = np.full((count, pool_size + lookup_tokens), NEVER, dtype=np.int16)
    # The root takes row 1, so the best candidate needs 2 rows.
    places = np.arange(2, order.shape[1] + 2, dtype=np.int16)
    np.put_along_axis(rank, order, np.broadcast_to(places, order.shape), axis=1)
    levels = max(path.shape[1], lookup_tokens)
    inside = (lookup_nodes >= 0).sum(axis=1)
    needed = np.full((count, levels), NEVER, dtype=np.int16)
    for level in range(levels):
        if level < path.shape[1]:
            node = path[:, level]
            known = (node >= 0) & (node < pool_size)
            here = np.take_along_axis(rank, np.clip(node, 0, pool_size - 1)[:, None], axis=1)
            needed[:, level] = np.where(known, here[:, 0], NEVER)
        if level < lookup_tokens:
            # Levels in the pool are verified as nodes of the draft.
            true = (lookup_accepted > level) & (inside <= level)
            by_lookup = np.where(true, rank[:, pool_size + level], NEVER)
            needed[:, level] = np.minimum(needed[:, level], by_lookup)
    # A level is accepted only after all levels before it.
    return np.maximum.accumulate(needed, axis=1)
