"""The prompt-lookup rule: two thresholds on the match length decide between lookup and tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, CycleState, DraftPlan, StepResult, TreeParams
from eaglerl.traces.oracle import TraceTable, follow
from eaglerl.traces.trace_set import Trace

#: A match length that never occurs: the index does not look for matches of this length.
NEVER = 1000

_MATCHES = (2, 3, 4, 5, 6, 8, 12, NEVER)
_MERGED = (2, 3, 4, 5, 7)
_ALONE = (3, 5, 7, 9, 12)


@dataclass(frozen=True)
class LookupRule:
    """A constant tree that gives way to looked-up tokens when the match is long enough.

    Attributes:
        tree: the constant tree.
        merge_from: match length from which looked-up tokens are merged into the tree.
        merge_tokens: number of tokens to merge.
        alone_from: match length from which looked-up tokens are verified alone, without a draft.
        alone_tokens: number of tokens to verify alone.
    """

    tree: TreeParams = NO_DRAFT
    merge_from: int = NEVER
    merge_tokens: int = 0
    alone_from: int = NEVER
    alone_tokens: int = 0

    def fork(self) -> LookupRule:
        """Return the policy itself: it keeps no state that sequences could share."""
        return self

    def reset(self) -> None:
        """Do nothing: the rule has no state."""

    def choose(self, state: CycleState) -> DraftPlan:
        """Return the plan for the current match."""
        match = state.lookup(1).match_length
        if match >= self.alone_from:
            return DraftPlan(None, self.alone_tokens)
        return DraftPlan(self.tree, self.merge_tokens if match >= self.merge_from else 0)

    def observe(self, result: StepResult) -> None:
        """Do nothing: the rule has no state."""


def lookup_alone(tokens: int) -> LookupRule:
    """Return the rule of transformers' ``prompt_lookup_num_tokens``: lookup alone, no head."""
    return LookupRule(alone_from=2, alone_tokens=tokens)


def best_lookup_rule(
    traces: Sequence[Trace], cost: CostTable, trees: Sequence[TreeParams]
) -> LookupRule:
    """Find the fastest rule on training traces.

    For every tree, merging and lookup alone are tuned in turn, twice: a joint search would try
    40 * 40 rules per tree instead of 4 * 40. The time of a merged plan is an upper bound: unlike in
    `simulate`, rows that lookup and tree share are counted twice.

    Args:
        traces: recorded continuations.
        cost: duration of the cycles.
        trees: constant trees to try.

    Raises:
        ValueError: there are no traces or trees, or a trace or the cost table lacks a tree.
    """
    if not traces or not trees:
        raise ValueError("traces and trees must each hold at least one")
    best, best_seconds = LookupRule(), np.inf
    most_rows = cost.total_tokens[-1]
    for tree in trees:
        rule, seconds = LookupRule(tree), np.inf
        for _ in range(2):
            for variants in (_merging, _alone):
                # More rows than were measured have no cost.
                options = [each for each in variants(rule) if _most_rows(each) <= most_rows]
                if not options:
                    continue
                timed = [_seconds(option, traces, cost) for option in options]
                place = int(np.argmin(timed))
                if timed[place] < seconds:
                    rule, seconds = options[place], timed[place]
        if seconds < best_seconds:
            best, best_seconds = rule, seconds
    return best


def _most_rows(rule: LookupRule) -> int:
    """Return the most rows that a cycle of a rule can verify."""
    merged = rule.merge_tokens if rule.merge_from < NEVER else 0
    alone = rule.alone_tokens if rule.alone_from < NEVER else 0
    return max(rule.tree.total_tokens + merged, 1 + alone)


def _merging(rule: LookupRule) -> list[LookupRule]:
    """Return the rule with every threshold and length for merging."""
    return [
        replace(rule, merge_from=match, merge_tokens=tokens)
        for match, tokens in product(_MATCHES, _MERGED)
    ]


def _alone(rule: LookupRule) -> list[LookupRule]:
    """Return the rule with every threshold and length for lookup alone."""
    return [
        replace(rule, alone_from=match, alone_tokens=tokens)
        for match, tokens in product(_MATCHES, _ALONE)
    ]


def _seconds(rule: LookupRule, traces: Sequence[Trace], cost: CostTable) -> float:
    """Return the time to decode the traces with a rule."""
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
