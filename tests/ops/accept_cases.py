"""Random trees and texts for acceptance and prompt lookup."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eaglerl.ops import AcceptedDrafts, NgramTable, tree_structure


class Trees(NamedTuple):
    """The tree arguments of `accept_draft`."""

    token_ids: Tensor
    parents: Tensor
    levels: Tensor
    ancestors: Tensor
    enabled: Tensor
    choices: Tensor


def random_trees(generator: torch.Generator, slots: int, rows: int, vocabulary: int = 3) -> Trees:
    """Trees whose siblings have distinct tokens, few enough that the target often agrees."""

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    parents = torch.stack([draw(max(row, 1), slots) for row in range(rows)], 1)
    token_ids = torch.zeros(slots, rows, dtype=torch.int64)
    levels, ancestors = torch.zeros_like(token_ids), torch.zeros(slots, rows, rows).bool()
    for slot in range(slots):
        siblings: dict[int, int] = {}
        for row in range(1, rows):
            parent = int(parents[slot, row])
            token_ids[slot, row] = siblings.get(parent, 0)
            siblings[parent] = siblings.get(parent, 0) + 1
        level, mask = tree_structure(parents[slot].int())
        levels[slot] = level
        columns = torch.arange(rows)
        ancestors[slot] = (mask[:, columns // 64] >> (columns % 64) & 1).bool()
    enabled = draw(10, slots, rows) > 0
    return Trees(token_ids, parents, levels, ancestors, enabled, draw(vocabulary, slots, rows))


def clone(table: NgramTable) -> NgramTable:
    """The same table in other memory."""
    slots, capacity = table.texts.shape
    longest = table.ends.shape[1] + 1
    other = NgramTable(slots, capacity, table.looked_up[2].shape[1], longest=longest)
    for mine, theirs in zip(other.tensors, table.tensors, strict=True):
        mine.copy_(theirs)
    return other


def values(accepted: AcceptedDrafts) -> list[Tensor]:
    """All tensors of a result."""
    return [accepted.rows, accepted.counts, accepted.token_ids]
