"""Looked-up tokens, merged into the head's draft tree so that one pass verifies both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, tree_structure


def merge_looked_up(tree: DraftTree, tokens: Sequence[int]) -> DraftTree:
    """Add looked-up tokens as a path below the root; nodes that the tree already has are shared.

    Args:
        tree: a tree of T rows.
        tokens: the tokens after the root.

    Returns:
        The tree with the remaining tokens behind its own rows, or the tree itself if nothing is
        added. The added rows have score NaN, since the draft did not score them.
    """
    if not tokens:
        return tree
    parents, ids = tree.parents.tolist(), tree.token_ids.tolist()
    # Children of a node have distinct tokens, so (parent, token) identifies a row.
    children = {(parents[row], ids[row]): row for row in range(1, len(ids))}
    total, node = len(ids), 0
    for token in tokens:
        child = children.get((node, token))
        if child is None:
            # `children` need not learn the new row: below it, no row of the tree can match.
            child = len(ids)
            parents.append(node)
            ids.append(token)
        node = child
    added = len(ids) - total
    if not added:
        return tree
    # Every new row follows its parent, so ancestors still come first. Levels and mask are derived
    # anew: new rows widen the mask, and beyond 64 rows it needs another word per row.
    rows = torch.tensor(parents, dtype=torch.int32)
    levels, mask = tree_structure(rows)
    scores = torch.cat((tree.scores, torch.full((added,), torch.nan)))
    return DraftTree(torch.tensor(ids), rows, levels, mask, scores)


def merge_looked_up_on_device(tree: DeviceTree, tokens: Sequence[int]) -> DeviceTree:
    """Merge looked-up tokens like `merge_looked_up`, without reading the tree from the device.

    Whether the tree has a node already is known on the device alone, and asking would cost a
    synchronisation per cycle. So every token gets a row, which fixes the shapes: T + C rows for C
    tokens. Where the tree has the node already, the new row is disabled: the target computes it,
    but no path leads through it.
    """
    total, device = len(tree.token_ids), tree.token_ids.device
    count = len(tokens)
    token_ids = torch.cat((tree.token_ids, torch.tensor(tokens).to(device)))
    ancestors = torch.eye(total + count, dtype=torch.bool, device=device)
    ancestors[:total, :total] = tree.ancestors
    drafted = torch.arange(total, device=device)
    # The row that the path has reached: a tensor, since only the device knows it.
    node = torch.zeros(1, dtype=torch.int64, device=device)
    parents, enabled = [tree.parents], [tree.enabled]
    # One iteration per token, each dependent on the one before: a path has no parallel form. An
    # iteration is about a dozen launches over T + C values, so 12 looked-up tokens take some 150.
    for row in range(total, total + count):
        # `drafted > 0` excludes the root, which is its own parent here.
        same = (tree.parents == node) & (tree.token_ids == token_ids[row]) & (drafted > 0)
        found = same.any()[None]
        parents.append(node)
        enabled.append(~found)
        ancestors[row] |= ancestors.index_select(0, node)[0]
        # Continue at the tree's own node where there is one, so that the rest of the path can be
        # shared, too. `argmax` gives the only True; where there is none its 0 is not used.
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


def merge_lookup(tree: DraftTree | DeviceTree, lookup: Lookup) -> DraftTree | DeviceTree:
    """Merge looked-up tokens, if there are any, into a tree wherever it is kept."""
    if not lookup.token_ids:
        return tree
    if isinstance(tree, DeviceTree):
        return merge_looked_up_on_device(tree, lookup.token_ids)
    return merge_looked_up(tree, lookup.token_ids)
