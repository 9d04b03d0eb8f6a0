"""A batch's policy for sequences that are decided for together and others that have their own."""

from __future__ import annotations

from collections.abc import Sequence

from eaglerl.eagle3.batch.batch_policy import BatchPolicy, SlotState
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.policy import NO_DRAFT, DraftPlan, StepResult, TreeParams, TreePolicy
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class MixedPolicies:
    """A `BatchPolicy` whose slots are the joint policy's, but for those that join with their own.

    The joint policy decides as if its slots were alone; it learns the cost of the rows of all.

    Attributes:
        joint: decides for the slots that joined without a policy.
    """

    def __init__(self, joint: BatchPolicy) -> None:
        """Set up.

        Args:
            joint: decides for slots that join without a policy.
        """
        self.joint = joint
        self._own = PerSlotPolicies(NO_DRAFT)
        self._own_slots: set[int] = set()
        # Of the last pass, and of the cycle.
        self._joint_looked = self._joint_drafted = self._own_drafted = False

    def join(self, slot: int, policy: TreePolicy | None = None) -> None:
        """Begin a sequence in a slot.

        Args:
            slot: the slot.
            policy: the sequence's own policy; None leaves it to the joint one.

        Raises:
            ValueError: see `PerSlotPolicies.join`.
        """
        if policy is None:
            self.joint.join(slot)
        else:
            self._own.join(slot, policy)
            self._own_slots.add(slot)

    def leave(self, slot: int) -> None:
        """End the sequence in a slot."""
        if slot in self._own_slots:
            self._own_slots.remove(slot)
            self._own.leave(slot)
        else:
            self.joint.leave(slot)

    def plan(self, states: Sequence[SlotState]) -> list[DraftPlan | Exception]:
        """Return a plan for every state; see `BatchPolicy.plan`."""
        self._joint_looked = self._joint_drafted = self._own_drafted = False
        own = [state for state in states if state.slot in self._own_slots]
        joint = [state for state in states if state.slot not in self._own_slots]
        plans: dict[int, DraftPlan | Exception] = {}
        for policy, chosen in ((self._own, own), (self.joint, joint)):
            if chosen:
                slots = [state.slot for state in chosen]
                plans.update(zip(slots, policy.plan(chosen), strict=True))
        return [plans[state.slot] for state in states]

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """See `BatchPolicy.look`."""
        if slot in self._own_slots:
            self._own_drafted = True
            self._own.look(slot, builder, depth, context_length, lookup)
        else:
            self._joint_looked = self._joint_drafted = True
            self.joint.look(slot, builder, depth, context_length, lookup)

    def continuing(self) -> list[int]:
        """See `BatchPolicy.continuing`."""
        asked = self._own.continuing()
        if self._joint_looked:
            self._joint_looked = False
            asked = [*asked, *self.joint.continuing()]
        return asked

    def select(self) -> None:
        """See `BatchPolicy.select`."""
        if self._own_drafted:
            self._own.select()
        if self._joint_drafted:
            self.joint.select()

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """See `BatchPolicy.finish`."""
        policy: BatchPolicy = self._own if slot in self._own_slots else self.joint
        return policy.finish(slot, builder, lookup)

    def observe(
        self,
        results: Sequence[tuple[int, StepResult]],
        rows: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Give every policy the results of its slots; see `BatchPolicy.observe`."""
        own = [each for each in results if each[0] in self._own_slots]
        joint = [each for each in results if each[0] not in self._own_slots]
        if own:
            self._own.observe(own, rows, draft_seconds, verify_seconds)
        if joint:
            # Seconds of 0 count as not measured: the draft's passes had rows of others in them, or
            # the trees of all took more than one pass.
            self.joint.observe(
                joint,
                rows,
                0.0 if self._own_drafted else draft_seconds,
                0.0 if own and rows > MOST_EXACT_ROWS else verify_seconds,
            )
