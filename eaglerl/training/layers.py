"""Small differentiable operations of training-time test with little memory traffic.

Each saves only its inputs and computes its gradient in a few passes; autograd would keep every
intermediate result of the same formulas.
"""

from typing import Any

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """Apply RMSNorm over the last dimension.

    Args:
        x: (R, width), fp32 or fp64.
        weight: (width,).
        eps: added to the mean square.
        dtype: dtype of the result.

    Returns:
        (R, width) of ``dtype``.
    """
    return _RMSNorm.apply(x, weight, eps, dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply RoPE in the "rotate half" layout: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).

    Args:
        x: (R, heads, D).
        cos: (R, D / 2), whose dtype the result has.
        sin: (R, D / 2).

    Returns:
        (R, heads, D).
    """
    return _Rotate.apply(x, cos[:, None], sin[:, None])


def take_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``x[rows]`` for distinct ``rows``, whose gradient needs no accumulation."""
    return _TakeRows.apply(x, rows)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return functional.rms_norm(x, (x.shape[-1],), weight, eps).to(dtype)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        x, weight = ctx.saved_tensors
        width = x.shape[-1]
        grad = grad.to(x.dtype)
        inverse = (torch.linalg.vecdot(x, x) / width + ctx.eps).rsqrt_()
        grad_weight = inverse @ (grad * x)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        scaled = grad * weight
        pull = torch.linalg.vecdot(scaled, x).mul_(inverse.pow(3)).div_(width)
        grad_x = scaled.mul_(inverse[:, None]).addcmul_(x, pull[:, None], value=-1)
        return grad_x, grad_weight, None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return _rotated(x.to(cos.dtype), cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # A rotation's transpose is the rotation by the opposite angle.
        return _rotated(grad, cos, -sin).to(ctx.dtype), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x[rows]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (rows,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, rows, grad), None
