"""Matrix products on the CPU with weights that are packed once.

A decoder multiplies a few rows by the same large matrices in every pass, so each weight is laid out
once in the order in which oneDNN (fp32, bf16) or the block kernels (int8) read it. The operators of
oneDNN are those that torch.compile calls with freezing. Without packing, products take two to three
times as long.
"""

import functools
import warnings
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from eaglerl._ext import C, thread_count

LinearDtype = Literal["float32", "bfloat16", "int8"]
#: Inputs of a block of GGUF's Q8_0, in which int8 products are quantised.
INT8_BLOCK = 32


class PackedLinear:
    """A linear layer of fixed weight for the CPU: y = x W^T + b.

    "int8" quantises weight and input in blocks of 32, each with a scale of its own.

    Attributes:
        in_features: width of x.
        out_features: width of y.
        dtype: the dtype of the product. If the CPU lacks the one that was asked for, it is float32,
            and a warning says so.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        dtype: LinearDtype = "float32",
        rows_hint: int = 16,
    ) -> None:
        """Pack the weight; the given tensors are not kept.

        Args:
            weight: (out, in) floating point, on the CPU.
            bias: (out,) or None.
            dtype: "float32", "bfloat16" or "int8".
            rows_hint: number of rows for which oneDNN chooses the layout. Other numbers work, too.

        Raises:
            ValueError: ``weight`` or ``bias`` is not as described, or ``dtype`` is unknown.
        """
        if weight.dim() != 2 or weight.device.type != "cpu" or not weight.is_floating_point():
            raise ValueError(
                "weight must be a floating point matrix (out, in) on the CPU, got "
                f"{tuple(weight.shape)} {weight.dtype} on {weight.device}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
            )
        if dtype not in get_args(LinearDtype):
            raise ValueError(f"dtype must be one of {get_args(LinearDtype)}, got {dtype!r}")
        self.out_features, self.in_features = weight.shape
        self.dtype = _supported_dtype(dtype)
        weight = weight.detach().float().contiguous()
        bias = None if bias is None else bias.detach().float().contiguous()
        self._product = _make_product(weight, bias, self.dtype, rows_hint)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return (M, out) fp32 for ``x`` (M, in) fp32."""
        return self._product(x)

    def add_to(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Return ``residual`` + y as a new tensor (M, out) fp32; ``residual`` (M, out) fp32."""
        return self._product.add_to(x, residual)


class _OneDnnFloat32:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows_hint: int) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows_hint)
        self._bias = bias
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self._linear_add = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self._weight, self._bias, "none", [], "")

    def add_to(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self._linear_add(x, residual, self._weight, self._bias, "add")


class _OneDnnBfloat16:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rows_hint: int) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), rows_hint)
        self._bias = None if bias is None else bias.bfloat16()
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x.bfloat16(), self._weight, self._bias, "none", [], "").float()

    def add_to(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + self._linear(x.bfloat16(), self._weight, self._bias, "none", [], "")


class _Int8Blocks:
    """Weights and rows in 8-bit blocks of 32, by the block kernels that targets use.

    torch's own int8 products give all rows one scale and wake another pool of threads.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        # Only int8 needs it, on the CPU: a target on a device is decoded without.
        import gguf

        # Columns of zeros fill up the last block.
        self._padding = -weight.shape[1] % INT8_BLOCK
        weight = nn.functional.pad(weight, (0, self._padding))
        file = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
        self._matrix = C.BlockMatrix(
            format=int(gguf.GGMLQuantizationType.Q8_0),
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            file=np.ascontiguousarray(file),
            rows=None,
            threads=thread_count(),
        )
        self._outputs = len(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.pad(x, (0, self._padding)) if self._padding else x.contiguous()
        out = torch.empty(len(x), self._outputs)
        self._matrix.multiply(x.data_ptr(), out.data_ptr(), len(x), "int8", thread_count())
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


class _Unpacked:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight.clone()
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._weight, self._bias)

    def add_to(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._weight, self._bias).add_(residual)


_Product = _OneDnnFloat32 | _OneDnnBfloat16 | _Int8Blocks | _Unpacked


def _make_product(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: LinearDtype, rows_hint: int
) -> _Product:
    if dtype == "int8":
        return _Int8Blocks(weight, bias)
    if not _has_onednn():
        return _Unpacked(weight, bias)
    if dtype == "bfloat16":
        return _OneDnnBfloat16(weight, bias, rows_hint)
    return _OneDnnFloat32(weight, bias, rows_hint)


@functools.cache
def _has_onednn() -> bool:
    found = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    if not found:
        warnings.warn(
            "this build of torch has no packed oneDNN products; matrix products run unpacked, "
            "which takes two to three times as long",
            stacklevel=5,
        )
    return found


def is_supported(dtype: LinearDtype) -> bool:
    """Return whether products in ``dtype`` run on this CPU; float32 and int8 always do."""
    if dtype == "bfloat16":
        return _has_onednn() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return True


@functools.cache
def _supported_dtype(dtype: LinearDtype) -> LinearDtype:
    if is_supported(dtype):
        return dtype
    warnings.warn(f"{dtype} products are missing on this CPU; float32 is used", stacklevel=4)
    return "float32"
