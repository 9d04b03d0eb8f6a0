"""Running a policy on a trace: the decoding loop with the trace in the model's place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StagedPolicy,
    StepResult,
    TreeParams,
    TreePolicy,
    as_plan,
    as_policy,
)
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup, Lookup
from eaglerl.traces.trace_set import Trace


@dataclass(frozen=True)
class Outcome:
    """What a policy did with some traces.

    Attributes:
        tokens: tokens emitted.
        seconds: time by the cost table.
        cycles: number of cycles.
        trees: how often each kind of tree was verified: rows, depth and width.
    """

    tokens: int
    seconds: float
    cycles: int
    trees: dict[tuple[int, int, int], int]

    @property
    def tokens_per_second(self) -> float:
        """Ratio of the sums."""
        return self.tokens / self.seconds

    @property
    def tokens_per_cycle(self) -> float:
        """Mean acceptance length, the bonus token included."""
        return self.tokens / self.cycles


def simulate(
    policy: TreeParams | DraftPlan | TreePolicy, traces: Iterable[Trace], cost: CostTable
) -> list[Outcome]:
    """Decode traces with a policy, one after another.

    It is shown what it would be shown live, but for the features, which are those that the draft
    head's fc gives, (k,). The policy's own time is not counted.

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
    text = _Text(trace)
    result: StepResult | None = None
    confidence: np.ndarray | None = None
    position, seconds, cycles, trees = 0, 0.0, 0, {}
    while position < len(trace):
        text.go_to(position)
        state = CycleState(
            features[position],
            int(trace.context_lengths[position]),
            result,
            text=text.index,
            # By its default: the variable moves on.
            confidence=lambda shown=confidence: shown,
        )
        plan = as_plan(policy.choose(state))
        result = _step(policy, trace, position, plan, text, cost)
        policy.observe(result)
        if plan.params.total_tokens > 1:
            confidence = trace.first_log_probs[position].astype(np.float32)
        position += min(len(result.token_ids), int(trace.remaining[position]))
        seconds += result.seconds
        cycles += 1
        kind = (result.rows, result.params.depth, result.params.top_k)
        trees[kind] = trees.get(kind, 0) + 1
    return Outcome(len(trace), seconds, cycles, trees)


class _Text:
    """A trace's text, indexed as far as it has been decoded; the index is made when asked for."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._position = 0
        self._index: ContextLookup | None = None

    def go_to(self, position: int) -> None:
        """The root of a position is the last token that is known."""
        self._position = position

    def index(self) -> ContextLookup:
        """The index of the known text."""
        prompt = len(self._trace.prompt_ids)
        if self._index is None:
            self._index = ContextLookup(self._trace.prompt_ids)
        known = len(self._index) - prompt
        self._index.extend(self._trace.continuation_ids[known : self._position + 1])
        return self._index


def _step(
    policy: TreePolicy, trace: Trace, position: int, plan: DraftPlan, text: _Text, cost: CostTable
) -> StepResult:
    """What a cycle of live decoding would report.

    Raises:
        ValueError: a tree that the trace or the cost table does not know.
    """
    params, context = plan.params, int(trace.context_lengths[position])
    lookup = text.index().propose(plan.lookup_tokens) if plan.lookup_tokens else NO_LOOKUP
    drafts = params.total_tokens > 1
    if drafts and isinstance(policy, StagedPolicy):
        progress, selection = staged_selection(policy, trace, position, params, lookup)
        rows, length = (
            selection.choose_total_tokens(progress),
            _selected_length(trace, position, params, selection),
        )
        params = TreeParams(min(rows, 1 + len(progress.scores)), progress.depth, params.top_k)
    else:
        rows, length = _merged(trace, position, params, lookup)
    draft = float(cost.draft_seconds(params.depth, params.top_k, context)) if drafts else 0.0
    after = min(position + length, len(trace) - 1)
    emitted = trace.continuation_ids[position + 1 : position + 1 + length]
    return StepResult(
        token_ids=tuple(emitted.tolist()),
        params=params,
        accepted=length - 1,
        draft_seconds=draft,
        verify_seconds=float(cost.verify_seconds(rows, context)),
        features=torch.from_numpy(trace.features[after].astype(np.float32)),
        context_length=context + length,
        lookup=lookup,
        lookup_accepted=min(
            len(lookup.token_ids), int(trace.lookup_accepted[position]), length - 1
        ),
        rows=rows,
    )


def staged_selection(
    policy: StagedPolicy, trace: Trace, position: int, limit: TreeParams, lookup: Lookup
) -> tuple[DraftProgress, Selection]:
    """What a policy verifies when it is asked after every draft pass, and the draft's last state.

    Raises:
        ValueError: a width or depth that the trace does not have.
    """
    trace.check_tree(limit)
    top_k, depth = limit.top_k, 0
    pool = trace.scores[top_k][position].astype(np.float32)
    nodes = trace.lookup_path[position, trace.top_ks.index(top_k)].astype(np.int64)
    nodes[len(lookup.token_ids) :] = -1
    while True:
        progress = DraftProgress(
            top_k=top_k,
            depth=depth,
            scores=pool[: top_k + depth * top_k**2],
            context_length=int(trace.context_lengths[position]),
            lookup=lookup,
            lookup_nodes=nodes[: depth + 1],
        )
        if depth == limit.depth or not policy.should_continue(progress):
            break
        depth += 1
    if isinstance(policy, SelectingPolicy):
        return progress, policy.select(progress)
    best = np.argsort(-progress.scores, kind="stable")[: policy.choose_total_tokens(progress) - 1]
    return progress, Selection(best, len(lookup.token_ids))


def _selected_length(trace: Trace, position: int, params: TreeParams, selection: Selection) -> int:
    """Acceptance length of what was selected, the bonus token included."""
    path = trace.path[position, trace.top_ks.index(params.top_k)]
    in_tree = np.isin(path, selection.nodes) & (path >= 0)
    by_tree = int(np.logical_and.accumulate(in_tree).sum())
    by_chain = min(selection.chain_tokens, int(trace.lookup_accepted[position]))
    return 1 + max(by_tree, by_chain)


def _merged(trace: Trace, position: int, params: TreeParams, lookup: Lookup) -> tuple[int, int]:
    """Rows and acceptance length of a tree and a chain that are verified together."""
    length = trace.accepted_lengths_at(position, params)
    chain = len(lookup.token_ids)
    if not chain:
        return params.total_tokens, length
    shared = 0
    if params.total_tokens > 1:
        size = params.top_k + params.depth * params.top_k**2
        scores = trace.scores[params.top_k][position, :size].astype(np.float32)
        best = np.argsort(-scores, kind="stable")[: params.total_tokens - 1]
        nodes = trace.lookup_path[position, trace.top_ks.index(params.top_k), :chain]
        inside = np.isin(nodes, best) & (nodes >= 0)
        shared = int(np.logical_and.accumulate(inside).sum())
    accepted = min(chain, int(trace.lookup_accepted[position]))
    return params.total_tokens + chain - shared, max(length, 1 + accepted)
