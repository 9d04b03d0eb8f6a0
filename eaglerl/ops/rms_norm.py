"""Root mean square normalisation (Zhang and Sennrich, 2019) of rows."""

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._check import check_apart, check_contiguous, check_rows, check_tensor


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    index: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute ``x / sqrt(mean(x**2) + eps) * weight`` for every row.

    Args:
        x: float32 (N, hidden) on the CPU; rows contiguous, any row stride.
        weight: float32 (hidden,).
        eps: added to the mean square.
        index: int64 (M,): row r of the result is computed from ``x[index[r]]`` (an embedding lookup
            and its norm in one pass). Default: all rows in order.
        out: float32 (M, hidden) to write to; may be a slice of columns of a wider buffer.

    Returns:
        ``out``, or a new tensor (M, hidden).

    Raises:
        TypeError: if a tensor has the wrong dtype.
        ValueError: if a shape, device or stride does not fit, an index is outside ``x``, or
            ``out`` overlaps part of ``x``. Without an index it may be ``x`` itself.
    """
    x_stride = check_rows("x", x)
    available, hidden = x.shape
    check_contiguous("weight", weight, torch.float32, (hidden,))
    rows = available
    index_address = 0
    if index is not None:
        check_tensor("index", index, torch.int64, 1)
        rows = index.shape[0]
        check_contiguous("index", index, torch.int64, (rows,))
        index_address = index.data_ptr()
    if out is None:
        out = torch.empty(rows, hidden)
    out_stride = check_rows("out", out, hidden, written=True)
    if out.shape[0] != rows:
        raise ValueError(f"out must have {rows} rows, not shape {tuple(out.shape)}")
    check_apart("out", out, "x", x)
    if index is not None and out.data_ptr() == x.data_ptr() and out.numel():
        raise ValueError(
            "out must not be x if index is given: rows would be read after they are written"
        )
    C.rms_norm(
        x.data_ptr(), x_stride, available, index_address, weight.data_ptr(),
        out.data_ptr(), out_stride, rows, hidden, eps, thread_count(),
    )  # fmt: skip
    return out


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float, *, index: Tensor | None = None) -> Tensor:
    """Compute `rms_norm` in plain torch, for any dtype and device."""
    if index is not None:
        x = x[index]
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
