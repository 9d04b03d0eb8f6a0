"""The policy that needs nothing beforehand: it learns costs and acceptance while decoding."""

from __future__ import annotations

import numpy as np

from eaglerl._ext import C
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.policy import CycleState, DraftPlan, StepResult, TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP
from eaglerl.ops.node_selection import SelectionSizes
from eaglerl.policies.online_policy import DEFAULT_LIMIT, OnlinePolicy, limit_for


class AutoPolicy(OnlinePolicy):
    """An `OnlinePolicy` that learns the costs as well, and decides whether to draft at all.

    Before every cycle it compares the best cycle without a draft (plain, or with as many looked-up
    tokens as are worth their rows) with what a draft is expected to add: a linear regression on
    the survival of the first looked-up token, the value of the best cycle without a draft and the
    running advantage of this sequence's drafts. What a choice that seems worse would teach is
    tried, at a cost of at most 0.5 % of the tokens.

    Attributes:
        cost: what is known of this machine's costs; all forks learn into it.
        limit: the largest tree; every draft has its width.
        lookup_tokens: most looked-up tokens to verify.
    """

    cost: OnlineCost  # type: ignore[assignment]

    def __init__(
        self,
        cost: OnlineCost | None = None,
        *,
        limit: TreeParams = DEFAULT_LIMIT,
        lookup_tokens: int = 12,
    ) -> None:
        """Set up.

        Args:
            cost: costs that were learned before; None to begin without knowledge.
            limit: the largest tree to draft.
            lookup_tokens: most tokens of prompt lookup to verify; 0 for none.

        Raises:
            ValueError: `cost` lacks the width or the rows of `limit`, `limit` drafts nothing, or
                `lookup_tokens` is negative.
        """
        self.cost = OnlineCost((limit.top_k,)) if cost is None else cost
        self._begin(limit, lookup_tokens, 1.0)
        # Made once: a plan checks its fields.
        self._undrafted = [DraftPlan(None, tokens) for tokens in range(lookup_tokens + 1)]

    @property
    def rate(self) -> float:
        """Tokens per second of the last 1,000 cycles, by the learned costs."""
        return self._shared.rate / self.cost._native.speed

    def reset(self) -> None:
        """Begin a sequence: forget its lookups; what was learned stays."""
        super().reset()
        self._lookup = NO_LOOKUP
        self._read = 0
        # Of the passes that the last draft's seconds are of.
        self._drafted_share = 1.0

    def choose(self, state: CycleState) -> DraftPlan:
        """Return the largest draft, or the looked-up tokens to verify without one."""
        self._seen = None
        lookup = state.lookup(self.lookup_tokens) if self.lookup_tokens else NO_LOOKUP
        self._lookup = lookup
        context = state.context_length
        self._context = context
        drafts, tokens = self._cycle.plan(
            context, lookup.match_length, len(lookup.token_ids), context - self._read
        )
        if drafts:
            self._read = context
            return self._plan
        return self._undrafted[tokens]

    @property
    def most_rows(self) -> int:
        """Most rows that this cycle may verify; see `RuledPolicy`."""
        return self.limit.total_tokens

    def selection_rule(self, sizes: SelectionSizes) -> np.ndarray:
        """Return the (words,) int32 rule by which a device decides in this cycle.

        Args:
            sizes: of the draft; at most those of `limit` and `lookup_tokens`.
        """
        return self._cycle.selection_rule(list(sizes))

    def take_draft(self, draft: DeviceDraft) -> None:
        """Take what a device has drafted and chosen by the rule, before `observe`.

        Raises:
            ValueError: a score is NaN.
        """
        lookup = self._lookup
        for level in range(draft.levels):
            nodes = draft.lookup_nodes[: level + 1] if lookup.token_ids else None
            self._cycle.score(
                draft.scores[: draft.pool_size(level)], level, self._context, lookup.match_length,
                len(lookup.token_ids), nodes,
            )  # fmt: skip
        self._cycle.take_choice(draft.nodes, draft.lookup_tokens)
        self._drafted_share = draft.levels / draft.passes

    def observe(self, result: StepResult) -> None:
        """Learn from the cycle's times and tokens."""
        self._cycle.observe_planned(
            result.accepted_rows,
            result.token_ids,
            self._lookup.token_ids,
            result.rows,
            result.verify_seconds,
            result.draft_seconds * self._drafted_share,
        )
        self._drafted_share = 1.0

    def _new_cycle(self) -> C.OnlineCycle:
        limit, cost = self.limit, self.cost
        return C.make_learning_cycle(
            self._shared,
            limit.top_k,
            limit.depth,
            limit.total_tokens,
            self.lookup_tokens,
            cost._native,
            cost.width_index(limit.top_k),
        )


def make_auto_policy(
    draft_vocab_size: int, cost: OnlineCost | None = None, *, lookup_tokens: int = 12
) -> AutoPolicy:
    """Return a policy with trees of up to 32 rows, as wide as a head can draft, at most 4.

    Args:
        draft_vocab_size: number of tokens that the head can draft.
        cost: see `AutoPolicy`.
        lookup_tokens: see `AutoPolicy`.

    Raises:
        ValueError: see `AutoPolicy`.
    """
    return AutoPolicy(cost, limit=limit_for(draft_vocab_size), lookup_tokens=lookup_tokens)
