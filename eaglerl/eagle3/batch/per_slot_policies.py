"""A batch's policy that asks one policy of a single sequence for every slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eaglerl.eagle3.batch.batch_policy import SlotState
from eaglerl.eagle3.fused_policy import FusedPolicy, fused_part
from eaglerl.eagle3.policy import DraftPlan, StepResult, TreeParams, TreePolicy, as_plan, as_policy
from eaglerl.eagle3.policy_use import begin_use
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.draft_decisions import DraftContext, DraftDecisions
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class _Slot:
    """The policy of one slot, and its decisions in the current cycle."""

    def __init__(self, policy: TreePolicy, end_use: Callable[[], None]) -> None:
        self.policy = policy
        self.end_use = end_use
        self.decisions = DraftDecisions(policy)
        self.goes_on = False
        self.error: Exception | None = None


class PerSlotPolicies:
    """A `BatchPolicy` with one `TreePolicy` per slot, each of which decides as if it were alone.

    A policy that raises an exception fails its own slot.
    """

    def __init__(self, policy: TreeParams | DraftPlan | TreePolicy) -> None:
        """Set up.

        Args:
            policy: the policy of slots that are given none; every slot takes it or a fork of it.

        Raises:
            TypeError: `policy` is no policy.
            ValueError: it is a `FusedPolicy` or has one.
        """
        self._default = as_policy(policy)
        _check_for_slot(self._default)
        self._slots: dict[int, _Slot] = {}
        self._looked: list[int] = []
        self._drafted: set[int] = set()
        # The batch measures the time of its calls itself.
        self._unused_time = TotalTime()

    def join(self, slot: int, policy: TreePolicy | None = None) -> None:
        """Begin a sequence in a slot.

        Args:
            slot: the slot.
            policy: the sequence's own policy; the default one if None.

        Raises:
            ValueError: another sequence uses the policy and it cannot fork, or it is a
                `FusedPolicy` or has one.
        """
        chosen = self._default if policy is None else policy
        _check_for_slot(chosen)
        used, end_use = begin_use(chosen)
        try:
            used.reset()
            self._slots[slot] = _Slot(used, end_use)
        except BaseException:
            end_use()
            raise

    def leave(self, slot: int) -> None:
        """End the sequence in a slot."""
        self._slots.pop(slot).end_use()

    def plan(self, states: Sequence[SlotState]) -> list[DraftPlan | Exception]:
        """Let every slot's policy choose; see `BatchPolicy.plan`."""
        self._looked, self._drafted = [], set()
        return [self._plan(state) for state in states]

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """See `BatchPolicy.look`."""
        self._looked.append(slot)
        self._drafted.add(slot)
        own = self._slots[slot]
        own.goes_on = False
        context = DraftContext(context_length, lookup, self._unused_time)
        try:
            own.goes_on = own.decisions.look(builder, depth, context)
        except Exception as error:
            own.error = error

    def continuing(self) -> list[int]:
        """See `BatchPolicy.continuing`."""
        looked, self._looked = self._looked, []
        return [slot for slot in looked if self._slots[slot].goes_on]

    def select(self) -> None:
        """See `BatchPolicy.select`."""
        for slot in self._drafted:
            own = self._slots[slot]
            try:
                if own.error is None:
                    own.decisions.select()
            except Exception as error:
                own.error = error

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """Return a slot's tree; raise what its policy has raised in this cycle."""
        own = self._slots[slot]
        if own.error is not None:
            raise own.error
        return own.decisions.finish(builder)

    def observe(
        self,
        results: Sequence[tuple[int, StepResult]],
        rows: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Give every slot's policy its own result."""
        for slot, result in results:
            own = self._slots[slot]
            try:
                own.policy.observe(result)
            except Exception as error:
                # The tokens of this cycle are right; the next `plan` fails the slot.
                own.error = error

    def _plan(self, state: SlotState) -> DraftPlan | Exception:
        own = self._slots[state.slot]
        if own.error is not None:
            return own.error
        try:
            plan = state.cut(as_plan(own.policy.choose(state.state)))
        except Exception as error:
            return error
        own.decisions.begin(plan.params)
        return plan


def _check_for_slot(policy: TreePolicy) -> None:
    if isinstance(policy, FusedPolicy):
        raise ValueError(
            "policy must not be a FusedPolicy, which decides for all sequences of a batch in one "
            "call: give it to the batch"
        )
    if fused_part(policy) is not None:
        raise ValueError(
            f"policy must not be a {type(policy).__name__}, whose network decides in a session of "
            "one sequence, not in a batch"
        )
