"""The batches of a comparison, in which modes take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eaglerl.eagle3.batch.batch_policy import BatchPolicy, SlotState
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.policy import DraftPlan, StepResult, TreeParams, TreePolicy, as_policy
from eaglerl.eagle3.session_factory import TREE_ROOM
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class ModePolicies:
    """The policy of the mode that is at work in a batch: it passes everything on.

    A batch's caches outlive a mode's turn, so that all modes use the same memory.

    Attributes:
        mode: the mode's policy.
    """

    mode: BatchPolicy

    def join(self, slot: int) -> None:
        """See `BatchPolicy`."""
        self.mode.join(slot)

    def leave(self, slot: int) -> None:
        """See `BatchPolicy`."""
        self.mode.leave(slot)

    def plan(self, states: Sequence[SlotState]) -> Sequence[DraftPlan | Exception]:
        """See `BatchPolicy`."""
        return self.mode.plan(states)

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """See `BatchPolicy`."""
        self.mode.look(slot, builder, depth, context_length, lookup)

    def continuing(self) -> list[int]:
        """See `BatchPolicy`."""
        return self.mode.continuing()

    def select(self) -> None:
        """See `BatchPolicy`."""
        self.mode.select()

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """See `BatchPolicy`."""
        return self.mode.finish(slot, builder, lookup)

    def observe(
        self,
        results: Sequence[tuple[int, StepResult]],
        rows: int,
        draft_seconds: float,
        verify_seconds: float,
        rounds: int,
        drafting: int,
    ) -> None:
        """See `BatchPolicy`."""
        self.mode.observe(results, rows, draft_seconds, verify_seconds, rounds, drafting)


class Batches:
    """The batches of a comparison, made when first used.

    Modes share one for every number of slots, but for those with a `FusedPolicy`: a batch knows
    from its beginning that it reads the features for such a policy.
    """

    def __init__(self, decoder: SpeculativeDecoder, longest: int) -> None:
        """Set up.

        Args:
            decoder: decoder of all modes.
            longest: tokens of the longest conversation, answers included.
        """
        self._decoder = decoder
        self._capacity = longest + TREE_ROOM
        self._shared: dict[int, tuple[BatchSession, ModePolicies]] = {}
        self._own: dict[FusedSlots, BatchSession] = {}

    def take(self, slots: int, policies: BatchPolicy) -> BatchSession:
        """Return the empty batch in which a mode decodes.

        Args:
            slots: most sequences at once.
            policies: decides for all of them.

        Raises:
            ValueError: the target is not on the CPU.
        """
        if isinstance(policies, FusedSlots):
            if policies not in self._own:
                self._own[policies] = self._new(slots, policies)
            return self._own[policies]
        if slots not in self._shared:
            at_work = ModePolicies()
            self._shared[slots] = self._new(slots, at_work), at_work
        session, at_work = self._shared[slots]
        at_work.mode = policies
        return session

    def _new(self, slots: int, policies: BatchPolicy) -> BatchSession:
        return BatchSession(
            self._decoder.target,
            self._decoder.draft_runner,
            policies,
            slots=slots,
            capacity=self._capacity,
        )


class SplitPolicies(PerSlotPolicies):
    """One policy per slot: that of the split that its question belongs to.

    Attributes:
        split: split of the question that joins next.
    """

    split: str

    def __init__(self, trees: Mapping[str, TreeParams]) -> None:
        """Set up.

        Args:
            trees: the tree of each split.
        """
        super().__init__(next(iter(trees.values())))
        self._of_split = {split: as_policy(tree) for split, tree in trees.items()}

    def join(self, slot: int, policy: TreePolicy | None = None) -> None:
        """Begin a sequence of a question of `split`."""
        super().join(slot, self._of_split[self.split] if policy is None else policy)


def check_for_batch(policy: TreeParams | TreePolicy, label: str) -> None:
    """Check that a policy of one sequence can decide for several.

    Args:
        policy: the policy.
        label: the mode's, for the message.

    Raises:
        ValueError: there can be no second one.
    """
    if not isinstance(policy, TreeParams) and not hasattr(policy, "fork"):
        raise ValueError(
            f"the mode {label!r} cannot decode several questions at once: its policy, a "
            f"{type(policy).__name__}, decides for one sequence. Leave it out, or use "
            "--concurrency 1"
        )
