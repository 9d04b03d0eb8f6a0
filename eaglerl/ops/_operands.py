"""Checks of the operators' arguments, wherever they are."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from eaglerl.ops._check import check_memory

# The sort of Triton 3.5 does not compile in the choice of nodes.
_LEAST_TRITON = 3, 6


def check_kinds(**arguments: tuple[object, type]) -> None:
    """Check what arguments are, each given by its name with the type that it must have.

    Raises:
        TypeError: one is of another type.
    """
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}")


def check_int(name: str, value: object, least: int, most: int) -> None:
    """Check a number.

    Raises:
        TypeError: it is not an int.
        ValueError: it is out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be in {least}..{most}, got {value}")


def check_operand(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Check a tensor of an operator.

    Raises:
        TypeError: it has another dtype.
        ValueError: it has another shape or device, or is not contiguous.
    """
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    check_memory(name, tensor)
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous and have shape {shape}, got shape {tuple(tensor.shape)} "
            f"and strides {tensor.stride()}"
        )
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def need_triton(operation: str) -> None:
    """Check that a device's kernels can run.

    Args:
        operation: for the message.

    Raises:
        RuntimeError: there is no Triton, or one that is too old to compile the kernels.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(f"{operation} on a device needs Triton: pip install triton")
    import triton

    version = triton.__version__
    if not _compiles_all(version):
        least = ".".join(map(str, _LEAST_TRITON))
        raise RuntimeError(
            f"{operation} on a device needs Triton {least} or newer, got {version}: "
            f"pip install 'triton>={least}'"
        )


# Operators ask before every launch.
@functools.cache
def _compiles_all(version: str) -> bool:
    """Return whether this version of Triton compiles all kernels."""
    return tuple(int(part) for part in version.split(".")[:2]) >= _LEAST_TRITON
