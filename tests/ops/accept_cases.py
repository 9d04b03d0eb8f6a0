"""Random trees and texts for acceptance and prompt lookup."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from eaglerl.ops import AcceptedDrafts, NgramTable, tree_structure

SENTINEL = 123_456


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


def sharing_memory() -> Iterator[tuple[Trees, AcceptedDrafts, NgramTable]]:
    """Calls whose counts lie where the path, or its tokens, do, of a tree that is all accepted.

    Behind every tensor lies SENTINEL, which no call may read.
    """
    for name in ("rows", "token_ids"):
        memory = torch.full((4, 8), SENTINEL)
        # The path's two rows, and the tokens 9 and 9, are more than there is behind either.
        choices, token_ids = memory[0, :2].view(1, 2), memory[1, :2].view(1, 2)
        choices.fill_(9), token_ids.fill_(9)
        parents, levels = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, 1]])
        enabled = torch.ones(1, 2, dtype=torch.bool)
        ancestors = torch.ones(2, 2, dtype=torch.bool).tril()[None]
        accepted = AcceptedDrafts(1, 2)
        accepted.rows, accepted.token_ids = memory[2, :2].view(1, 2), memory[3, :2].view(1, 2)
        accepted.counts = getattr(accepted, name)[0, :1]
        trees = Trees(token_ids, parents, levels, ancestors, enabled, choices)
        yield trees, accepted, NgramTable(1, 16, 3)


def values(accepted: AcceptedDrafts) -> list[Tensor]:
    """All tensors of a result."""
    return [accepted.rows, accepted.counts, accepted.token_ids]
