"""A `FusedPolicy` of a batch: one call reduces the features of all slots and decides for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.fused_policy import BoundPolicy, FusedPolicy, decision_of, plan_of
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import (
    CycleState,
    DraftLimits,
    DraftPlan,
    StepResult,
    TreeParams,
    TreePolicy,
)


class _Decided:
    """The policy of a slot for which another one has decided."""

    def reset(self) -> None:
        """Do nothing: nothing is remembered here."""

    def fork(self) -> _Decided:
        """Return the same."""
        return self

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the tree or plan that was chosen when the last token was accepted."""
        assert state.decision is not None, "a batch asks `read` before a sequence's first cycle"
        return plan_of(state.decision)

    def observe(self, result: StepResult) -> None:
        """Do nothing: the policy is trained already."""


class FusedSlots(PerSlotPolicies):
    """A `BatchPolicy` that reads the features of all slots in one call, each with its own decision.

    Every slot has a record of its own in the action cache, with its own counters, and decides anew
    when a sequence joins. A sequence that joins with a policy of its own is left to that one.

    Attributes:
        cache: the action cache of all slots.
    """

    def __init__(
        self,
        policy: FusedPolicy,
        slots: int,
        head: Eagle3DraftHead,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Set up.

        Args:
            policy: the policy; its own cache is not used.
            slots: most sequences.
            head: the draft head whose features it reads.
            reduce: see `FusedPolicy.bind`.

        Raises:
            ValueError: see `FusedPolicy.bind`; or `slots` is less than 1.
        """
        super().__init__(_Decided())
        self._bound = BoundPolicy(policy.fork(slots), head, reduce)
        self.cache = self._bound.cache
        self._fused: set[int] = set()

    def join(self, slot: int, policy: TreePolicy | None = None) -> None:
        """Begin a sequence in a slot; see `PerSlotPolicies.join`."""
        super().join(slot, policy)
        if policy is None:
            self.cache.invalidate([slot])
            self._fused.add(slot)

    def leave(self, slot: int) -> None:
        """End the sequence in a slot."""
        self._fused.discard(slot)
        super().leave(slot)

    def decides(self, slot: int) -> bool:
        """Return whether `read` decides for a slot."""
        return slot in self._fused

    def read(
        self, slots: Sequence[int], features: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor] | None, list[TreeParams | DraftLimits]]:
        """Decide for slots whose last tokens have these features.

        Args:
            slots: distinct slots for which this decides.
            features: (R, 3k) float32 of every slot, of tokens that were accepted now.

        Returns:
            (R, h) reduced features of every slot, None if the policy does not reduce them; and
            every slot's next tree or limits.
        """
        counts = [len(own) for own in features]
        last = torch.tensor(list(accumulate(counts))) - 1
        reduced, params = self._bound.encode_slots(
            torch.cat(list(features)), last, torch.tensor(list(slots))
        )
        chosen = [decision_of(numbers) for numbers in params.tolist()]
        return None if reduced is None else list(reduced.split(counts)), chosen
