"""Draft trees that grow on a device, where a rule stops them and chooses their nodes."""

from __future__ import annotations

import numpy as np
import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.tree.device_tree import DeviceTree, children_of
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops.node_selection import (
    LookedUp,
    NodeSelection,
    SelectionSizes,
    rule_layout,
    stack_rules,
)
from eaglerl.ops.select_draft_nodes import select_draft_nodes

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
        self.draft = draft
        self._device = device
        table = draft.draft_to_target
        self._draft_to_target = None if table is None else table.to(device)
        self._selections: dict[SelectionSizes, NodeSelection] = {}
        # What the cycle before has needed.
        self._rows: int | None = None
        self._depth: int | None = None

    def sizes(self, limit: TreeParams, lookup_tokens: int) -> SelectionSizes:
        """Return the sizes of the next draft.

        Args:
            limit: the largest tree.
            lookup_tokens: most looked-up tokens.
        """
        most = limit.total_tokens
        rows = most if self._rows is None else min(rows_for(self._rows), most)
        return SelectionSizes(limit.top_k, limit.depth, rows, lookup_tokens)

    def grow(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        sizes: SelectionSizes,
        rule: np.ndarray,
        depth: int,
        lookup: Lookup,
        slot: int = 0,
    ) -> DeviceTree:
        """Draft and choose.

        Args:
            root: the target's next token, already known.
            hidden: (h,) output of the draft at the last stable row, which holds the root's
                embedding.
            logits: (Vd,) draft logits there.
            sizes: of the draft.
            rule: (words,) int32, see `eaglerl.ops.pack_rule`.
            depth: most passes after the first one; fewer than `sizes` says near the end of a text.
            lookup: what prompt lookup proposes.
            slot: the sequence.

        Returns:
            The tree, in memory that the next draft of these sizes overwrites.
        """
        depth = depth if self._depth is None else min(depth, self._depth)
        selection = self._selections.get(sizes)
        if selection is None:
            selection = self._selections[sizes] = NodeSelection(1, sizes, device=self._device)
        rules = stack_rules([_limited(rule, sizes, depth)], self._device)
        match, tokens = lookup.match_length, lookup.token_ids[: sizes.lookup_tokens]
        unused = [0] * (sizes.lookup_tokens - len(tokens))
        given = torch.tensor([[root, match, len(tokens), *tokens, *unused]]).to(self._device)
        roots, looked_up = given[:, 0], LookedUp(given[:, 1], given[:, 2], given[:, 3:])
        top_k = sizes.top_k
        own = torch.eye(top_k, dtype=torch.bool, device=self._device)
        ids, log_probs = children_of(logits[None], top_k, self._draft_to_target)
        visible, hidden = own, hidden[None].expand(top_k, -1)
        for level in range(depth + 1):
            if level > 0:
                _, token_ids, rank = selection.frontier[0]
                if level > 1:
                    hidden, visible = hidden[rank], torch.cat((visible[rank], own), dim=1)
                hidden, logits = self.draft.expand(token_ids, hidden, level - 1, visible, slot)
                ids, log_probs = children_of(logits, top_k, self._draft_to_target)
            drafted = (ids[None], log_probs[None], looked_up)
            select_draft_nodes(selection, rules, level, roots, *drafted)
        return DeviceTree(
            token_ids=selection.row_ids[0],
            parents=selection.row_parents[0],
            levels=selection.row_levels[0],
            ancestors=selection.ancestors[0],
            scores=torch.zeros(sizes.rows, device=self._device),
            enabled=selection.enabled[0],
            longest_path=min(sizes.rows, 1 + max(depth + 1, sizes.lookup_tokens)),
            selection=selection,
            passes=depth + 1,
        )

    def learn(self, draft: DeviceDraft, rows: int) -> None:
        """Take note of what a cycle has needed.

        Args:
            draft: what was drafted and chosen.
            rows: rows that there were.
        """
        # Where all were used, more might have been.
        self._rows = draft.rows + (draft.rows == rows)
        self._depth = draft.levels - 1 + (draft.levels == draft.passes)


def _limited(rule: np.ndarray, sizes: SelectionSizes, depth: int) -> np.ndarray:
    """Return a rule that ends the draft after `depth` passes."""
    if depth == sizes.depth:
        return rule
    words, place = rule.copy(), rule_layout(sizes)["most_levels"]
    words[place] = min(words[place], depth + 1)
    return words


def rows_for(needed: int) -> int:
    """Return the smallest number of rows that is captured and at least `needed`."""
    return next((rows for rows in ROW_CLASSES if rows >= needed), ROW_CLASSES[-1])
