"""The policy that learns while decoding, within limits that a network reads from the features."""

from __future__ import annotations

from eaglerl._ext import C
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.policy import CycleState, DraftLimits, DraftPlan, TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.policies.auto_policy import AutoPolicy


class LimitedPolicy(AutoPolicy):
    """An `AutoPolicy` whose drafts a `FusedPolicy` limits.

    The network reads the target's low, mid and high features in the call that reduces them for the
    draft, and its action is kept for some cycles, as with every `FusedPolicy`. The action is no
    tree, but the largest that the other policy may end with: rows with the root, passes after the
    first, children of a node, and looked-up tokens. On a device the launch that chooses the nodes
    reads the limits where the action cache has left them.

    Attributes:
        limits: chooses the limits; its ``cache`` counts how long they are kept.
        cost: see `AutoPolicy`.
        limit: the largest tree that any action allows.
        lookup_tokens: most looked-up tokens that any action allows.
    """

    def __init__(self, limits: FusedPolicy, cost: OnlineCost | None = None) -> None:
        """Set up.

        Args:
            limits: chooses the limits; its actions have lookup_tokens.
            cost: costs that were learned before, of all widths of the actions; None to begin
                without knowledge.

        Raises:
            TypeError: `limits` is no `FusedPolicy`.
            ValueError: its actions lack lookup_tokens, none of them drafts anything, or `cost`
                lacks a width or the rows of an action.
        """
        if not isinstance(limits, FusedPolicy):
            raise TypeError(f"limits must be a FusedPolicy, got {type(limits).__name__}")
        if limits.weights.action_columns != len(C.action_columns):
            raise ValueError(
                f"limits must have actions of {', '.join(C.action_columns)}, got "
                f"{limits.weights.action_columns} columns"
            )
        actions = limits.weights.actions.cpu()
        total_tokens, depth, top_k, lookup_tokens = actions.amax(0).tolist()
        total_tokens = min(total_tokens, 1 + top_k + depth * top_k**2)
        widths = actions[:, 2].unique().tolist()
        cost = OnlineCost(widths, max(64, total_tokens)) if cost is None else cost
        for width in widths:
            cost.width_index(width)
        # The rest of the setting up resets it.
        self.limits = limits
        self._applied = DraftLimits(total_tokens, depth, top_k, lookup_tokens)
        super().__init__(
            cost, limit=TreeParams(total_tokens, depth, top_k), lookup_tokens=lookup_tokens
        )

    def _separate(self) -> None:
        super()._separate()
        # Before it is reset: the limits of the other policy's sequence stay.
        self.limits = self.limits.fork()

    def reset(self) -> None:
        """Begin a sequence: forget its lookups and its limits; what was learned stays."""
        super().reset()
        self.limits.reset()

    @property
    def most_rows(self) -> int:
        """Most rows that this cycle may verify; see `RuledPolicy`."""
        return self._applied.total_tokens

    def choose(self, state: CycleState) -> DraftPlan:
        """Return the largest draft within the limits, or the looked-up tokens without one.

        Raises:
            ValueError: the session was not opened with this policy, so no limits were chosen.
        """
        if not isinstance(state.decision, DraftLimits):
            raise ValueError(
                "state.decision must be limits: a LimitedPolicy's network decides inside the "
                "session, which must be made with it (decoder.generate and decoder.new_session do)"
            )
        limits = self._applied = state.decision
        tokens, width = limits.lookup_tokens, limits.top_k
        if state.on_device:
            # Shapes are those of the largest draft, and the device reads the limits itself.
            tokens, width = self.lookup_tokens, self.limit.top_k
        self._cycle.limit(
            limits.top_k, limits.depth, min(limits.total_tokens, self.limit.total_tokens),
            limits.lookup_tokens, self.cost.width_index(width),
        )  # fmt: skip
        chosen = super().choose(state)
        if chosen.tree is None:
            return chosen
        return DraftPlan(limits.tree, tokens) if limits.total_tokens > 1 else DraftPlan()

    def take_draft(self, draft: DeviceDraft) -> None:
        """Take what a device has drafted and chosen within the limits; see `AutoPolicy`."""
        super().take_draft(draft.narrowed_to(self._applied.top_k))
