"""How many operations of torch the drafting loop on a device runs for each further pass.

On a GPU each is at least one kernel. Views of a tensor are none, and the head's own are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eaglerl.eagle3.head.draft_runner import OneSlot
from eaglerl.eagle3.policy import DraftLimits, TreeParams
from eaglerl.eagle3.tree.device_tree import DeviceTreeDrafter
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP
from eaglerl.eagle3.tree.ruled_draft import RuledDraft, RuledSlot
from eaglerl.ops.node_selection import SelectionSizes, rule_layout

_VIEWS = ("unsqueeze", "view", "_unsafe_view", "expand", "slice", "select", "unbind")
_TOP_K, _ROWS, _WIDTH, _VOCABULARY = 4, 32, 8, 64
_CPU = torch.device("cpu")


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if name not in _VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class _NoHead:
    """A head that computes nothing."""

    draft_to_target = torch.arange(_VOCABULARY)
    _logits = torch.zeros(_TOP_K, _VOCABULARY)

    def expand(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, *_: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, self._logits


def _count(grow: Callable[[int], object]) -> Counter[str]:
    """Return the operations of one more pass: those of three without those of two."""
    counted = []
    for depth in (2, 3):
        with torch.no_grad(), _Operations() as mode:
            grow(depth)
        counted.append(mode.counts)
    return counted[1] - counted[0]


def of_constant_tree() -> Counter[str]:
    """Return the operations of each further pass of a constant tree, by name."""
    drafter = DeviceTreeDrafter(_NoHead(), _CPU)
    hidden, logits = torch.zeros(_WIDTH), torch.zeros(_VOCABULARY)
    return _count(lambda depth: drafter.grow(1, hidden, logits, TreeParams(_ROWS, depth, _TOP_K)))


def of_chosen_nodes() -> Counter[str]:
    """Return the operations of each further pass with a choice of nodes, by name."""
    sizes = SelectionSizes(_TOP_K, 5, _ROWS, 0)
    rule = np.zeros(rule_layout(sizes)["words"], dtype=np.int32)
    rule[rule_layout(sizes)["most_levels"]] = sizes.depth + 1
    head = _NoHead()
    draft = RuledDraft(sizes, head.draft_to_target, _CPU)
    hidden, logits = torch.zeros(1, _WIDTH), torch.zeros(1, _VOCABULARY)
    limits = DraftLimits(sizes.rows, sizes.depth, sizes.top_k, 0)
    slot = OneSlot(head, 0)

    def grow(depth: int) -> None:
        draft.begin([RuledSlot(1, rule, NO_LOOKUP, None, limits)])
        draft.take_first(hidden, logits)
        for level in range(1, depth + 1):
            draft.take_level(level, slot)

    # The first draft allocates what the later ones write to.
    grow(sizes.depth)
    return _count(grow)
