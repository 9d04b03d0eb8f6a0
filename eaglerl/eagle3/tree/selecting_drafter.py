"""Draft trees that grow on a device, where a rule stops them and chooses their nodes."""

from __future__ import annotations

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.ruled_policy import DeviceDraft, RuledPolicy
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.eagle3.tree.ruled_draft import RuledDraft
from eaglerl.ops.node_selection import SelectionSizes

#: Rows of a verification, the root included. A pass of each size can be captured in a graph.
ROW_CLASSES = (4, 8, 16, 32, 64, 128, 256)


class SelectingDrafter:
    """Grows a draft of at most D passes after the first, without asking the host.

    After each pass one launch scores its candidates, chooses the rows to verify, and says whether
    the draft has ended; later passes then change nothing. The host chooses the number of passes,
    and that of rows among a few, from what the cycle before has needed: rows that are not used are
    computed, but no path leads through them.
    """

    def __init__(self, draft: DraftRunner, device: torch.device) -> None:
        """Set up."""
        self._draft = draft
        self._device = device
        table = draft.draft_to_target
        self._draft_to_target = None if table is None else table.to(device)
        self._drafts: dict[SelectionSizes, RuledDraft] = {}
        # What the cycle before has needed.
        self._rows: int | None = None
        self._depth: int | None = None
        self._runs_all = False

    def run_all(self) -> None:
        """Launch all passes of every draft: those behind its end cost nothing."""
        self._runs_all = True

    def forget(self) -> None:
        """Forget what cycles have needed: another text begins."""
        self._rows = self._depth = None

    def begin(
        self,
        root: int,
        policy: RuledPolicy,
        most_depth: int,
        lookup: Lookup,
        policy_time: TotalTime,
        *,
        most_levels: int | None = None,
        limits: torch.Tensor | None = None,
    ) -> tuple[RuledDraft, int]:
        """Begin the next draft.

        Args:
            root: the target's next token, already known.
            policy: its rule decides.
            most_depth: most passes after the first one.
            lookup: what prompt lookup proposes.
            policy_time: adds up the policy's time.
            most_levels: see `RuledDraft.begin`.
            limits: see `RuledDraft.begin`.

        Returns:
            The draft, and the number of passes after the first one.
        """
        limit = policy.limit
        rows = limit.total_tokens if self._rows is None else rows_for(self._rows)
        rows = min(rows, rows_for(policy.most_rows), limit.total_tokens)
        sizes = SelectionSizes(limit.top_k, limit.depth, rows, policy.lookup_tokens)
        with policy_time:
            rule = policy.selection_rule(sizes)
        depth = most_depth
        if self._depth is not None and not self._runs_all:
            depth = min(depth, self._depth)
        draft = self._drafts.get(sizes)
        if draft is None:
            draft = self._drafts[sizes] = RuledDraft(sizes, self._draft_to_target, self._device)
        draft.begin(root, rule, lookup, most_levels, limits)
        return draft, depth

    def grow(
        self,
        draft: RuledDraft,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        depth: int,
        slot: int = 0,
    ) -> DeviceTree:
        """Run all levels.

        Args:
            draft: see `begin`.
            hidden: see `RuledDraft.take_first`.
            logits: see there.
            depth: as it was begun with.
            slot: the sequence.

        Returns:
            The tree, in memory that the next draft of these sizes overwrites.
        """
        draft.take_first(hidden, logits)
        for level in range(1, depth + 1):
            draft.take_level(level, self._draft, slot)
        return draft.tree(depth)

    def learn(self, draft: DeviceDraft, rows: int) -> None:
        """Take note of what a cycle has needed.

        Args:
            draft: what was drafted and chosen.
            rows: rows that there were.
        """
        # Where all were used, more might have been.
        self._rows = draft.rows + (draft.rows == rows)
        self._depth = draft.levels - 1 + (draft.levels == draft.passes)


def rows_for(needed: int) -> int:
    """Return the smallest number of rows that is captured and at least `needed`."""
    return next((rows for rows in ROW_CLASSES if rows >= needed), ROW_CLASSES[-1])
