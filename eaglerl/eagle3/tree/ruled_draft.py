"""A draft on a device that a rule ends and chooses the rows of, in memory that keeps its place."""

from __future__ import annotations

import numpy as np
import torch

from eaglerl.eagle3.head.draft_runner import Expanding
from eaglerl.eagle3.tree.device_tree import DeviceTree, children_of
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops.node_selection import (
    STOPPED,
    LookedUp,
    NodeSelection,
    SelectionSizes,
    rule_layout,
)
from eaglerl.ops.select_draft_nodes import select_draft_nodes


class RuledDraft:
    """A draft of one size, level by level.

    What one level leaves for the next lies in tensors that keep their addresses, so each level can
    be captured in a graph of its own.
    """

    def __init__(
        self, sizes: SelectionSizes, draft_to_target: torch.Tensor | None, device: torch.device
    ) -> None:
        """Allocate.

        Args:
            sizes: of the draft.
            draft_to_target: (Vd,) target ids of the draft's tokens, on the device; None where both
                are the same.
            device: where everything lies.
        """
        self.sizes = sizes
        self._selection = NodeSelection(1, sizes, device=device)
        self._draft_to_target = draft_to_target
        self._layout = rule_layout(sizes)
        self._own = torch.eye(sizes.top_k, dtype=torch.bool, device=device)
        self._scores = torch.zeros(sizes.rows, device=device)
        self._kept: dict[str, torch.Tensor] = {}
        # One tensor, so that one copy brings what the host says: root, match, number of looked-up
        # tokens, these tokens, rule.
        self._said = torch.zeros(1, 3 + sizes.lookup_tokens + self._layout["words"]).long()
        if device.type == "cuda":
            self._said = self._said.pin_memory()
        self._words = self._said[0].numpy()
        self._inputs = torch.zeros_like(self._said, device=device)
        self._rules = torch.zeros(1, self._layout["words"], dtype=torch.int32, device=device)
        self._limits: torch.Tensor | None = None

    def begin(
        self,
        root: int,
        rule: np.ndarray,
        lookup: Lookup,
        most_levels: int | None,
        limits: torch.Tensor | None = None,
    ) -> None:
        """Send what a cycle begins with; the host does not wait.

        Args:
            root: the target's next token, already known.
            rule: (words,) int32, see `eaglerl.ops.pack_rule`.
            lookup: what prompt lookup proposes.
            most_levels: most levels of the tree, looked-up tokens included, which the end of a text
                limits; None for any number. A device that looks up itself proposes more.
            limits: (1, 4) int32 on the device, see `select_draft_nodes`; None for none.
        """
        tokens = lookup.token_ids[: self.sizes.lookup_tokens]
        words, end = self._words, 3 + self.sizes.lookup_tokens
        words[:3] = root, lookup.match_length, len(tokens)
        words[3:end] = 0
        words[3 : 3 + len(tokens)] = tokens
        words[end:] = rule
        if most_levels is not None:
            place = end + self._layout["most_levels"]
            words[place] = min(words[place], most_levels)
        self._limits = limits
        self._inputs.copy_(self._said, non_blocking=True)

    def take_first(
        self, hidden: torch.Tensor, logits: torch.Tensor, looked_up: LookedUp | None = None
    ) -> None:
        """Take the root's children.

        Args:
            hidden: (h,) output of the draft at the last stable row, which holds the root's
                embedding.
            logits: (Vd,) draft logits there.
            looked_up: what the device proposes; None for what the host does.
        """
        self._rules.copy_(self._inputs[:, 3 + self.sizes.lookup_tokens :])
        self._keep("hidden", hidden[None].expand(self.sizes.top_k, -1))
        self._select(0, logits[None], looked_up)

    def take_level(
        self, level: int, draft: Expanding, slot: int, looked_up: LookedUp | None = None
    ) -> None:
        """Expand the best nodes of the level before, and take their children.

        Args:
            level: from 1.
            draft: the head's runner.
            slot: the sequence.
            looked_up: as at level 0.
        """
        _, token_ids, rank = self._selection.frontier[0]
        hidden, visible = self._kept["hidden"], self._own
        if level > 1:
            hidden = hidden[rank]
            visible = torch.cat((self._kept[f"visible {level - 1}"][rank], self._own), dim=1)
        self._keep(f"visible {level}", visible)
        hidden, logits = draft.expand(token_ids, hidden, level - 1, visible, slot)
        self._keep("hidden", hidden)
        self._select(level, logits, looked_up)

    def goes_on(self) -> torch.Tensor:
        """Return whether the draft has not ended, a bool tensor () on the device."""
        return self._selection.record[0, STOPPED] == 0

    def tree(self, depth: int, *, skipped: bool = False) -> DeviceTree:
        """Return the rows to verify, in memory that the next draft overwrites.

        Args:
            depth: passes after the first one that were launched.
            skipped: whether those behind the end of the draft were not computed.
        """
        sizes, selection = self.sizes, self._selection
        return DeviceTree(
            token_ids=selection.row_ids[0],
            parents=selection.row_parents[0],
            levels=selection.row_levels[0],
            ancestors=selection.ancestors[0],
            scores=self._scores,
            enabled=selection.enabled[0],
            longest_path=min(sizes.rows, 1 + max(depth + 1, sizes.lookup_tokens)),
            selection=selection,
            passes=None if skipped else depth + 1,
        )

    def _select(self, level: int, logits: torch.Tensor, looked_up: LookedUp | None) -> None:
        given = self._inputs
        ids, log_probs = children_of(logits, self.sizes.top_k, self._draft_to_target)
        if looked_up is None:
            tokens = given[:, 3 : 3 + self.sizes.lookup_tokens]
            looked_up = LookedUp(given[:, 1], given[:, 2], tokens)
        drafted = (ids[None], log_probs[None], looked_up, self._limits)
        select_draft_nodes(self._selection, self._rules, level, given[:, 0], *drafted)

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor to memory that stays; allocate it at first."""
        if name in self._kept:
            self._kept[name].copy_(tensor)
        else:
            self._kept[name] = tensor.clone(memory_format=torch.contiguous_format)
