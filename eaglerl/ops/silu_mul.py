"""The gate of SwiGLU (Shazeer, 2020): silu(gate) * up."""

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._check import check_apart, check_contiguous, check_rows


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute ``silu(gate) * up`` for rows that hold the gate, followed by up.

    Args:
        gate_up: float32 (M, 2 * intermediate) on the CPU; rows contiguous.
        out: float32 (M, intermediate) to write to; contiguous.

    Returns:
        ``out``, or a new tensor (M, intermediate).

    Raises:
        TypeError: if a tensor has the wrong dtype.
        ValueError: if a shape, device or stride does not fit.
    """
    stride = check_rows("gate_up", gate_up)
    rows, width = gate_up.shape
    if width % 2:
        raise ValueError(f"gate_up must have an even number of columns, not {width}")
    intermediate = width // 2
    if out is None:
        out = torch.empty(rows, intermediate)
    else:
        check_contiguous("out", out, torch.float32, (rows, intermediate))
        if rows and out.data_ptr() != gate_up.data_ptr():
            check_apart("out", out, "gate_up", gate_up)
        elif rows > 1 and stride < width:
            raise ValueError("out must not be gate_up if the rows of gate_up overlap")
    C.silu_mul(gate_up.data_ptr(), stride, out.data_ptr(), rows, intermediate, thread_count())
    return out


def silu_mul_ref(gate_up: Tensor) -> Tensor:
    """Compute `silu_mul` in plain torch, for any dtype and device."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
