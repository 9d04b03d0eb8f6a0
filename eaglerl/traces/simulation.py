"""Run a policy on traces: the decoding loop with recorded outcomes in place of the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

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
    """Result of decoding traces with a policy.

    Attributes:
        tokens: emitted tokens.
        seconds: duration by the cost table.
        cycles: number of cycles.
        trees: number of cycles by rows, depth and width of the verified tree.
    """

    tokens: int
    seconds: float
    cycles: int
    trees: dict[tuple[int, int, int], int]

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all traces over their seconds."""
        return self.tokens / self.seconds


def simulate(
    policy: TreeParams | DraftPlan | TreePolicy, traces: Iterable[Trace], cost: CostTable
) -> list[Outcome]:
    """Decode traces with a policy, one after another.

    The policy sees what it would see in live decoding, except for the features, which are the
    output (k,) of the draft head's fc. The policy's own time is not counted.

    Args:
        policy: a constant tree or a policy; a `StagedPolicy` is asked after every draft pass.
        traces: the traces to decode.
        cost: duration of the cycles.

    Returns:
        One outcome per trace.

    Raises:
        ValueError: a trace or the cost table lacks a chosen tree.
        TypeError: `policy` is neither a tree nor a policy.
    """
    policy = as_policy(policy)
    return [_simulate_one(policy, trace, cost) for trace in traces]


def total(outcomes: Iterable[Outcome]) -> Outcome:
    """Add up the outcomes of several traces."""
    tokens, seconds, cycles = 0, 0.0, 0
    trees: dict[tuple[int, int, int], int] = {}
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
    position, seconds, cycles = 0, 0.0, 0
    trees: dict[tuple[int, int, int], int] = {}
    while position < len(trace):
        text.go_to(position)
        state = CycleState(
            features[position],
            int(trace.context_lengths[position]),
            result,
            text=text.index,
            confidence=partial(_shown, confidence),
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


def _shown(confidence: np.ndarray | None) -> np.ndarray | None:
    """Return the confidence; `partial` binds it, while a lambda would see the next cycle's."""
    return confidence


class _Text:
    """The text of a trace, indexed on demand as far as it has been decoded."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._position = 0
        self._index: ContextLookup | None = None

    def go_to(self, position: int) -> None:
        """Move to a position, whose root is the last known token."""
        self._position = position

    def index(self) -> ContextLookup:
        """Return the index of the known text."""
        prompt = len(self._trace.prompt_ids)
        if self._index is None:
            self._index = ContextLookup(self._trace.prompt_ids)
        known = len(self._index) - prompt
        self._index.extend(self._trace.continuation_ids[known : self._position + 1])
        return self._index


def _step(
    policy: TreePolicy, trace: Trace, position: int, plan: DraftPlan, text: _Text, cost: CostTable
) -> StepResult:
    """Return what a cycle of live decoding would report.

    Raises:
        ValueError: the trace or the cost table lacks the tree.
    """
    params, context = plan.params, int(trace.context_lengths[position])
    lookup = text.index().propose(plan.lookup_tokens) if plan.lookup_tokens else NO_LOOKUP
    drafts = params.total_tokens > 1
    accepted_rows: tuple[int, ...] = ()
    if drafts and isinstance(policy, StagedPolicy):
        progress, selection = staged_selection(policy, trace, position, params, lookup)
        rows = selection.choose_total_tokens(progress)
        length = _selected_length(trace, position, params, selection)
        accepted_rows = _selected_rows(trace, position, params, selection, progress, length - 1)
        params = TreeParams(min(rows, 1 + len(progress.scores)), progress.depth, params.top_k)
    else:
        rows, length = _merged(trace, position, params, lookup)
    draft = cost.draft_seconds(params.depth, params.top_k, context) if drafts else 0.0
    after = min(position + length, len(trace) - 1)
    emitted = trace.continuation_ids[position + 1 : position + 1 + length]
    return StepResult(
        token_ids=tuple(emitted.tolist()),
        params=params,
        accepted=length - 1,
        draft_seconds=draft,
        verify_seconds=cost.verify_seconds(rows, context),
        features=torch.from_numpy(trace.features[after].astype(np.float32)),
        context_length=context + length,
        lookup=lookup,
        lookup_accepted=min(
            len(lookup.token_ids), int(trace.lookup_accepted[position]), length - 1
        ),
        rows=rows,
        accepted_rows=accepted_rows,
    )


def staged_selection(
    policy: StagedPolicy, trace: Trace, position: int, limit: TreeParams, lookup: Lookup
) -> tuple[DraftProgress, Selection]:
    """Ask a policy after every draft pass, and return the draft's last state and the selection.

    Raises:
        ValueError: the trace lacks the width or depth.
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
    """Return the acceptance length of a selection, the bonus token included."""
    path = trace.path[position, trace.top_ks.index(params.top_k)]
    in_tree = np.isin(path, selection.nodes) & (path >= 0)
    by_tree = int(np.logical_and.accumulate(in_tree).sum())
    by_lookup = min(selection.lookup_tokens, int(trace.lookup_accepted[position]))
    return 1 + max(by_tree, by_lookup)


def _selected_rows(
    trace: Trace,
    position: int,
    params: TreeParams,
    selection: Selection,
    progress: DraftProgress,
    accepted: int,
) -> tuple[int, ...]:
    """Return the accepted rows of a selection's tree; see `StepResult.accepted_rows`."""
    row_of = {int(node): 1 + row for row, node in enumerate(np.sort(selection.nodes))}
    path = trace.path[position, trace.top_ks.index(params.top_k)].tolist()
    looked_up = [] if progress.lookup_nodes is None else progress.lookup_nodes.tolist()
    # Leading looked-up tokens that are among the nodes have no rows of their own.
    shared = next((i for i, node in enumerate(looked_up) if node not in row_of), len(looked_up))
    rows = []
    for level in range(accepted):
        # The draft's node if it was selected; else the level was reached by the lookup alone.
        node = path[level] if level < len(path) else -1
        rows.append(row_of.get(node, 1 + len(row_of) + level - shared))
    return tuple(rows)


def _merged(trace: Trace, position: int, params: TreeParams, lookup: Lookup) -> tuple[int, int]:
    """Return rows and acceptance length of a tree with looked-up tokens merged into it."""
    length = trace.accepted_lengths_at(position, params)
    looked_up = len(lookup.token_ids)
    if not looked_up:
        return params.total_tokens, length
    # Leading looked-up tokens that the tree holds too take no rows of their own.
    shared = 0
    if params.total_tokens > 1:
        size = params.top_k + params.depth * params.top_k**2
        scores = trace.scores[params.top_k][position, :size].astype(np.float32)
        best = np.argsort(-scores, kind="stable")[: params.total_tokens - 1]
        nodes = trace.lookup_path[position, trace.top_ks.index(params.top_k), :looked_up]
        inside = np.isin(nodes, best) & (nodes >= 0)
        shared = int(np.logical_and.accumulate(inside).sum())
    accepted = min(looked_up, int(trace.lookup_accepted[position]))
    return params.total_tokens + looked_up - shared, max(length, 1 + accepted)
