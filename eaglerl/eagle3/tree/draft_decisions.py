"""How a policy decides between the passes of one draft, and what is verified at its end."""

from __future__ import annotations

from typing import NamedTuple

from eaglerl._ext import C
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    DraftProgress,
    PlannedPolicy,
    SelectingPolicy,
    Selection,
    StagedPolicy,
    TreeParams,
    TreePolicy,
)
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.merge import merge_looked_up
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class DraftContext(NamedTuple):
    """What a policy sees between the passes of a draft, apart from the draft itself.

    Attributes:
        context_length: tokens before the tree, the root included.
        lookup: the tokens that were looked up in the text.
        policy_time: adds up the policy's time, including that of preparing its input.
    """

    context_length: int
    lookup: Lookup
    policy_time: TotalTime


class DraftDecisions:
    """The decisions of one policy: `look` after every pass, then `select` and `finish`.

    A policy that is no `StagedPolicy` drafts its whole tree and verifies the best candidates.
    """

    def __init__(self, policy: TreePolicy | StagedPolicy) -> None:
        """Find out how a policy decides."""
        # isinstance() against a protocol looks up every method by name, tens of microseconds in
        # Python 3.11, so it is done once for a policy.
        self._staged = policy if isinstance(policy, StagedPolicy) else None
        self._selecting = policy if isinstance(policy, SelectingPolicy) else None
        self._planner: C.OnlineCycle | None = None
        if isinstance(policy, PlannedPolicy):
            self._planner = policy.native_cycle
        self.begin(NO_DRAFT)

    def begin(self, limit: TreeParams) -> None:
        """Begin a draft; `limit` is its largest tree."""
        self._limit = limit
        self._depth = 0
        self._progress: DraftProgress | None = None
        self._total_tokens = limit.total_tokens
        self._selection: Selection | None = None
        self._lookup = NO_LOOKUP

    def look(self, builder: DraftTreeBuilder, depth: int, context: DraftContext) -> bool:
        """Look at the draft after one of its passes.

        Args:
            builder: holds the candidates so far.
            depth: rounds done after the first one.
            context: what the policy sees apart from the draft.

        Returns:
            Whether another round is drafted.
        """
        self._depth, self._lookup = depth, context.lookup
        within = depth < self._limit.depth
        if self._planner is not None:
            with context.policy_time:
                length, (match, looked_up) = context.context_length, context.lookup
                return builder.look(self._planner, length, match, looked_up) and within
        if self._staged is None:
            return within
        with context.policy_time:
            lookup = context.lookup
            scores, nodes = builder.progress(lookup.token_ids, depth + 1)
            self._progress = DraftProgress(
                self._limit.top_k, depth, scores, context.context_length, lookup, nodes
            )
            return within and self._staged.should_continue(self._progress)

    def select(self) -> None:
        """Let the policy choose what is verified; after the last `look`."""
        if self._progress is None:
            return
        if self._selecting is not None:
            self._selection = self._selecting.select(self._progress)
        elif self._staged is not None:
            self._total_tokens = self._staged.choose_total_tokens(self._progress)

    def finish(self, builder: DraftTreeBuilder) -> tuple[DraftTree, TreeParams]:
        """Return the chosen tree, looked-up tokens included, and the size of the head's part.

        A `SelectingPolicy` says how many of the looked-up tokens are merged in; with other policies
        it is all of them.

        Raises:
            ValueError: the policy chose more rows than the pool has, or nodes that are not in it.
        """
        looked_up, depth, top_k = self._lookup.token_ids, self._depth, self._limit.top_k
        if self._planner is not None:
            tree, candidates = builder.finish_planned(self._planner, looked_up)
            return tree, TreeParams(candidates, depth, top_k)
        if self._selection is not None:
            # The builder merges them itself: it still has the pool, so no tree of the candidates
            # alone is made first.
            nodes, count = self._selection.nodes, self._selection.lookup_tokens
            tree = builder.finish_selected(nodes, looked_up[:count])
            return tree, TreeParams(1 + len(nodes), depth, top_k)
        params = TreeParams(self._total_tokens, depth, top_k)
        return merge_looked_up(builder.finish(params.total_tokens), looked_up), params
