"""What will be accepted, and what to draft and verify therefore.

A candidate's survival is the probability that it lies on the text that the target will write. The
expected acceptance length of a tree is 1 plus the sum of its nodes' survivals, whichever source
they come from. So the nets that judge candidates know nothing of the machine; the cost table turns
their survivals into decisions: the nodes are verified that maximise E[L] - lambda t, and another
round is drafted while that promises more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.policies.candidates import Candidates, chain_features, pool_features
from eaglerl.policies.small_net import SmallNet

#: Inputs of the net that judges the draft's candidates, of the chain's, and of the stopping rule.
POOL_INPUTS, CHAIN_INPUTS, STOP_INPUTS = 14, 13, 66

#: More rows than any tree has.
NEVER = np.iinfo(np.int16).max


@dataclass(frozen=True, eq=False)
class Survival:
    """Survivals of N cycles' candidates.

    Attributes:
        pool: (N, K + depth K^2) of the draft's candidates; no node's exceeds its parent's.
        chain: (N, C) of the looked-up tokens that the draft has not proposed; 0 for the others.
    """

    pool: np.ndarray
    chain: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """The best tree of N cycles after a number of rounds.

    Attributes:
        rows: (N,) rows to verify, the root included.
        expected: (N,) expected acceptance length.
        value: (N,) expected length - lambda x seconds of the verification.
        seconds: (N,) of the verification.
        order: (N, n) candidates, the best first; those from the pool's size on are the chain's.
    """

    rows: np.ndarray
    expected: np.ndarray
    value: np.ndarray
    seconds: np.ndarray
    order: np.ndarray


@dataclass(frozen=True, eq=False)
class AcceptanceModel:
    """The nets that judge candidates, and the rule that says when to stop drafting.

    Attributes:
        top_k: K of the trees.
        max_depth: most rounds after the first.
        max_rows: most rows to verify.
        chain_length: looked-up tokens C that may be verified; 0 for no lookups.
        pool_net: judges the draft's candidates.
        chain_net: judges the looked-up tokens, each given the one before; None for no lookups.
        stop_weights: (max_depth, F) float32; another round is worth ``features @ weights`` tokens.
        rate: lambda of the training, in tokens per second, with its cost table.
        constant: the best constant tree of the training; None if it is not known.
        gain: of the policy over it, in tokens per second on prompts it was not fitted to; 0.03
            for 3 %.
    """

    top_k: int
    max_depth: int
    max_rows: int
    chain_length: int
    pool_net: SmallNet
    chain_net: SmallNet | None
    stop_weights: np.ndarray
    rate: float
    constant: TreeParams | None = None
    gain: float = 0.0

    def survival(self, candidates: Candidates) -> Survival:
        """Judge candidates of any depth up to `max_depth`."""
        pool = self._pool_survival(candidates)
        return Survival(pool, self._chain_survival(candidates, pool))

    def survivals(self, candidates: Candidates) -> list[Survival]:
        """Judge candidates as they were after each number of rounds up to all of them."""
        # What comes later does not change what is thought of the pool so far.
        whole = self._pool_survival(candidates)
        found = []
        for depth in range(candidates.depth + 1):
            early = candidates.at_depth(depth)
            pool = whole[:, : early.scores.shape[1]]
            found.append(Survival(pool, self._chain_survival(early, pool)))
        return found

    def _pool_survival(self, candidates: Candidates) -> np.ndarray:
        parents = candidates.parents()
        pool = self.pool_net(pool_features(candidates, parents))
        # No node can survive without its parent.
        begin = candidates.top_k
        while begin < pool.shape[1]:
            block = slice(begin, begin + candidates.top_k**2)
            above = np.take_along_axis(pool, parents[:, block], axis=1)
            pool[:, block] = np.minimum(pool[:, block], above)
            begin += candidates.top_k**2
        return pool

    def _chain_survival(self, candidates: Candidates, pool: np.ndarray) -> np.ndarray:
        count = len(candidates)
        chain = np.zeros((count, self.chain_length))
        if self.chain_net is None or not candidates.match_length.any():
            return chain
        chain[:] = self.chain_net(chain_features(candidates, self.chain_length))
        inside = candidates.chain_levels()
        # What lies in the pool is judged there; the rest is reached through its last level.
        last = np.take_along_axis(
            candidates.chain_nodes, np.maximum(inside - 1, 0)[:, None], axis=1
        )
        reached = np.where(
            inside > 0, np.take_along_axis(pool, np.maximum(last, 0), axis=1)[:, 0], 1.0
        )
        outside = np.arange(self.chain_length) >= inside[:, None]
        chain = np.cumprod(np.where(outside, chain, 1.0), axis=1) * reached[:, None]
        return np.where(outside & (candidates.match_length > 0)[:, None], chain, 0.0)

    def plan(
        self,
        candidates: Candidates,
        survival: Survival,
        cost: CostTable,
        rate: float | np.ndarray,
    ) -> Plan:
        """The rows to verify: as many of the most probable candidates as pay.

        Args:
            candidates: the candidates so far.
            survival: their survivals.
            cost: time of a verification.
            rate: lambda, tokens per second; one, or (N,).
        """
        order, length = rank_candidates(survival, self.max_rows)
        return plan_of_ranked(order, length, candidates.context_length, cost, rate)

    def should_continue(self, candidates: Candidates, survival: Survival, plan: Plan) -> np.ndarray:
        """(N,) bool: whether another round promises more than it costs."""
        if candidates.depth >= self.max_depth:
            return np.zeros(len(candidates), dtype=bool)
        features = stop_features(candidates, survival, plan)
        return features @ self.stop_weights[candidates.depth] > 0


def rank_candidates(survival: Survival, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates by their survival, and what trees of the best of them are expected to give.

    Returns:
        order, (N, n) as in `Plan`, and expected lengths of 1 to n + 1 rows, (N, n + 1).
    """
    joined = np.concatenate((survival.pool, survival.chain), axis=1)
    # Equal survivals keep their order: parents come first.
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
    """The best number of rows of what `rank_candidates` gave, for a lambda."""
    rows = np.arange(1, length.shape[1] + 1)
    seconds = cost.verify_seconds(rows[None], context_length[:, None])
    value = length - np.reshape(rate, (-1, 1)) * seconds
    chosen = value.argmax(axis=1)[:, None]
    expected, highest, duration = (
        np.take_along_axis(array, chosen, axis=1)[:, 0] for array in (length, value, seconds)
    )
    return Plan(chosen[:, 0] + 1, expected, highest, duration, order)


def stop_features(candidates: Candidates, survival: Survival, plan: Plan) -> np.ndarray:
    """(N, 66) float64: ten figures of a draft at work, their products, and one.

    The figures are the survivals of the last round's best (their sum, the first, the second), the
    sum of the round before, their ratio, the expected length and rows of the best tree, whether
    there is a lookup, whether the draft has followed it so far, and its next token's survival.
    """
    width, depth = candidates.top_k, candidates.depth
    size = survival.pool.shape[1]
    last = _best(survival.pool[:, 0 if depth == 0 else size - width**2 :], width)
    before = np.ones(len(last))
    if depth:
        begin = 0 if depth == 1 else size - 2 * width**2
        before = _best(survival.pool[:, begin : size - width**2], width).sum(axis=1)
    total = last.sum(axis=1)
    inside = candidates.chain_levels()
    length = survival.chain.shape[1]
    following = np.zeros(len(last))
    if length:
        index = np.minimum(inside, length - 1)[:, None]
        following = np.take_along_axis(survival.chain, index, axis=1)[:, 0]
    matched = candidates.match_length > 0
    figures = (
        total,
        last[:, 0],
        last[:, min(1, width - 1)],
        before,
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
    """The `count` largest of each row, descending."""
    return -np.sort(-values, axis=1)[:, :count]


def accepted_lengths(
    plan: Plan,
    pool_size: int,
    path: np.ndarray,
    chain_nodes: np.ndarray,
    chain_accepted: np.ndarray,
    chain_length: int,
) -> np.ndarray:
    """Acceptance lengths of plans, from what came true; see `needed_rows`.

    Returns:
        (N,) int64, the bonus token included.
    """
    needed = needed_rows(plan.order, pool_size, path, chain_nodes, chain_accepted, chain_length)
    return 1 + (needed <= plan.rows[:, None]).sum(axis=1)


def needed_rows(
    order: np.ndarray,
    pool_size: int,
    path: np.ndarray,
    chain_nodes: np.ndarray,
    chain_accepted: np.ndarray,
    chain_length: int,
) -> np.ndarray:
    """Rows that must be verified for the leading levels of the truth to be accepted.

    Args:
        order: (N, n) candidates, the best first, as in `Plan`.
        pool_size: candidates of the draft, behind which the chain's tokens are numbered.
        path: (N, levels) index in the pool of the true node of each level; -1 for none.
        chain_nodes: (N, levels) index in the pool of the chain's token of each level; -1 for none.
        chain_accepted: (N,) leading tokens of the chain that came true.
        chain_length: C.

    Returns:
        (N, most levels) int16 rows, the root included, for the first 1, 2, ... levels; `NEVER`
        where no number of rows is enough.
    """
    count = len(path)
    rank = np.full((count, pool_size + chain_length), NEVER, dtype=np.int16)
    places = np.arange(2, order.shape[1] + 2, dtype=np.int16)
    np.put_along_axis(rank, order, np.broadcast_to(places, order.shape), axis=1)
    levels = max(path.shape[1], chain_length)
    inside = (chain_nodes >= 0).sum(axis=1)
    needed = np.full((count, levels), NEVER, dtype=np.int16)
    for level in range(levels):
        if level < path.shape[1]:
            node = path[:, level]
            known = (node >= 0) & (node < pool_size)
            here = np.take_along_axis(rank, np.clip(node, 0, pool_size - 1)[:, None], axis=1)
            needed[:, level] = np.where(known, here[:, 0], NEVER)
        if level < chain_length:
            true = (chain_accepted > level) & (inside <= level)
            by_chain = np.where(true, rank[:, pool_size + level], NEVER)
            needed[:, level] = np.minimum(needed[:, level], by_chain)
    return np.maximum.accumulate(needed, axis=1)
