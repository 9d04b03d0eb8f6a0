"""Moves accepted rows of a KV cache to their final places."""

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_contiguous, check_memory, check_tensor


def _two_strides(cache: Tensor) -> tuple[int, int, int, int]:
    """Fold the leading dimensions into (outer, outer stride, inner, inner stride), in elements."""
    lanes: list[tuple[int, int]] = []
    for size, stride in zip(cache.shape[:-2], cache.stride()[:-2], strict=True):
        if size == 1:
            continue
        if lanes and lanes[-1][1] == size * stride:
            lanes[-1] = (lanes[-1][0] * size, stride)
        else:
            lanes.append((size, stride))
    if len(lanes) > 2:
        raise ValueError(
            "cache must have leading dimensions that fold into two, "
            f"not shape {tuple(cache.shape)} with strides {cache.stride()}"
        )
    (outer, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(lanes)) + lanes
    return outer, outer_stride, inner, inner_stride


def move_rows(cache: Tensor, rows: Tensor, destination: int) -> None:
    """Copy ``cache[..., rows[i], :]`` to ``cache[..., destination + i, :]``, in place.

    Rows that are already in place are not copied: accepting a tree's first branch costs nothing.

    Args:
        cache: (..., capacity, head_dim) of any dtype on the CPU; the last two dimensions
            contiguous, for example the layers, keys and values, and heads of one slot.
        rows: int32 (count,), strictly ascending, ``rows[i] >= destination + i``.
        destination: destination of the first row.

    Raises:
        TypeError: if ``rows`` is not int32.
        ValueError: if the rows do not ascend as required or are out of range, or if the cache's
            layout does not fit (in an expanded cache, rows would be moved several times).
    """
    if not isinstance(cache, Tensor):
        raise TypeError(f"cache must be a tensor, not {type(cache).__name__}")
    check_memory("cache", cache)
    if cache.ndim < 2 or not cache.is_cpu:
        raise ValueError(
            "cache must have at least 2 dimensions on the CPU, "
            f"not shape {tuple(cache.shape)} on {cache.device}"
        )
    capacity, width = cache.shape[-2:]
    if cache.stride()[-2:] != (width, 1):
        raise ValueError(f"cache must have contiguous rows, its strides are {cache.stride()}")
    check_tensor("rows", rows, torch.int32, 1)
    count = rows.shape[0]
    check_contiguous("rows", rows, torch.int32, (count,))
    if cache.numel() == 0 and count == 0:
        return
    if destination < 0:
        raise ValueError(f"destination must not be negative, is {destination}")
    outer, outer_stride, inner, inner_stride = _two_strides(cache)
    size = cache.element_size()
    C.move_rows(
        cache.data_ptr(), outer, outer_stride * size, inner, inner_stride * size, width * size,
        rows.data_ptr(), count, destination, capacity,
    )  # fmt: skip


def move_rows_ref(cache: Tensor, rows: Tensor, destination: int) -> None:
    """Do what `move_rows` does in plain torch, on any device."""
    cache[..., destination : destination + rows.shape[0], :] = cache[..., rows.long(), :]
