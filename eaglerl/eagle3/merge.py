"""A chain from another source, merged into the head's draft tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from eaglerl.ops import DraftTree, tree_structure

if TYPE_CHECKING:
    from eaglerl.eagle3.device_tree import DeviceTree


def merge_chain(tree: DraftTree, chain: Sequence[int]) -> DraftTree:
    """Adds the chain below the root; nodes that the tree has already are shared.

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


def select_nodes(pool: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """A tree of some of a pool's candidates.

    Args:
        pool: the whole pool as a tree: the root, then all candidates in the order of the rounds.
        nodes: indices of candidates, without the root, ancestors included; in any order.

    Returns:
        The tree, its nodes in the pool's order.

    Raises:
        ValueError: an index outside the pool, one that occurs twice, or a node without its parent.
    """
    rows = [0, *sorted(int(node) + 1 for node in nodes)]
    place = {row: index for index, row in enumerate(rows)}
    if len(place) < len(rows) or rows[-1] >= len(pool.token_ids):
        raise ValueError(
            f"nodes must be distinct and in 0..{len(pool.token_ids) - 2}, got {sorted(nodes)}"
        )
    above = pool.parents[rows[1:]].tolist()
    orphans = [row - 1 for row, parent in zip(rows[1:], above, strict=True) if parent not in place]
    if orphans:
        raise ValueError(f"nodes must hold the parent of each; that of {orphans[0]} is missing")
    parents = torch.tensor([-1, *(place[parent] for parent in above)], dtype=torch.int32)
    levels, mask = tree_structure(parents)
    return DraftTree(pool.token_ids[rows], parents, levels, mask, pool.scores[rows])


def chain_nodes(pool: DraftTree, chain: Sequence[int], levels: int) -> np.ndarray:
    """Where a chain stands in a pool.

    Args:
        pool: the whole pool as a tree.
        chain: tokens after the root.
        levels: levels to look at.

    Returns:
        (levels,) int64 index of the candidate of each level; -1 from where there is none.
    """
    # A policy waits for this between two passes of the draft: lists are faster than small tensors.
    tokens, parents = pool.token_ids.tolist(), pool.parents.tolist()
    nodes = np.full(levels, -1, dtype=np.int64)
    row = 0
    for level, token in enumerate(chain[:levels]):
        # Children follow their parents.
        child = row + 1
        try:
            while parents[child := tokens.index(token, child)] != row:
                child += 1
        except ValueError:
            break
        nodes[level] = child - 1
        row = child
    return nodes


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
