"""Matrix products of many draft passes at once."""

from __future__ import annotations

import torch
from torch import nn

from eaglerl.eagle3.layers.linear import LinearDtype, PackedLinear

# Number of rows for which oneDNN lays out the weights: a replay's products have hundreds.
_ROWS_HINT = 1024


class RowwiseLinear(nn.Module):
    """y = x W^T, each row on its own, as in the live draft: int8 rows have scales of their own."""

    def __init__(self, weight: torch.Tensor, dtype: LinearDtype = "float32") -> None:
        super().__init__()
        self._product = PackedLinear(weight, dtype=dtype, rows_hint=_ROWS_HINT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for ``x`` (..., in)."""
        return self._product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
