"""Matrix products of many draft passes at once, each with the rounding that it has by itself.

The int8 products of a draft choose one scale per call, so that a row's result depends on the rows
that share its pass. A replay that runs hundreds of passes in one product must therefore keep one
scale per pass, or it replays another draft than the one that decodes.
"""

from __future__ import annotations

import torch
from torch import nn

from eaglerl.eagle3.layers.linear import LinearDtype, PackedLinear

# Rows for which oneDNN lays out the weights: a replay's products have hundreds.
_ROWS_HINT = 1024


class GroupedQuantizer:
    """Rounds the inputs of several layers, with one scale per group, and remembers the last."""

    def __init__(self) -> None:
        # Without VNNI torch's products take 7 bit inputs.
        vnni = torch.cpu.get_capabilities().get("avx512_vnni", False)
        self._largest = 255 if vnni else 127
        self._input: torch.Tensor | None = None
        self._output: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round as ``quantized::linear_dynamic`` does (asymmetric, zero always representable).

        Args:
            x: (G, R, n) float32, G groups of R rows.

        Returns:
            Whole numbers (G, R, n) as float32, the zero point taken off, and scales (G, 1, 1).
        """
        if x is self._input:
            return self._output
        low, high = (bound.double() for bound in torch.aminmax(x.flatten(1), dim=1))
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        scale = ((high - low) / self._largest).float()
        scale = torch.where(scale == 0, torch.full_like(scale, 0.1), scale)
        below, above = low / scale.double(), high / scale.double()
        use_low = below.abs() < self._largest + above.abs()
        zero = torch.where(use_low, -below, self._largest - above).round().clamp(0, self._largest)
        zero = zero.float()[:, None, None]
        codes = x.mul((1.0 / scale)[:, None, None]).round_()
        codes = torch.minimum(torch.maximum(codes, -zero), self._largest - zero)
        self._input, self._output = x, (codes, scale[:, None, None])
        return self._output


class GroupedInt8Linear(nn.Module):
    """y = x W^T with int8 weights and one input scale per group of rows.

    The whole numbers are multiplied in float32, which is exact below 2^24: sums of products of 7
    bit inputs and 8 bit weights stay far below it at the widths of a draft head.
    """

    def __init__(self, weight: torch.Tensor, quantizer: GroupedQuantizer) -> None:
        super().__init__()
        weight = weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight / scales[:, None]).round().clamp(-127, 127)
        self._scales = scales
        self._product = PackedLinear(codes, rows_hint=_ROWS_HINT)
        self._quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(G, R, out) for ``x`` (G, R, in): G passes of R rows."""
        codes, scale = self._quantizer(x)
        sums = self._product(codes.flatten(0, 1)).unflatten(0, x.shape[:2])
        return sums.mul_(scale * self._scales)


class RowwiseLinear(nn.Module):
    """y = x W^T, every row by itself."""

    def __init__(self, weight: torch.Tensor, dtype: LinearDtype = "float32") -> None:
        super().__init__()
        self._product = PackedLinear(weight, dtype=dtype, rows_hint=_ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., out) for ``x`` (..., in)."""
        return self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
