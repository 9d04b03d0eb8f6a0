"""The best that a rule without learning makes of lookups: thresholds on the length of the match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, CycleState, DraftPlan, StepResult, TreeParams
from eaglerl.traces.oracle import TraceTable, follow
from eaglerl.traces.trace_set import Trace

#: A match that never occurs: the index tells none apart that is longer.
NEVER = 1000

_MATCHES = (2, 3, 4, 5, 6, 8, 12, NEVER)
_MERGED = (2, 3, 4, 5, 7)
_ALONE = (3, 5, 7, 9, 12)


@dataclass(frozen=True)
class LookupRule:
    """A constant tree, a chain merged into it from one match length on, the chain alone from
    another.

    Attributes:
        tree: the constant tree.
        merge_from: match length from which a chain is merged into the tree.
        merge_tokens: its length.
        alone_from: match length from which the chain is verified alone, without a draft.
        alone_tokens: its length.
    """

    tree: TreeParams = NO_DRAFT
    merge_from: int = NEVER
    merge_tokens: int = 0
    alone_from: int = NEVER
    alone_tokens: int = 0

    def fork(self) -> LookupRule:
        """Itself: there is nothing that one sequence could disturb in another."""
        return self

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state: CycleState) -> DraftPlan:
        """The plan that the rule gives for the present match."""
        match = state.lookup(1).match_length
        if match >= self.alone_from:
            return DraftPlan(None, self.alone_tokens)
        return DraftPlan(self.tree, self.merge_tokens if match >= self.merge_from else 0)

    def observe(self, result: StepResult) -> None:
        """Nothing to learn."""


def lookup_alone(tokens: int) -> LookupRule:
    """Chains of the text alone, as transformers' ``prompt_lookup_num_tokens`` drafts them."""
    return LookupRule(alone_from=2, alone_tokens=tokens)


def best_lookup_rule(
    traces: Sequence[Trace], cost: CostTable, trees: Sequence[TreeParams]
) -> LookupRule:
    """The fastest rule on training traces.

    The thresholds and lengths of the two kinds of chain are tuned in turn, for every tree. Rows
    that chain and tree share are counted twice here, which a plan on the trace does not.

    Args:
        traces: recorded continuations.
        cost: time of the cycles.
        trees: constant trees to try.

    Raises:
        ValueError: no traces or trees, or a tree that a trace or the cost table does not know.
    """
    if not traces or not trees:
        raise ValueError("traces and trees must each hold at least one")
    best, best_seconds = LookupRule(), np.inf
    for tree in trees:
        rule, seconds = LookupRule(tree), np.inf
        for _ in range(2):
            for names, lengths in (
                (("merge_from", "merge_tokens"), _MERGED),
                (("alone_from", "alone_tokens"), _ALONE),
            ):
                options = [
                    replace(rule, **dict(zip(names, pair, strict=True)))
                    for pair in product(_MATCHES, lengths)
                ]
                timed = [_seconds(option, traces, cost) for option in options]
                place = int(np.argmin(timed))
                if timed[place] < seconds:
                    rule, seconds = options[place], timed[place]
        if seconds < best_seconds:
            best, best_seconds = rule, seconds
    return best


def _seconds(rule: LookupRule, traces: Sequence[Trace], cost: CostTable) -> float:
    total = 0.0
    for trace in traces:
        match = trace.lookup_match.astype(np.int64)
        accepted = trace.lookup_accepted.astype(np.int64)
        contexts = trace.context_lengths
        tokens = trace.accepted_lengths([rule.tree])[:, 0].astype(np.int64)
        rows = np.full(len(trace), rule.tree.total_tokens)
        drafts = np.full(len(trace), rule.tree.total_tokens > 1)
        merged = match >= rule.merge_from
        tokens[merged] = np.maximum(tokens, 1 + np.minimum(accepted, rule.merge_tokens))[merged]
        rows[merged] += rule.merge_tokens
        alone = match >= rule.alone_from
        tokens[alone] = 1 + np.minimum(accepted, rule.alone_tokens)[alone]
        rows[alone] = 1 + rule.alone_tokens
        drafts[alone] = False
        seconds = cost.verify_seconds(rows, contexts)
        if drafts.any():
            draft = cost.draft_seconds(rule.tree.depth, rule.tree.top_k, contexts)
            seconds = seconds + np.where(drafts, draft, 0.0)
        tokens = np.minimum(tokens, trace.remaining)
        table = TraceTable(trace.domain, tokens[:, None], seconds[:, None])
        total += follow(table, np.zeros(len(trace), dtype=np.int64))[1]
    return total
