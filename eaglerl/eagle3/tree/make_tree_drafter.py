"""The choice of a drafter: the tree is kept on the host, or on the target's device."""

from __future__ import annotations

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.tree.device_tree import DeviceTreeDrafter
from eaglerl.eagle3.tree.tree_drafter import TreeDrafter


def make_tree_drafter(
    draft: DraftRunner | None, device: torch.device | None
) -> TreeDrafter | DeviceTreeDrafter:
    """Make the drafter of a session.

    Args:
        draft: the draft head's runner; None for trees of the root and looked-up tokens alone.
        device: where the tree is kept; None for the host.
    """
    return TreeDrafter(draft) if device is None else DeviceTreeDrafter(draft, device)
