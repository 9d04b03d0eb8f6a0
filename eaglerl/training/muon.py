"""Muon in the precision in which the CPU multiplies fastest.

torch.optim.Muon always iterates in bfloat16, which a CPU without bfloat16 instructions emulates: on
AVX2 that took three quarters of a training step.
"""

import math
from collections.abc import Iterable

import torch

# The quintic of torch.optim.Muon: so steep at zero that five iterations are enough.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_MOMENTUM = 0.95
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/), with Nesterov's step.

    Updates are scaled by 0.2 sqrt(max(rows, columns)), so that their RMS is like AdamW's
    (https://arxiv.org/abs/2502.16982, section 2.2). State and results are those of
    `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``, up to rounding.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Set up.

        Args:
            matrices: parameters of two dimensions.
            lr: learning rate.
            weight_decay: decoupled.
            dtype: of the iteration's products.

        Raises:
            ValueError: a parameter is not a matrix.
        """
        matrices = list(matrices)
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"matrices must have 2 dimensions, got {tuple(matrix.shape)}")
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: the gradients are there
        """Update the parameters that have gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - _MOMENTUM)
                update = orthogonalize(matrix.grad.lerp(momentum, _MOMENTUM), self._dtype)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * 0.2 * math.sqrt(max(matrix.shape))
                matrix.add_(update, alpha=-rate)


def orthogonalize(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a matrix's orthogonalisation: singular values between 0.7 and 1.2.

    The singular vectors stay.

    Args:
        matrix: (m, n).
        dtype: of the products.

    Returns:
        (m, n) of `dtype`.
    """
    first, third, fifth = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.T if tall else x
