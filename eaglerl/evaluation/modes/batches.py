"""The batches of a comparison, in which modes take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from eaglerl.eagle3.batch.batch_policy import BatchPolicy, SlotState
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.policy import DraftPlan, StepResult, TreeParams, TreePolicy, as_policy
from eaglerl.eagle3.session_factory import TREE_ROOM
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class ModePolicies:
    """The policy of the mode that is at work in a batch: it passes everything on.

    A batch's caches outlive a mode's turn, so that all modes use the same memory.

    Attributes:
        at_work: the mode's policy.
        join_at_work: gives a slot to the sequence that joins.
    """

    at_work: BatchPolicy
    join_at_work: Callable[[int], None]

    def join(self, slot: int) -> None:
        """See `BatchPolicy`."""
        self.join_at_work(slot)

    def leave(self, slot: int) -> None:
        """See `BatchPolicy`."""
        self.at_work.leave(slot)

    def plan(self, states: Sequence[SlotState]) -> Sequence[DraftPlan | Exception]:
        """See `BatchPolicy`."""
        return self.at_work.plan(states)

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """See `BatchPolicy`."""
        self.at_work.look(slot, builder, depth, context_length, lookup)

    def continuing(self) -> list[int]:
        """See `BatchPolicy`."""
        return self.at_work.continuing()

    def select(self) -> None:
        """See `BatchPolicy`."""
        self.at_work.select()

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """See `BatchPolicy`."""
        return self.at_work.finish(slot, builder, lookup)

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
        self.at_work.observe(results, rows, draft_seconds, verify_seconds, rounds, drafting)


class Batches:
    """One batch for every number of slots, made when first used."""

    def __init__(self, decoder: SpeculativeDecoder, longest: int) -> None:
        """Set up.

        Args:
            decoder: decoder of all modes.
            longest: tokens of the longest conversation, answers included.
        """
        self._decoder = decoder
        self._capacity = longest + TREE_ROOM
        self._made: dict[int, tuple[BatchSession, ModePolicies]] = {}

    def take(self, slots: int) -> tuple[BatchSession, ModePolicies]:
        """Return the empty batch with as many slots, and what its policy is set in.

        Raises:
            ValueError: the target is not on the CPU.
        """
        if slots not in self._made:
            policies = ModePolicies()
            session = BatchSession(
                self._decoder.target,
                self._decoder.draft_runner,
                policies,
                slots=slots,
                capacity=self._capacity,
            )
            self._made[slots] = session, policies
        session, policies = self._made[slots]
        session.close()
        return session, policies


class SplitPolicies(PerSlotPolicies):
    """One policy per slot: that of the split that its question belongs to."""

    def __init__(self, trees: Mapping[str, TreeParams]) -> None:
        """Set up.

        Args:
            trees: the tree of each split.
        """
        super().__init__(next(iter(trees.values())))
        self._of_split = {split: as_policy(tree) for split, tree in trees.items()}

    def join_for(self, slot: int, split: str) -> None:
        """Begin a sequence of a question of this split."""
        self.join(slot, self._of_split[split])


def check_for_batch(policy: TreeParams | TreePolicy, label: str) -> None:
    """Check that a policy of one sequence can decide for several.

    Args:
        policy: the policy.
        label: the mode's, for the message.

    Raises:
        ValueError: it decides inside a session of one sequence, or there can be no second one.
    """
    if isinstance(policy, FusedPolicy):
        raise ValueError(
            f"the mode {label!r} cannot decode several questions at once: its policy is fused with "
            "the cycle of one sequence. Leave it out, or use --concurrency 1"
        )
    if not isinstance(policy, TreeParams) and not hasattr(policy, "fork"):
        raise ValueError(
            f"the mode {label!r} cannot decode several questions at once: its policy, a "
            f"{type(policy).__name__}, decides for one sequence. Leave it out, or use "
            "--concurrency 1"
        )
