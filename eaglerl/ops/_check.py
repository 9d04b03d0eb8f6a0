"""Checks of tensor arguments before their addresses go to native code."""

from typing import NoReturn

import torch
from torch import Tensor

from eaglerl._ext import C


class NativeState:
    """An object with state in native code, which can be neither copied nor pickled."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse `copy.copy`, `copy.deepcopy` and `pickle.dumps`.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled, because its state is in native "
            "code: create another one"
        )


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, ndim: int) -> None:
    """Check that a tensor is on the CPU and has a dtype and a number of dimensions.

    Raises:
        TypeError: if it is not a tensor or has another dtype.
        ValueError: if it is elsewhere or has another number of dimensions, or if `check_memory`
            fails.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype is not dtype:
        raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, not {tensor.dtype}")
    check_memory(name, tensor)
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, not shape {tuple(tensor.shape)}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")


def check_memory(name: str, tensor: Tensor) -> None:
    """Check that all of a tensor's elements are in its memory, unmodified.

    Does nothing while torch.compile traces, when there is no memory to look at: the operators check
    their arguments again when they run.

    Raises:
        ValueError: if it is sparse or a lazily negated view, or if its storage is smaller than its
            shape says.
    """
    if torch.compiler.is_compiling():
        return
    if tensor.layout is not torch.strided or tensor.is_neg():
        raise ValueError(
            f"{name} must be a dense tensor whose memory holds its elements, got "
            f"{tensor.layout}{', lazily negated' if tensor.is_neg() else ''}"
        )
    if not C.storage_holds(tensor):
        raise ValueError(
            f"{name} must have memory for all its elements, has "
            f"{tensor.untyped_storage().nbytes()} bytes for shape {tuple(tensor.shape)} of "
            f"{tensor.dtype}"
        )


def check_contiguous(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Check a contiguous CPU tensor of a known shape.

    Raises:
        TypeError: if it is not a tensor or has another dtype.
        ValueError: if its device, shape or strides differ.
    """
    check_tensor(name, tensor, dtype, len(shape))
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")


def check_rows(
    name: str, tensor: Tensor, width: int | None = None, *, written: bool = False
) -> int:
    """Check a float32 matrix with contiguous rows, and return its row stride.

    Args:
        name: the argument, for the message.
        tensor: the matrix; may be a slice of columns of a wider one.
        width: the number of columns it must have.
        written: whether it is written to; then its rows must not overlap.

    Raises:
        TypeError: if it is not a float32 tensor.
        ValueError: if its device, shape or strides do not fit.
    """
    check_tensor(name, tensor, torch.float32, 2)
    if width is not None and tensor.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, not shape {tuple(tensor.shape)}")
    row_stride, column_stride = tensor.stride()
    if column_stride != 1 and tensor.shape[1] > 1:
        raise ValueError(f"{name} must have contiguous rows, its strides are {tensor.stride()}")
    if written and tensor.shape[0] > 1 and row_stride < tensor.shape[1]:
        raise ValueError(f"{name} must not overlap itself, its strides are {tensor.stride()}")
    return row_stride


def check_apart(name: str, out: Tensor, other_name: str, other: Tensor) -> None:
    """Check that a matrix that is written does not overlap one that is read.

    Identical rows are allowed: every element is read before it is written.

    Raises:
        ValueError: if the two overlap in any other way.
    """
    if out.numel() == 0 or other.numel() == 0:
        return
    size, distance = out.element_size(), out.data_ptr() - other.data_ptr()
    pitch = out.stride(0)
    extents = [
        t.element_size() * (t.stride(0) * (t.shape[0] - 1) + t.shape[1]) for t in (other, out)
    ]
    if distance >= extents[0] or -distance >= extents[1]:
        return
    if size == other.element_size() and pitch == other.stride(0) and pitch > 0:
        if distance == 0:
            return
        column = distance // size % pitch  # both may be columns of one wider matrix
        if column >= other.shape[1] and column + out.shape[1] <= pitch:
            return
    raise ValueError(f"{name} must not overlap {other_name}, unless both are the same rows")
