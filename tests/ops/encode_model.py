"""The policy's decision in float64 numpy, with a bound of what float32 sums may differ by."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from eaglerl.ops import PolicyWeights

UNIT = 2.0**-24  # half the distance of float32 numbers around 1


def wide(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values in float64, which holds all of the smaller types."""
    return tensor.double().numpy()


def gamma(terms: int) -> float:
    """Relative error of a float32 sum of so many products, in whatever order it is made.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1.
    """
    return terms * UNIT / (1 - terms * UNIT)


class Bounded:
    """Values, and how far float32 arithmetic may be from each."""

    def __init__(self, value: np.ndarray, error: np.ndarray | None = None) -> None:
        self.value = value
        self.error = np.zeros_like(value) if error is None else error

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Bounded:
        matrix = wide(weight)
        start = np.zeros(len(matrix)) if bias is None else wide(bias)
        sizes = np.abs(self.value) @ np.abs(matrix).T + np.abs(start)
        rounding = gamma(matrix.shape[1] + 2) * (sizes + self.error @ np.abs(matrix).T)
        return Bounded(self.value @ matrix.T + start, self.error @ np.abs(matrix).T + rounding)

    def activated(self, name: str) -> Bounded:
        x = self.value
        with np.errstate(over="ignore"):
            values = {"tanh": np.tanh(x), "relu": np.maximum(x, 0), "silu": x / (1 + np.exp(-x))}
        # None is steeper than 1.1. An exponential is good to a few units at its argument's size,
        # where its argument is large it hardly counts: 8 units of the larger of input and output.
        sizes = np.minimum(np.abs(x), 1) if name == "tanh" else np.abs(x)
        return Bounded(values[name], 1.1 * self.error + 8 * UNIT * sizes)

    def normalised(self, weights: PolicyWeights) -> Bounded:
        if not weights.norm_chunks:
            return self
        rows, width = self.value.shape
        count = weights.norm_chunks
        chunks = self.value.reshape(rows, count, width // count)
        scales = 1 / np.sqrt((chunks**2).mean(-1, keepdims=True) + weights.eps)
        value = (chunks * scales).reshape(rows, width)
        if weights.norm_weight is not None:
            value = value * wide(weights.norm_weight)
        # The mean's error is halved by the root; root, quotient and products add one unit each.
        return Bounded(value, np.abs(value) * (gamma(chunks.shape[-1] + 2) / 2 + 6 * UNIT))


def model_features(x: torch.Tensor, weights: PolicyWeights) -> Bounded:
    """g of taps (N, 3k)."""
    return Bounded(wide(x)).normalised(weights).linear(weights.fc_weight, weights.fc_bias)


def model_logits(x: torch.Tensor, weights: PolicyWeights) -> Bounded:
    """Return logits of taps, or of features, (S, width)."""
    if weights.fc_weight is not None:
        values = model_features(x, weights)
    elif weights.mlp_input == "taps":
        values = Bounded(wide(x)).normalised(weights)
    else:
        values = Bounded(wide(x))
    for weight, bias in zip(weights.hidden_weights, weights.hidden_biases, strict=True):
        values = values.linear(weight, bias).activated(weights.activation)
    return values.linear(weights.output_weight, weights.output_bias)


def assert_within(actual: torch.Tensor, expected: Bounded, *, extra: float = 0.0) -> None:
    """Compare every element with its own bound; ``extra`` is relative to the element."""
    # Products below float32's normal range lose what 2**-126 stands for.
    bound = expected.error + extra * np.abs(expected.value) + 2.0**-120
    excess = np.abs(wide(actual) - expected.value) - bound
    assert actual.shape == expected.value.shape
    assert (excess <= 0).all(), f"largest excess {excess.max()} of bound {bound.max()}"


def make_weights(
    k: int = 12,
    width: int = 10,
    hidden: tuple[int, ...] = (8,),
    actions: int = 5,
    *,
    reads: str = "fc",
    dtype: torch.dtype = torch.float32,
    norm_chunks: int = 0,
    norm_weight: bool = False,
    fc_bias: bool = True,
    activation: str = "tanh",
    horizon: int = 1,
    fallback_action: int = 0,
    columns: int = 3,
) -> PolicyWeights:
    """Return random weights; ``reads`` is "fc", "taps" or "features"."""

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns) * columns**-0.5).to(dtype)

    sizes = [3 * k if reads == "taps" else width, *hidden, horizon * actions]
    matrices = [matrix(rows, columns) for columns, rows in itertools.pairwise(sizes)]
    vectors = [torch.randn(rows) for rows in sizes[1:]]
    return PolicyWeights(
        hidden_weights=tuple(matrices[:-1]),
        hidden_biases=tuple(vectors[:-1]),
        output_weight=matrices[-1],
        output_bias=vectors[-1],
        actions=torch.randint(1, 60, (actions, columns), dtype=torch.int32),
        fc_weight=matrix(width, 3 * k) if reads == "fc" else None,
        fc_bias=torch.randn(width) if reads == "fc" and fc_bias else None,
        norm_weight=torch.rand(3 * k) + 0.5 if norm_weight else None,
        norm_chunks=norm_chunks,
        activation=activation,
        mlp_input="taps" if reads == "taps" else "features",
        horizon=horizon,
        fallback_action=fallback_action,
    )
