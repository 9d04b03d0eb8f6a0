"""Running a policy on a trace: the decoding loop with the trace in the model's place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from eaglerl.eagle3.params import (
    CycleState,
    DraftProgress,
    StagedPolicy,
    TreeParams,
    TreePolicy,
    as_policy,
)
from eaglerl.eagle3.session import StepResult
from eaglerl.rl.cost import CostTable
from eaglerl.rl.traces import Trace


@dataclass(frozen=True, slots=True)
class TraceState(CycleState):
    """A state with what a trace knows besides.

    ``features`` are those that the draft head's fc gives, (k,).

    Attributes:
        first_log_probs: (8,) the best log-probabilities of the first draft pass, known to a policy
            that decides after it.
        lookup_match: length of the longest earlier match of the text's end.
    """

    first_log_probs: np.ndarray | None = None
    lookup_match: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a policy did with some traces.

    Attributes:
        tokens: tokens emitted.
        seconds: time by the cost table.
        cycles: number of cycles.
        trees: how often each tree was verified.
    """

    tokens: int
    seconds: float
    cycles: int
    trees: dict[TreeParams, int]

    @property
    def tokens_per_second(self) -> float:
        """Ratio of the sums."""
        return self.tokens / self.seconds

    @property
    def tokens_per_cycle(self) -> float:
        """Mean acceptance length, the bonus token included."""
        return self.tokens / self.cycles


def simulate(
    policy: TreeParams | TreePolicy, traces: Iterable[Trace], cost: CostTable
) -> list[Outcome]:
    """Decode traces with a policy, one after another.

    The policy's own time is not counted.

    Args:
        policy: a constant tree or a policy; a `StagedPolicy` is asked after every draft pass.
        traces: what is decoded.
        cost: time of the cycles.

    Returns:
        One outcome per trace.

    Raises:
        ValueError: a tree that a trace or the cost table does not know.
        TypeError: a policy that is none.
    """
    policy = as_policy(policy)
    return [_simulate_one(policy, trace, cost) for trace in traces]


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcomes of several traces together."""
    tokens, seconds, cycles, trees = 0, 0.0, 0, {}
    for outcome in outcomes:
        tokens += outcome.tokens
        seconds += outcome.seconds
        cycles += outcome.cycles
        for tree, count in outcome.trees.items():
            trees[tree] = trees.get(tree, 0) + count
    return Outcome(tokens, seconds, cycles, trees)


def _simulate_one(policy: TreePolicy, trace: Trace, cost: CostTable) -> Outcome:
    policy.reset()
    features = torch.from_numpy(np.asarray(trace.features, dtype=np.float32))
    result: StepResult | None = None
    position, seconds, cycles, trees = 0, 0.0, 0, {}
    while position < len(trace):
        context = int(trace.context_lengths[position])
        state = TraceState(
            features[position],
            context,
            result,
            first_log_probs=trace.first_log_probs[position],
            lookup_match=int(trace.lookup_match[position]),
        )
        tree = policy.choose(state)
        drafted = tree.total_tokens > 1
        if isinstance(policy, StagedPolicy):
            tree = staged_tree(policy, trace, position, tree)
        result = _step(trace, position, tree, cost, features, drafted=drafted)
        policy.observe(result)
        emitted = min(len(result.token_ids), int(trace.remaining[position]))
        position += emitted
        seconds += result.seconds
        cycles += 1
        trees[tree] = trees.get(tree, 0) + 1
    return Outcome(len(trace), seconds, cycles, trees)


def staged_tree(policy: StagedPolicy, trace: Trace, position: int, limit: TreeParams) -> TreeParams:
    """The tree that a policy ends with when it is asked after every draft pass.

    Raises:
        ValueError: a number of rows that is none of the tree's.
    """
    if limit.total_tokens == 1:
        return limit
    top_k, depth = limit.top_k, 0
    pool = trace.scores[top_k][position].astype(np.float32)
    context = int(trace.context_lengths[position])
    while True:
        size = top_k + depth * top_k**2
        progress = DraftProgress(top_k, depth, pool[:size], context)
        if depth == limit.depth or not policy.goes_on(progress):
            break
        depth += 1
    return TreeParams(policy.rows(progress), depth, top_k)


def _step(
    trace: Trace,
    position: int,
    tree: TreeParams,
    cost: CostTable,
    features: torch.Tensor,
    *,
    drafted: bool,
) -> StepResult:
    """What a cycle of live decoding would report; a tree of one row may have been `drafted`."""
    length = int(trace.accepted_lengths_at(position, tree))
    context = int(trace.context_lengths[position])
    verify = float(cost.verify_seconds(tree.total_tokens, context))
    draft = float(cost.draft_seconds(tree.depth, tree.top_k, context)) if drafted else 0.0
    after = min(position + length, len(trace) - 1)
    return StepResult(
        token_ids=tuple(trace.continuation_ids[position + 1 : position + 1 + length].tolist()),
        params=tree,
        accepted=length - 1,
        draft_seconds=draft,
        verify_seconds=verify,
        features=features[after],
        context_length=context + length,
    )
