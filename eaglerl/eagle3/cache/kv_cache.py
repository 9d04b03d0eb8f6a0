"""A KV cache that is allocated once; accepted rows are moved in place and never concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch

from eaglerl.eagle3.cache.slot_memory import SlotMemory
from eaglerl.ops import move_rows

#: Dtypes of a target's KV cache, by torch's names; "auto" is the dtype of the target's activations.
KVCacheDtype = Literal["auto", "float32", "bfloat16", "float16"]


def torch_cache_dtype(name: str) -> torch.dtype | None:
    """Return the dtype of a KV cache that has this name; None for "auto".

    Raises:
        ValueError: the name is none of `KVCacheDtype`.
    """
    allowed = get_args(KVCacheDtype)
    if name not in allowed:
        raise ValueError(f"kv_cache_dtype must be one of {', '.join(allowed)}, got {name!r}")
    return None if name == "auto" else getattr(torch, name)


class KVCache:
    """Keys and values of all layers for a number of slots (sequences).

    Attributes:
        data: (slots, layers, 2, kv_heads, capacity, head_dim); index 0 of the third axis holds
            keys.
        lengths: committed rows of every slot. The rows behind them are scratch space of the current
            pass.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        *,
        slots: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("capacity", capacity), ("slots", slots)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        shape = (slots, num_layers, 2, num_kv_heads, capacity, head_dim)
        self._memory = SlotMemory(shape, dtype, device)
        self.data = self._memory.data
        self.lengths = [0] * slots

    @property
    def slots(self) -> int:
        """Number of sequences."""
        return self.data.shape[0]

    @property
    def capacity(self) -> int:
        """Rows per slot."""
        return self.data.shape[4]

    def keys(self, layer: int) -> torch.Tensor:
        """Return a layer's keys as a view, (slots, kv_heads, capacity, head_dim)."""
        return self.data[:, layer, 0]

    def values(self, layer: int) -> torch.Tensor:
        """Return a layer's values as a view, (slots, kv_heads, capacity, head_dim)."""
        return self.data[:, layer, 1]

    def check_model(self, num_layers: int, num_kv_heads: int, head_dim: int) -> None:
        """Check that a model's native passes can use this cache.

        Raises:
            ValueError: it is a cache of another model, or its memory lies elsewhere than on the CPU
                or in another order.
        """
        slots, layers, _, heads, capacity, dim = self.data.shape
        if (layers, heads, dim) != (num_layers, num_kv_heads, head_dim):
            raise ValueError(
                f"the KV cache must have {num_layers} layers, {num_kv_heads} heads and a head_dim "
                f"of {head_dim}, got {layers}, {heads} and {dim}: it is that of another model"
            )
        if not (self.data.is_cpu and self.data.is_contiguous()):
            raise ValueError(
                f"the KV cache must be contiguous on the CPU, got {slots} slots of {capacity} rows "
                f"on {self.data.device} with strides {self.data.stride()}"
            )

    def check_room(self, rows: int, slot: int = 0) -> None:
        """Check that `rows` more rows fit behind the committed ones.

        Raises:
            ValueError: they do not.
        """
        if self.lengths[slot] + rows > self.capacity:
            raise ValueError(
                f"the KV cache holds {self.capacity} rows per slot; slot {slot} has "
                f"{self.lengths[slot]} and cannot take {rows} more"
            )

    def commit(self, rows: Sequence[int], slot: int = 0) -> None:
        """Keep some of the scratch rows, in order, and forget the others.

        Args:
            rows: strictly increasing offsets of the kept rows, counted from the first scratch row.
            slot: the sequence.

        Raises:
            ValueError: the offsets do not increase, or lie outside the cache.
        """
        length = self.lengths[slot]
        if any(late <= early for early, late in pairwise(rows)):
            raise ValueError(f"rows must be strictly increasing, got {list(rows)}")
        if rows and (rows[0] < 0 or length + rows[-1] >= self.capacity):
            raise ValueError(f"rows must lie in [0, {self.capacity - length}), got {list(rows)}")
        # Rows in place already do not move: none does if the tree's first branch is accepted. The
        # others move in one native call, in pieces of one head each: 180 of 256 bytes per row for
        # SmolLM2-135M (30 layers, keys and values, 3 heads of 64 float32).
        first_moved = next((i for i, row in enumerate(rows) if row != i), len(rows))
        if first_moved < len(rows):
            source = torch.tensor([length + row for row in rows[first_moved:]], dtype=torch.int32)
            # In place: offsets increase, so every source is read before it is overwritten.
            move_rows(self.data[slot], source, length + first_moved)
        self.lengths[slot] = length + len(rows)

    def move_scratch(self, rows: torch.Tensor, slot: int = 0) -> None:
        """Move some of the scratch rows to the front, without the host knowing which.

        `rows` has a fixed size P, the longest path of the tree, since the number of accepted rows
        is on the device. `advance` commits as many as were accepted; the padding behind them stays
        scratch.

        Args:
            rows: (P,) int64 offsets from the first scratch row, on the cache's device, padded with
                any valid offsets.
            slot: the sequence.
        """
        # `index_select` copies P rows of every layer first: sources and destinations overlap, and
        # with the padding, `rows` does not increase.
        scratch = self.data[slot, ..., self.lengths[slot] :, :]
        scratch[..., : len(rows), :] = scratch.index_select(-2, rows)

    def move_behind(self, start: torch.Tensor, rows: torch.Tensor, slot: int = 0) -> None:
        """Move rows behind places that only the device knows; see `move_scratch`.

        Args:
            start: (S,) int64 committed rows of neighbouring slots, on the cache's device.
            rows: (S, P) int64 offsets from there.
            slot: the first slot.
        """
        data, start = self.data[slot : slot + len(start)], start[:, None]
        own = torch.arange(len(data), device=rows.device)[:, None]
        places = start + torch.arange(rows.shape[1], device=rows.device)
        data[own, :, :, :, places] = data[own, :, :, :, start + rows]

    def advance(self, count: int, slot: int = 0) -> None:
        """Commit the first `count` scratch rows, which are in place.

        Raises:
            ValueError: `count` is negative or more than fits.
        """
        if not 0 <= count <= self.capacity - self.lengths[slot]:
            raise ValueError(
                f"count must be in 0..{self.capacity - self.lengths[slot]}, got {count}"
            )
        self.lengths[slot] += count

    def copy_committed(self, other: KVCache) -> None:
        """Replace this cache's rows by the committed rows of another cache of the same model.

        Raises:
            ValueError: they do not fit.
        """
        longest = max(other.lengths)
        if longest > self.capacity:
            raise ValueError(f"{longest} committed rows do not fit a capacity of {self.capacity}")
        self.data[..., :longest, :] = other.data[..., :longest, :]
        self.lengths[:] = other.lengths

    def release(self, slot: int = 0) -> None:
        """Forget a slot's rows, overwrite them with zeros and give their memory back."""
        self.lengths[slot] = 0
        self._memory.clear(slot)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget the rows from `length` on.

        Raises:
            ValueError: `length` is negative or more than what is committed.
        """
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"length must be in [0, {self.lengths[slot]}], got {length}")
        self.lengths[slot] = length
