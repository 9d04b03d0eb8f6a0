"""Drafts on a device that rules end and choose the rows of, in memory that keeps its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from eaglerl._ext import C
from eaglerl.eagle3.head.draft_runner import ExpandingSlots
from eaglerl.eagle3.policy import DraftLimits
from eaglerl.eagle3.tree.device_tree import DeviceTree, children_of, rows_of
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops.node_selection import (
    STOPPED,
    LookedUp,
    NodeSelection,
    SelectionSizes,
    rule_layout,
)
from eaglerl.ops.select_draft_nodes import select_draft_nodes


class RuledSlot(NamedTuple):
    """What the host says of one sequence's draft.

    Attributes:
        root: the target's next token, already known.
        rule: (words,) int32, see `eaglerl.ops.pack_rule`.
        lookup: what prompt lookup proposes.
        most_levels: most levels of the tree, looked-up tokens included, which the end of a text
            limits; None for any number. A device that looks up itself proposes more.
        limits: the most that the draft may end with.
    """

    root: int
    rule: np.ndarray
    lookup: Lookup
    most_levels: int | None
    limits: DraftLimits


class RuledDraft:
    """The drafts of S slots, of one size, level by level.

    What one level leaves for the next lies in tensors that keep their addresses, so each level can
    be captured in a graph of its own.
    """

    def __init__(
        self,
        sizes: SelectionSizes,
        draft_to_target: torch.Tensor | None,
        device: torch.device,
        slots: int = 1,
    ) -> None:
        """Allocate.

        Args:
            sizes: of every draft.
            draft_to_target: (Vd,) target ids of the draft's tokens, on the device; None where both
                are the same.
            device: where everything lies.
            slots: number S of sequences.
        """
        self.sizes = sizes
        self._selection = NodeSelection(slots, sizes, device=device)
        self._draft_to_target = draft_to_target
        self._layout = rule_layout(sizes)
        own = torch.eye(sizes.top_k, dtype=torch.bool, device=device)
        self._own = own.expand(slots, -1, -1)
        self._scores = torch.zeros(slots, sizes.rows, device=device)
        self._kept: dict[str, torch.Tensor] = {}
        # One tensor, so that one copy brings what the host says: root, match, number of looked-up
        # tokens, these tokens, limits, rule.
        self._limits_at = 3 + sizes.lookup_tokens
        self._rule_at = self._limits_at + len(C.action_columns)
        self._said = torch.zeros(slots, self._rule_at + self._layout["words"]).long()
        if device.type == "cuda":
            self._said = self._said.pin_memory()
        self._words = self._said.numpy()
        self._inputs = torch.zeros_like(self._said, device=device)
        self._rules = self._inputs[:, self._rule_at :].int()
        self._limits = self._inputs[:, self._limits_at : self._rule_at].int()
        self._chosen_limits: torch.Tensor | None = None
        # The limits of a single draft are its sizes, and a launch without limits is shorter.
        self._several = slots > 1

    def begin(self, slots: Sequence[RuledSlot], limits: torch.Tensor | None = None) -> None:
        """Send what a cycle begins with; the host does not wait.

        Args:
            slots: what the host says of each of S sequences.
            limits: (S, 4) int32 on the device, see `select_draft_nodes`, which hold beside those of
                the host; None for none.
        """
        most = self._rule_at + self._layout["most_levels"]
        for words, slot in zip(self._words, slots, strict=True):
            tokens = slot.lookup.token_ids[: self.sizes.lookup_tokens]
            words[:3] = slot.root, slot.lookup.match_length, len(tokens)
            words[3 : self._limits_at] = 0
            words[3 : 3 + len(tokens)] = tokens
            words[self._limits_at : self._rule_at] = slot.limits
            words[self._rule_at :] = slot.rule
            if slot.most_levels is not None:
                words[most] = min(words[most], slot.most_levels)
        self._chosen_limits = limits
        self._inputs.copy_(self._said, non_blocking=True)

    def take_first(
        self, hidden: torch.Tensor, logits: torch.Tensor, looked_up: LookedUp | None = None
    ) -> None:
        """Take the roots' children.

        Args:
            hidden: (S, h) output of the draft at the last stable row, which holds the root's
                embedding.
            logits: (S, Vd) draft logits there.
            looked_up: what the device proposes; None for what the host does.
        """
        self._rules.copy_(self._inputs[:, self._rule_at :])
        if self._limited:
            self._limits.copy_(self._inputs[:, self._limits_at : self._rule_at])
        if self._chosen_limits is not None:
            self._limits.copy_(torch.minimum(self._limits, self._chosen_limits))
        self._keep("hidden", hidden[:, None].expand(-1, self.sizes.top_k, -1))
        self._select(0, logits[:, None], looked_up)

    def take_level(
        self, level: int, draft: ExpandingSlots, looked_up: LookedUp | None = None
    ) -> None:
        """Expand the best nodes of the level before, and take their children.

        Args:
            level: from 1.
            draft: runs the head over the slots.
            looked_up: as at level 0.
        """
        _, token_ids, rank = self._selection.frontier.unbind(1)
        hidden, visible = self._kept["hidden"], self._own
        if level > 1:
            hidden = rows_of(hidden, rank)
            above = rows_of(self._kept[f"visible {level - 1}"], rank)
            visible = torch.cat((above, self._own), dim=2)
        self._keep(f"visible {level}", visible)
        hidden, logits = draft.expand_slots(token_ids, hidden, level - 1, visible)
        self._keep("hidden", hidden)
        self._select(level, logits, looked_up)

    @property
    def _limited(self) -> bool:
        return self._several or self._chosen_limits is not None

    def goes_on(self) -> torch.Tensor:
        """Return whether not all drafts have ended, a bool tensor () on the device."""
        return (self._selection.record[:, STOPPED] == 0).any()

    def tree(self, depth: int, *, skipped: bool = False) -> DeviceTree:
        """Return the rows to verify of S slots, in memory that the next draft overwrites.

        Args:
            depth: passes after the first one that were launched.
            skipped: whether those behind the end of the draft were not computed.
        """
        sizes, selection = self.sizes, self._selection
        return DeviceTree(
            token_ids=selection.row_ids,
            parents=selection.row_parents,
            levels=selection.row_levels,
            ancestors=selection.ancestors,
            scores=self._scores,
            enabled=selection.enabled,
            longest_path=min(sizes.rows, 1 + max(depth + 1, sizes.lookup_tokens)),
            selection=selection,
            passes=None if skipped else depth + 1,
        )

    def _select(self, level: int, logits: torch.Tensor, looked_up: LookedUp | None) -> None:
        given = self._inputs
        ids, log_probs = children_of(logits, self.sizes.top_k, self._draft_to_target)
        if looked_up is None:
            tokens = given[:, 3 : self._limits_at].contiguous()
            looked_up = LookedUp(given[:, 1].contiguous(), given[:, 2].contiguous(), tokens)
        drafted = (ids, log_probs, looked_up, self._limits if self._limited else None)
        select_draft_nodes(self._selection, self._rules, level, given[:, 0].contiguous(), *drafted)

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor to memory that stays; allocate it at first."""
        if name in self._kept:
            self._kept[name].copy_(tensor)
        else:
            self._kept[name] = tensor.clone(memory_format=torch.contiguous_format)
