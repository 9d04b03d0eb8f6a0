"""Matrix products of many draft passes at once, each with the rounding of its own pass.

The int8 products of a draft have one scale per call, so a row's result depends on the rows in the
same pass. A replay that runs hundreds of passes in one product must therefore keep one scale per
pass, or its draft differs from the live one.
"""

from __future__ import annotations

import torch
from torch import nn

from eaglerl.eagle3.layers.linear import LinearDtype, PackedLinear, keeps_8_bits

# Number of rows for which oneDNN lays out the weights: a replay's products have hundreds.
_ROWS_HINT = 1024


class GroupedQuantizer:
    """Rounding of the inputs of several layers, with one scale per group; the last is cached."""

    def __init__(self) -> None:
        self._largest = 255 if keeps_8_bits() else 127
        self._input: torch.Tensor | None = None
        self._output: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round like ``quantized::linear_dynamic``: asymmetric, with 0 always representable.

        Args:
            x: (G, R, n) float32, G groups of R rows.

        Returns:
            Whole numbers (G, R, n) as float32, less the zero point, and scales (G, 1, 1).
        """
        if x is self._input and self._output is not None:
            return self._output
        low, high = (bound.double() for bound in torch.aminmax(x.flatten(1), dim=1))
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        # From here on in the order and precision of FBGEMM's ChooseQuantizationParams: the zero
        # point is rounded from the end of the range with the smaller error.
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

    The whole numbers are multiplied in float32, which is exact for sums below 2^24. A product of an
    8-bit input and an 8-bit weight is at most 255 * 127, so 518 of them with one sign could reach
    that. Their signs vary, and the sums over the width of a draft head stay far below.
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
        """Return (G, R, out) for ``x`` (G, R, in): G passes of R rows."""
        codes, scale = self._quantizer(x)
        sums = self._product(codes.flatten(0, 1)).unflatten(0, x.shape[:2])
        return sums.mul_(scale * self._scales)


class RowwiseLinear(nn.Module):
    """y = x W^T, each row on its own."""

    def __init__(self, weight: torch.Tensor, dtype: LinearDtype = "float32") -> None:
        super().__init__()
        self._product = PackedLinear(weight, dtype=dtype, rows_hint=_ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for ``x`` (..., in)."""
        return self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
