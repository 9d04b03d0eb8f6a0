"""Draft trees that grow on a device, where rules stop them and choose their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner, OneSlot
from eaglerl.eagle3.policy import DraftLimits
from eaglerl.eagle3.ruled_policy import DeviceDraft, RuledPolicy
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.chain_rule import chain_limits, chain_rule
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.eagle3.tree.ruled_draft import RuledDraft, RuledSlot
from eaglerl.ops.node_selection import SelectionSizes

#: Rows of a verification, the root included. A pass of each size can be captured in a graph.
ROW_CLASSES = (4, 8, 16, 32, 64, 128, 256)


class SlotDraft(NamedTuple):
    """What one sequence wants of a draft.

    Attributes:
        root: the target's next token, already known.
        policy: its rule decides.
        most_depth: most passes after the first one; None for no draft: the looked-up tokens alone
            are verified.
        lookup: what prompt lookup proposes.
        policy_time: adds up the policy's time.
        most_levels: see `RuledSlot`.
    """

    root: int
    policy: RuledPolicy
    most_depth: int | None
    lookup: Lookup
    policy_time: TotalTime
    most_levels: int | None = None


class _Size(NamedTuple):
    """The most rows and passes after the first one of a slot's draft."""

    rows: int
    depth: int


class SelectingDrafter:
    """Grows drafts of at most D passes after the first in S slots, without asking the host.

    After each pass one launch scores its candidates, chooses the rows to verify, and says whether
    each draft has ended; later passes then change nothing. The host chooses the number of passes,
    and that of rows among a few, from what the cycle before has needed: rows that are not used are
    computed, but no path leads through them. Passes and rows are those of the slot that needs most.
    The others have no more rows than alone; their rules may use the passes, which are there anyway.
    """

    def __init__(self, draft: DraftRunner, device: torch.device, slots: int = 1) -> None:
        """Set up.

        Args:
            draft: the head's runner.
            device: where the drafts are.
            slots: number S of sequences.
        """
        self._draft = draft
        self._device = device
        table = draft.draft_to_target
        self._draft_to_target = None if table is None else table.to(device)
        self._drafts: dict[SelectionSizes, RuledDraft] = {}
        # What the cycle before has needed, and what this one may have.
        self._needed: list[_Size | None] = [None] * slots
        self._begun: list[_Size] = [_Size(1, 0)] * slots
        self._depth = 0
        self._runs_all = False

    def run_all(self) -> None:
        """Launch all passes of every draft: those behind its end cost nothing."""
        self._runs_all = True

    def forget(self) -> None:
        """Forget what cycles have needed: other texts begin."""
        self._needed = [None] * len(self._needed)

    def begin(
        self, slots: Sequence[SlotDraft], limits: torch.Tensor | None = None
    ) -> tuple[RuledDraft, int]:
        """Begin the next drafts.

        Args:
            slots: what each sequence wants; the policies have one limit.
            limits: see `RuledDraft.begin`.

        Returns:
            The drafts, and the number of passes after the first one.
        """
        limit = slots[0].policy.limit
        self._begun = [self._size(slot, needed) for slot, needed in
                       zip(slots, self._needed, strict=True)]  # fmt: skip
        rows = max(size.rows for size in self._begun)
        sizes = SelectionSizes(limit.top_k, limit.depth, rows, slots[0].policy.lookup_tokens)
        self._depth = max(size.depth for size in self._begun)
        said = []
        for slot, size in zip(slots, self._begun, strict=True):
            if slot.most_depth is None:
                rule = chain_rule(sizes)
                most = chain_limits(size.rows, len(slot.lookup.token_ids))
            else:
                with slot.policy_time:
                    rule = slot.policy.selection_rule(sizes)
                most = DraftLimits(size.rows, sizes.depth, limit.top_k, sizes.lookup_tokens)
            said.append(RuledSlot(slot.root, rule, slot.lookup, slot.most_levels, most))
        draft = self._drafts.get(sizes)
        if draft is None:
            draft = RuledDraft(sizes, self._draft_to_target, self._device, len(slots))
            self._drafts[sizes] = draft
        draft.begin(said, limits)
        return draft, self._depth

    def _size(self, slot: SlotDraft, needed: _Size | None) -> _Size:
        """Return the most rows and passes of a slot's draft."""
        limit = slot.policy.limit
        if slot.most_depth is None:
            tokens = len(slot.lookup.token_ids)
            rows = rows_for(1 + tokens) if tokens else 1
            return _Size(min(rows, limit.total_tokens), 0)
        rows = limit.total_tokens if needed is None else rows_for(needed.rows)
        rows = min(rows, rows_for(slot.policy.most_rows), limit.total_tokens)
        depth = slot.most_depth
        if needed is not None and not self._runs_all:
            depth = min(depth, needed.depth)
        return _Size(rows, depth)

    def grow(
        self,
        draft: RuledDraft,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        depth: int,
        slot: int = 0,
    ) -> DeviceTree:
        """Run all levels of one sequence.

        Args:
            draft: see `begin`.
            hidden: (h,), see `RuledDraft.take_first`.
            logits: (Vd,), see there.
            depth: as it was begun with.
            slot: the sequence.

        Returns:
            The tree, in memory that the next draft of these sizes overwrites.
        """
        draft.take_first(hidden[None], logits[None])
        for level in range(1, depth + 1):
            draft.take_level(level, OneSlot(self._draft, slot))
        return draft.tree(depth).only

    def learn(self, draft: DeviceDraft, slot: int = 0) -> None:
        """Take note of what a cycle has needed.

        Args:
            draft: what was drafted and chosen.
            slot: place of the sequence among those of `begin`.
        """
        # Where all were used, more might have been.
        rows = draft.rows + (draft.rows == self._begun[slot].rows)
        depth = draft.levels - 1 + (draft.levels == self._depth + 1)
        self._needed[slot] = _Size(rows, depth)


def rows_for(needed: int) -> int:
    """Return the smallest number of rows that is captured and at least `needed`."""
    return next((rows for rows in ROW_CLASSES if rows >= needed), ROW_CLASSES[-1])
