"""A chain from another source, merged into the head's draft tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from eaglerl.ops import DraftTree, tree_structure

if TYPE_CHECKING:
    from eaglerl.eagle3.tree.device_tree import DeviceTree


def merge_chain(tree: DraftTree, chain: Sequence[int]) -> DraftTree:
    """Add the chain below the root; nodes that the tree has already are shared.

    Args:
        tree: a tree of T rows.
        chain: tokens after the root.

    Returns:
        The tree with the chain's other nodes behind its own; their score is NaN, for the draft did
        not score them. The tree itself if nothing is added.
    """
    if not chain:
        return tree
    parents, tokens = tree.parents.tolist(), tree.token_ids.tolist()
    children = {(parents[row], tokens[row]): row for row in range(1, len(tokens))}
    total, node = len(tokens), 0
    for token in chain:
        child = children.get((node, token))
        if child is None:
            child = len(tokens)
            parents.append(node)
            tokens.append(token)
        node = child
    added = len(tokens) - total
    if not added:
        return tree
    rows = torch.tensor(parents, dtype=torch.int32)
    levels, mask = tree_structure(rows)
    scores = torch.cat((tree.scores, torch.full((added,), torch.nan)))
    return DraftTree(torch.tensor(tokens), rows, levels, mask, scores)


def merge_chain_on_device(tree: DeviceTree, chain: Sequence[int]) -> DeviceTree:
    """`merge_chain` without asking the device what the tree holds.

    Every token of the chain gets a row, for the shapes must be known. Where the tree has the node
    already, its new row is switched off: it is computed, but no path leads through it.
    """
    total, device = len(tree.token_ids), tree.token_ids.device
    count = len(chain)
    token_ids = torch.cat((tree.token_ids, torch.tensor(chain).to(device)))
    ancestors = torch.eye(total + count, dtype=torch.bool, device=device)
    ancestors[:total, :total] = tree.ancestors
    drafted = torch.arange(total, device=device)
    node = torch.zeros(1, dtype=torch.int64, device=device)
    parents, enabled = [tree.parents], [tree.enabled]
    for row in range(total, total + count):
        same = (tree.parents == node) & (tree.token_ids == token_ids[row]) & (drafted > 0)
        found = same.any()[None]
        parents.append(node)
        enabled.append(~found)
        ancestors[row] |= ancestors.index_select(0, node)[0]
        node = torch.where(found, same.to(torch.int64).argmax()[None], row)
    return replace(
        tree,
        token_ids=token_ids,
        parents=torch.cat(parents),
        levels=ancestors.sum(-1) - 1,
        ancestors=ancestors,
        scores=torch.cat((tree.scores, torch.full((count,), torch.nan, device=device))),
        enabled=torch.cat(enabled),
        longest_path=max(tree.longest_path, count + 1),
    )
