"""The policy that needs nothing beforehand, for sequences that are decoded together."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from eaglerl._ext import C
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.batch.batch_policy import SlotState
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.policy import DraftPlan, StepResult, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder
from eaglerl.policies.online_policy import DEFAULT_LIMIT, limit_for

# No cycle emits more tokens.
_ANY_ROOM = 1 << 30


class _Slot:
    """What the policy keeps of a sequence, and what looks at its draft."""

    def __init__(self, batch: C.OnlineBatch, number: int) -> None:
        self._batch, self._number = batch, number
        self.begin()

    def begin(self) -> None:
        """Begin a sequence."""
        self._batch.join(self._number)
        self.lookup = NO_LOOKUP
        self.depth = 0

    def look(
        self, builder: C.DraftTreeBuilder, context: int, match: int, looked_up: Sequence[int], /
    ) -> bool:
        """Look at the draft. Whether it goes on is decided for all slots together."""
        self._batch.look(self._number, builder, context, match, looked_up)
        return False

    def select_in(
        self, builder: C.DraftTreeBuilder, looked_up: Sequence[int], /
    ) -> tuple[int, int]:
        """Select this slot's part of what was chosen for all of them."""
        return self._batch.select_in(self._number, builder, looked_up)


class BatchAutoPolicy:
    """An `AutoPolicy` of all sequences of a batch: their rows share one verification.

    Before a cycle it chooses which sequences draft, after every pass which of them draft another
    level, and at the end which candidates and looked-up tokens of all of them are verified: the
    ones that maximise the batch's expected tokens - rate * seconds. A sequence whose drafts are
    worth less than the others' may so get no row but its root. All sequences learn together, and
    with one the decisions are those of `AutoPolicy`.

    Attributes:
        cost: what is known of this machine's costs.
        slots: most sequences.
        limit: the largest tree of a sequence; every draft has its width.
        lookup_tokens: most looked-up tokens to verify of a sequence.
        max_rows: most rows of all trees together.
    """

    def __init__(
        self,
        slots: int,
        cost: OnlineCost | None = None,
        *,
        limit: TreeParams = DEFAULT_LIMIT,
        lookup_tokens: int = 12,
        max_rows: int = MOST_EXACT_ROWS,
    ) -> None:
        """Set up.

        Args:
            slots: most sequences that are decoded together, at most `max_rows`.
            cost: costs that were learned before, see `batch_cost`; None to begin without knowledge.
            limit: the largest tree to draft.
            lookup_tokens: most tokens of prompt lookup to verify; 0 for none.
            max_rows: most rows to verify in a cycle, those of all roots included.

        Raises:
            ValueError: `slots` or `max_rows` is out of range, `cost` lacks the widths or the rows,
                `limit` drafts nothing, or `lookup_tokens` is negative.
        """
        if limit.total_tokens == 1:
            raise ValueError("limit must draft at least one node, got total_tokens=1")
        self.limit = limit
        self.lookup_tokens, self.max_rows = lookup_tokens, max_rows
        self.cost = batch_cost(slots, limit.top_k, max_rows) if cost is None else cost
        for width in _widths(slots, limit.top_k):
            self.cost.width_index(width)
        self._shared = C.OnlineAcceptance(limit.depth, 1.0)
        self._open(slots)
        self._plan = DraftPlan(limit, lookup_tokens)
        # Made once: a plan checks its fields.
        self._undrafted = [DraftPlan(None, tokens) for tokens in range(lookup_tokens + 1)]

    def fork(self, slots: int | None = None) -> BatchAutoPolicy:
        """Return the same policy for another batch at the same time; both learn together.

        Args:
            slots: most sequences of that batch; `slots` if None.

        Raises:
            ValueError: there are more of them than here, or less than 1.
        """
        chosen = self.slots if slots is None else slots
        if not 1 <= chosen <= self.slots:
            raise ValueError(f"slots must be in 1..{self.slots}, got {chosen}")
        other = copy.copy(self)
        other._open(chosen)
        return other

    def _open(self, slots: int) -> None:
        """Begin without sequences."""
        self.slots = slots
        self._native = C.OnlineBatch(
            self._shared, self.limit.top_k, self.limit.depth, self.limit.total_tokens,
            self.lookup_tokens, self.cost._native, slots, self.max_rows, False,
        )  # fmt: skip
        self._slots = [_Slot(self._native, slot) for slot in range(slots)]

    @property
    def rate(self) -> float:
        """Tokens per second of the last 1,000 cycles of as many sequences as the last one."""
        return self._native.mean_rate / self.cost._native.speed

    def join(self, slot: int) -> None:
        """Begin a sequence: what was learned stays."""
        self._slots[slot].begin()

    def leave(self, slot: int) -> None:
        """End a sequence."""

    def plan(self, states: Sequence[SlotState]) -> list[DraftPlan]:
        """Return, for each sequence, the largest draft, or the looked-up tokens to verify without.

        Raises:
            ValueError: a slot occurs twice or is out of range.
        """
        if not states:
            return []
        cut, entries = [], []
        for each in states:
            kept, context = self._slots[each.slot], each.state.context_length
            kept.lookup = each.state.lookup(self.lookup_tokens) if self.lookup_tokens else NO_LOOKUP
            match, looked_up = kept.lookup
            cut.append(each.cut(self._plan))
            # A draft of n levels may emit n + 1 tokens.
            room = 0 if cut[-1].tree is None else min(each.most_tokens - 1, _ANY_ROOM)
            entries.append((each.slot, context, match, len(looked_up), each.unread, room))
        plans = []
        for tokens, plan in zip(self._native.plan(entries), cut, strict=True):
            plans.append(plan if tokens < 0 else self._undrafted[tokens])
        return plans

    def look(
        self,
        slot: int,
        builder: DraftTreeBuilder,
        depth: int,
        context_length: int,
        lookup: Lookup,
    ) -> None:
        """Look at a draft after one of its passes."""
        kept = self._slots[slot]
        kept.depth = depth
        builder.look(kept, context_length, lookup.match_length, lookup.token_ids)

    def continuing(self) -> list[int]:
        """Return the slots of the last pass whose next level promises more than its pass costs."""
        return self._native.decide()

    def select(self) -> None:
        """Choose the candidates and looked-up tokens of all drafts."""
        self._native.select()

    def finish(
        self, slot: int, builder: DraftTreeBuilder, lookup: Lookup
    ) -> tuple[DraftTree, TreeParams]:
        """Return the chosen tree of a slot that drafted, and the parameters of the head's part."""
        kept = self._slots[slot]
        tree, candidates = builder.finish_planned(kept, lookup.token_ids)
        return tree, TreeParams(candidates, kept.depth, self.limit.top_k)

    def observe(
        self,
        results: Sequence[tuple[int, StepResult]],
        rows: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Learn from a cycle.

        Args:
            results: of each slot.
            rows: rows of all trees.
            draft_seconds: time of all passes of the draft.
            verify_seconds: time of the verification.
        """
        for slot, result in results:
            looked_up = self._slots[slot].lookup.token_ids
            self._native.observe(slot, result.accepted_rows, result.token_ids, looked_up)
        if results:
            self._native.end_cycle(rows, verify_seconds, draft_seconds)


def make_batch_auto(
    draft_vocab_size: int, slots: int, cost: OnlineCost | None = None
) -> BatchAutoPolicy:
    """Return a policy with trees of up to 32 rows each, as wide as a head can draft, at most 4.

    Args:
        draft_vocab_size: number of tokens that the head can draft.
        slots: see `BatchAutoPolicy`.
        cost: see `BatchAutoPolicy`.

    Raises:
        ValueError: see `BatchAutoPolicy`.
    """
    return BatchAutoPolicy(slots, cost, limit=limit_for(draft_vocab_size))


def batch_cost(slots: int, top_k: int = 4, max_rows: int = MOST_EXACT_ROWS) -> OnlineCost:
    """Return costs without knowledge, for passes of 1, 2, 4, ... drafts.

    Args:
        slots: most sequences that are decoded together.
        top_k: width of their drafts.
        max_rows: most rows to verify in a cycle.
    """
    return OnlineCost(_widths(slots, top_k), max_rows)


def _widths(slots: int, top_k: int) -> tuple[int, ...]:
    """Return the rows of passes of 1, 2, 4, ... drafts, up to at least `slots`."""
    return tuple(top_k << power for power in range(max(slots - 1, 0).bit_length() + 1))
