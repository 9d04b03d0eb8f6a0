"""The interface between a batch and the policy that decides for its sequences together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eaglerl.eagle3.policy import CycleState, DraftPlan, StepResult, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder

#: Most prompts that `generate` decodes at once: more share the cost of reading the weights no
#: better.
MOST_SLOTS = 16
#: One token in the next cycle, without a draft.
_PLAIN = DraftPlan()


@dataclass(frozen=True, slots=True)
class SlotState:
    """The state of one slot before a cycle.

    Attributes:
        slot: the slot.
        state: what a policy of one sequence sees; ``state.lookup(n)`` looks up tokens.
        most_tokens: most tokens that the sequence may still emit.
        room: free rows of the slot in the KV caches.
        unread: tokens of the text that the draft has not processed.
    """

    slot: int
    state: CycleState
    most_tokens: int
    room: int
    unread: int

    def cut(self, plan: DraftPlan) -> DraftPlan:
        """Return the plan without what the sequence or its caches have no room for.

        The batch cuts every plan so; a policy that must know its largest tree calls this itself.
        """
        plan = plan.limited_to(self.most_tokens - 1)
        # For both caches: a target row per node, top_k draft rows per round, behind equal prefixes.
        rows = max(plan.most_rows, plan.params.depth * plan.params.top_k)
        return plan if rows <= self.room else _PLAIN


class BatchPolicy(Protocol):
    """A policy that decides for all slots of a batch together.

    A cycle calls `plan`; then, if slots draft, `look` for every slot of each pass and `continuing`
    once behind them, until no slot goes on, then `select`, and `finish` for every slot that
    drafted; and at its end `observe`. A slot that fails in between is not named again before
    `leave`. All calls run on the thread that decodes.
    """

    def join(self, slot: int) -> None:
        """Begin a sequence in a slot."""

    def leave(self, slot: int) -> None:
        """End the sequence in a slot."""

    def plan(self, states: Sequence[SlotState]) -> Sequence[DraftPlan | Exception]:
        """Return a plan for every state, in the same order.

        An exception in place of a plan fails that slot alone; one that is raised fails all.
        """

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """Look at a slot's draft after a pass.

        Args:
            slot: the slot.
            builder: its candidates so far.
            depth: rounds done after the first one.
            context_length: tokens before the tree, the root included.
            lookup: the tokens that were looked up in the slot's text.
        """

    def continuing(self) -> list[int]:
        """Return those slots of the last pass that draft another round.

        A slot whose plan has no more rounds does not, whatever is returned.
        """

    def select(self) -> None:
        """Choose what is verified, once for all slots that drafted."""

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """Return a slot's tree, looked-up tokens included, and the size of the head's part."""

    def observe(
        self,
        results: Sequence[tuple[int, StepResult]],
        rows: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Receive the results of a cycle.

        Args:
            results: slot and result of every sequence; the seconds of shared passes are divided by
                rows.
            rows: rows of all trees.
            draft_seconds: of the whole cycle.
            verify_seconds: of the whole cycle, acceptance included.
        """
