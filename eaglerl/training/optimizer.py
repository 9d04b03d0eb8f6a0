"""Optimizer of the draft head: Muon for the layer's matrices, AdamW for the rest.

Muon (https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix; ``match_rms_adamw`` scales its updates like AdamW's
(https://arxiv.org/abs/2502.16982). AdamW updates the output layer, whose rows belong to tokens, and
the norms' vectors.
"""

import torch
from torch import nn

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.training.muon import Muon
from eaglerl.training.precision import resolve_dtype

ADAMW_LR_RATIO = 0.5
ADAMW_BETAS = (0.9, 0.95)


class DraftOptimizer:
    """Muon and AdamW behind one ``step``, with one learning-rate schedule."""

    def __init__(
        self,
        head: Eagle3DraftHead,
        *,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        max_grad_norm: float = 1.0,
    ) -> None:
        """Group the head's parameters.

        Args:
            head: the head.
            learning_rate: Muon's peak learning rate; AdamW's is half of it.
            weight_decay: decoupled weight decay of Muon's matrices.
            max_grad_norm: the gradient's norm is clipped to this.
        """
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in head.named_parameters():
            is_matrix = parameter.ndim == 2 and not name.startswith("lm_head")
            (matrices if is_matrix else others).append(parameter)
        self._parameters = matrices + others
        self._max_grad_norm = max_grad_norm
        muon = Muon(
            matrices, lr=learning_rate, weight_decay=weight_decay, dtype=resolve_dtype("auto")
        )
        adamw = torch.optim.AdamW(
            others,
            lr=learning_rate * ADAMW_LR_RATIO,
            betas=ADAMW_BETAS,
            weight_decay=0.0,
            fused=True,
        )
        self._optimizers = {"muon": muon, "adamw": adamw}
        self._peaks = {"muon": learning_rate, "adamw": learning_rate * ADAMW_LR_RATIO}

    def step(self, scale: float) -> float:
        """Update the parameters and clear their gradients.

        Args:
            scale: learning rate as a fraction of its peak.

        Returns:
            The gradient's norm before it was clipped.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._peaks[name] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return the state as tensors under flat names."""
        return {
            f"{name}.{index}.{key}": value
            for name, optimizer in self._optimizers.items()
            for index, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state_tensors` returned."""
        states: dict[str, dict[int, dict[str, torch.Tensor]]] = {
            name: {} for name in self._optimizers
        }
        for path, value in tensors.items():
            name, index, key = path.split(".")
            states[name].setdefault(int(index), {})[key] = value
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states[name]})


def learning_rate_scale(progress: float, warmup: float, final: float) -> float:
    """Return the learning rate as a fraction of its peak: linear warm-up, then linear decay.

    Args:
        progress: fraction of the training that is done, 0..1.
        warmup: fraction of the training that the warm-up takes.
        final: where the decay ends, as a fraction of the peak.
    """
    if progress < warmup:
        return progress / warmup
    return 1.0 - (1.0 - final) * min(1.0, (progress - warmup) / (1.0 - warmup))
