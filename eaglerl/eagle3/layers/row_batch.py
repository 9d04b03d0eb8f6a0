"""The rows of one forward pass: their tokens, positions and what each may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from eaglerl.ops import DraftTree

#: A pass of up to so many rows gives every row the bits that it gets alone. With more, products and
#: attention sum in another order, which is for prompts.
MOST_EXACT_ROWS = 64


@dataclass(frozen=True, slots=True)
class RowBatch:
    """M rows of one pass over a KV cache.

    Row r attends to the cache rows ``[0, prefix_lengths[r])`` of its slot and to those rows of the
    masked block behind them whose bit is set: bit j stands for cache row ``prefix_lengths[r] + j``.
    A prompt needs the prefix alone. In a tree all rows share the committed prefix, and the block is
    the tree itself: T x T bits in place of a mask over the whole context.

    Attributes:
        token_ids: (M,) int64.
        positions: (M,) int32 rotary positions.
        cache_rows: (M,) int32 cache rows that receive the keys and values.
        prefix_lengths: (M,) int32.
        block_length: rows of the masked block; 0 for none.
        mask: (M, words) int64 bit words, bit j % 64 of word j // 64, or (M, block_length) bool;
            None without a block.
        slots: (M,) int32 slot of every row; None if they belong to `slot` and those behind it.
        slot: the slot of all rows if `slots` is None, or the first slot.
        slot_count: number S of neighbouring slots if `slots` is None. Each has M / S rows, one slot
            after another.
        end: cache rows that the pass may attend to, its own included; None if they must be derived
            from `cache_rows`, which on a device needs a synchronisation.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cache_rows: torch.Tensor
    prefix_lengths: torch.Tensor
    block_length: int = 0
    mask: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    slot: int = 0
    end: int | None = None
    slot_count: int = 1

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @classmethod
    def causal(cls, token_ids: torch.Tensor | Sequence[int], start: int, slot: int = 0) -> RowBatch:
        """Make rows of consecutive tokens of one sequence, the first at position `start`."""
        ids = torch.as_tensor(token_ids, dtype=torch.int64)
        positions = torch.arange(start, start + len(ids), dtype=torch.int32)
        end = start + len(ids)
        return cls(ids, positions, positions, positions + 1, slot=slot, end=end)

    @classmethod
    def tree(
        cls,
        token_ids: torch.Tensor,
        levels: torch.Tensor,
        mask: torch.Tensor,
        start: int,
        slot: int = 0,
    ) -> RowBatch:
        """Make the rows of a draft tree behind `start` committed tokens.

        Siblings share a position, which is their distance from the root, but every row has a cache
        row of its own: the accepted rows are moved together afterwards, see `KVCache`.

        Args:
            token_ids: (T,) int64, ancestors before descendants, the root first.
            levels: (T,) distance from the root.
            mask: (T, words) int64 ancestor-or-self bits over the T rows, or (T, T) bool.
            start: committed tokens; the root's position.
            slot: the sequence.
        """
        rows = len(token_ids)
        device = token_ids.device
        cache_rows = torch.arange(start, start + rows, dtype=torch.int32, device=device)
        prefix = torch.full((rows,), start, dtype=torch.int32, device=device)
        end = start + rows
        return cls(token_ids, levels + start, cache_rows, prefix, rows, mask, slot=slot, end=end)

    @classmethod
    def trees(
        cls, trees: Sequence[DraftTree], starts: Sequence[int], slots: Sequence[int]
    ) -> RowBatch:
        """Make the rows of one draft tree in each of several slots, one tree after another.

        The masked block is as long as the largest tree, so every slot needs room for that many
        rows. Bits beyond a smaller tree are 0.

        Args:
            trees: the trees on the host, each as `tree` takes it, with masks of bit words.
            starts: committed tokens of each slot.
            slots: the slots, all distinct.
        """
        if len(trees) == 1:
            only = trees[0]
            return cls.tree(only.token_ids, only.levels, only.mask, starts[0], slots[0])
        sizes = [tree.token_ids.shape[0] for tree in trees]
        widths = [tree.mask.shape[1] for tree in trees]
        words = max(widths)
        masks = [
            tree.mask if width == words else pad(tree.mask, (0, words - width))
            for tree, width in zip(trees, widths, strict=True)
        ]
        # In numpy, whose small operations take a third of torch's.
        counts, first = np.array(sizes), np.array(starts, dtype=np.int32)
        prefix = first.repeat(counts)
        before = (counts.cumsum() - counts).astype(np.int32)
        own = np.arange(prefix.size, dtype=np.int32) - before.repeat(counts)
        prefixes = torch.from_numpy(prefix)
        return cls(
            token_ids=torch.cat([tree.token_ids for tree in trees]),
            positions=torch.cat([tree.levels for tree in trees]) + prefixes,
            cache_rows=torch.from_numpy(prefix + own),
            prefix_lengths=prefixes,
            block_length=max(sizes),
            mask=torch.cat(masks),
            slots=torch.from_numpy(np.array(slots, dtype=np.int32).repeat(counts)),
            end=max(starts) + max(sizes),
        )

    @classmethod
    def equal_trees(
        cls,
        token_ids: torch.Tensor,
        levels: torch.Tensor,
        mask: torch.Tensor,
        starts: torch.Tensor,
        end: int,
        slot: int = 0,
    ) -> RowBatch:
        """Make the rows of a tree of R rows in each of S neighbouring slots, on any device.

        Args:
            token_ids: (S, R) int64, ancestors before descendants, the root first.
            levels: (S, R) int64 distance from the root.
            mask: (S, R, R) bool, whether a column is the row itself or an ancestor of it.
            starts: (S,) int64 committed tokens of each slot, where the rows are.
            end: see `RowBatch`.
            slot: the first slot.
        """
        slots, rows = token_ids.shape
        starts = starts[:, None]
        cache_rows = starts + torch.arange(rows, device=token_ids.device)
        return cls(
            token_ids=token_ids.flatten(),
            positions=(levels + starts).flatten(),
            cache_rows=cache_rows.flatten(),
            prefix_lengths=starts.expand(-1, rows).flatten(),
            block_length=rows,
            mask=mask.flatten(0, 1),
            slot=slot,
            end=end,
            slot_count=slots,
        )

    @classmethod
    def one_per_slot(cls, token_ids: torch.Tensor, positions: torch.Tensor) -> RowBatch:
        """Make the next row of every slot: row r belongs to slot r, at ``positions[r]``."""
        slots = torch.arange(len(token_ids), dtype=torch.int32)
        return cls(token_ids, positions, positions, positions + 1, slots=slots)

    def visibility(self, columns: int) -> torch.Tensor:
        """Return (M, columns) bool: the cache rows that every row may attend to."""
        column = torch.arange(columns, device=self.token_ids.device)
        prefix = self.prefix_lengths.long()[:, None]
        visible = column < prefix
        if self.block_length:
            assert self.mask is not None, "a block has a mask"
            offset = column - prefix
            inside = (offset >= 0) & (offset < self.block_length)
            offset = offset.clamp(0, self.block_length - 1)
            if self.mask.dtype == torch.bool:
                seen = torch.gather(self.mask, 1, offset)
            else:
                seen = ((torch.gather(self.mask, 1, offset // 64) >> (offset % 64)) & 1).bool()
            visible = visible | (inside & seen)
        return visible
