"""A small net that predicts a probability: fitted with torch, run with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

# Points of a fit's curve.
_REPORTS = 40
# Examples whose moments are computed together.
_CHUNK = 65_536


@dataclass(frozen=True, eq=False)
class SmallNet:
    """A net of two hidden layers with SiLU and one logit.

    Attributes:
        weights: three matrices (in, out) float32; the inputs' scaling is folded into the first.
        biases: three vectors (out,) float32.
    """

    weights: tuple[np.ndarray, np.ndarray, np.ndarray]
    biases: tuple[np.ndarray, np.ndarray, np.ndarray]

    def __post_init__(self) -> None:
        width = self.weights[0].shape[0] if self.weights[0].ndim else 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if weight.ndim != 2 or weight.shape[0] != width or bias.shape != weight.shape[1:]:
                raise ValueError(
                    f"layers must fit each other, got weights {weight.shape} and bias {bias.shape} "
                    f"after {width} values"
                )
            width = weight.shape[1]
        if width != 1:
            raise ValueError(f"the last layer must give one logit, got {width}")

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.weights[0].shape[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return probabilities (...,) float32 for inputs (..., inputs) float32."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if index < 2:
                x = x / (1.0 + np.exp(-np.clip(x, -60.0, None)))
        return 1.0 / (1.0 + np.exp(-np.clip(x[..., 0], -60.0, 60.0)))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the arrays by their names in a file."""
        return {
            f"{prefix}.{kind}.{index}": torch.from_numpy(np.ascontiguousarray(array))
            for kind, arrays in (("weight", self.weights), ("bias", self.biases))
            for index, array in enumerate(arrays)
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], prefix: str) -> SmallNet:
        """Build the net from the arrays of `tensors`.

        Raises:
            ValueError: an array is missing, is not float32, or does not match the others.
        """
        arrays = []
        for name in (f"{prefix}.{kind}.{i}" for kind in ("weight", "bias") for i in range(3)):
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != torch.float32:
                found = "nothing" if tensor is None else str(tensor.dtype)
                raise ValueError(f"{name!r} must be a float32 tensor, got {found}")
            arrays.append(tensor.numpy())
        return cls(_three(arrays[:3]), _three(arrays[3:]))


def fit_net(
    x: np.ndarray,
    y: np.ndarray,
    *,
    hidden: int = 24,
    steps: int = 1200,
    batch: int = 2048,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> SmallNet:
    """Fit a net to labelled examples by cross-entropy.

    Args:
        x: (n, inputs) float32.
        y: (n,) labels, 0 or 1.
        hidden: width of the hidden layers.
        steps: steps of AdamW, on a one-cycle schedule with a peak learning rate of 0.01.
        batch: examples per step.
        seed: seed of initial weights and draws.
        report: called about 40 times with the steps done and their mean loss.

    Raises:
        ValueError: there are no examples, or a value is not finite.
    """
    if not len(x) or not np.isfinite(x).all():
        raise ValueError(f"x must hold finite examples, got {len(x)} rows")
    x = np.ascontiguousarray(x, dtype=np.float32)
    mean, scale = _moments(x)
    layers = _new_layers(x.shape[1], hidden, seed)
    _train(layers, x, y, mean, scale, steps=steps, batch=batch, seed=seed, report=report)
    weights = [layer.weight.detach().numpy().T.astype(np.float64) for layer in layers]
    biases = [layer.bias.detach().numpy().astype(np.float64) for layer in layers]
    # (x - mean) / scale is folded into the first layer.
    biases[0] = biases[0] - (mean / scale) @ weights[0]
    weights[0] = weights[0] / scale[:, None]
    return SmallNet(
        _three([weight.astype(np.float32) for weight in weights]),
        _three([bias.astype(np.float32) for bias in biases]),
    )


def _new_layers(inputs: int, hidden: int, seed: int) -> list[nn.Linear]:
    """Make the linear layers with initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]


def _train(
    layers: list[nn.Linear],
    x: np.ndarray,
    y: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    steps: int,
    batch: int,
    seed: int,
    report: Callable[[int, float], None] | None,
) -> None:
    """Fit the layers to standardised inputs; see `fit_net`."""
    net = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
    generator = torch.Generator().manual_seed(seed)
    # Standardised batch by batch: a copy of millions of examples would double their memory.
    inputs = torch.from_numpy(x)
    shift, factor = torch.from_numpy(mean), torch.from_numpy(scale)
    labels = torch.from_numpy(y.astype(np.float32))
    interval = max(1, steps // _REPORTS)
    total = 0.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        logits = net((inputs[chosen] - shift) / factor)[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if report is not None and (step % interval == 0 or step == steps):
            report(step, total / ((step - 1) % interval + 1))
            total = 0.0


def _three(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first, second, third = arrays
    return first, second, third


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale of the columns, float32."""
    # Summed in float64, by chunks: a float32 sum over millions of rows loses the small terms.
    chunks = [x[begin : begin + _CHUNK] for begin in range(0, len(x), _CHUNK)]
    mean = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in chunks) / len(x)
    square = sum(((chunk - mean) ** 2).sum(axis=0) for chunk in chunks) / len(x)
    return mean.astype(np.float32), (np.sqrt(square) + 1e-3).astype(np.float32)
