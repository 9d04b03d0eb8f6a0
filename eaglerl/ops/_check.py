"""Checks of tensor arguments before their addresses go to native code."""

import torch
from torch import Tensor

_SHORT = {torch.float32: "float32", torch.int32: "int32", torch.int64: "int64"}


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, ndim: int) -> None:
    """Checks that a tensor lies on the CPU with a dtype and a number of dimensions.

    Raises:
        TypeError: If it is no tensor or has another dtype.
        ValueError: If it lies elsewhere or has another number of dimensions.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must be {_SHORT[dtype]}, not {tensor.dtype}")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, not shape {tuple(tensor.shape)}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")


def check_contiguous(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Checks a contiguous CPU tensor of a known shape.

    Raises:
        TypeError: If it is no tensor or has another dtype.
        ValueError: If its device, shape or strides are others.
    """
    check_tensor(name, tensor, dtype, len(shape))
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")


def check_rows(name: str, tensor: Tensor, width: int | None = None) -> int:
    """Checks a float32 matrix whose rows are contiguous, and returns the distance of its rows.

    Args:
        name: The argument, for the message.
        tensor: The matrix; may be a slice of columns of a wider one.
        width: The number of columns it must have.

    Raises:
        TypeError: If it is no float32 tensor.
        ValueError: If its device, shape or strides do not fit.
    """
    check_tensor(name, tensor, torch.float32, 2)
    if width is not None and tensor.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, not shape {tuple(tensor.shape)}")
    row_stride, column_stride = tensor.stride()
    if column_stride != 1 and tensor.shape[1] > 1:
        raise ValueError(f"{name} must have contiguous rows, its strides are {tensor.stride()}")
    return row_stride
