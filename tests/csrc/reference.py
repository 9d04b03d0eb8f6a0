"""The policy's decision in float64 numpy, with a bound on the error of float32 sums.

Bounds follow Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1: a sum of n
products, in any order, is off by at most n u / (1 - n u) times the sum of their magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from eaglerl.ops.policy_weights import PolicyWeights

U = 2.0**-24  # unit roundoff of float32

# (function, largest slope, error of the float32 function in units of U relative to its result)
ACTIVATIONS = {
    "tanh": (np.tanh, 1.0, 4),
    "relu": (lambda x: np.maximum(x, 0), 1.0, 0),
    "silu": (lambda x: x / (1 + np.exp(-x)), 1.1, 8),
}


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


def logits_with_bound(weights: PolicyWeights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (S, horizon * A) of rows (S, width) and the bound of their float32 error."""
    values, errors = x, np.zeros_like(x)
    if weights.norm_chunks:
        chunks = values.reshape(len(x), weights.norm_chunks, -1)
        scales = 1 / np.sqrt((chunks**2).mean(-1, keepdims=True) + weights.eps)
        values = (chunks * scales).reshape(x.shape)
        # Half of the mean's error, and the square root's, the division's and the product's own.
        errors = np.abs(values) * (gamma(chunks.shape[-1]) / 2 + 8 * U)
    if weights.norm_weight is not None:
        values, errors = values * wide(weights.norm_weight), errors * wide(weights.norm_weight)
        errors = errors + np.abs(values) * 2 * U
    function, slope, ulps = ACTIVATIONS[weights.activation]
    matrices = (*weights.hidden_weights, weights.output_weight)
    biases = (*weights.hidden_biases, weights.output_bias)
    for layer, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
        matrix, bias = wide(matrix), wide(bias)
        magnitudes = (np.abs(values) + errors) @ np.abs(matrix).T + np.abs(bias)
        errors = errors @ np.abs(matrix).T + gamma(matrix.shape[1] + 8) * magnitudes
        values = values @ matrix.T + bias
        if layer < len(matrices) - 1:
            values, errors = function(values), slope * errors
            errors = errors + ulps * U * (np.abs(values) + errors)
    return values, errors


def sketch(taps: np.ndarray, eps: float) -> np.ndarray:
    """(64,) count sketch of one row of features (3k,), each layer divided by its RMS."""
    thirds = taps.reshape(3, -1)
    scaled = (thirds / np.sqrt((thirds**2).mean(-1, keepdims=True) + eps)).ravel()
    n = np.arange(len(scaled), dtype=np.uint64)
    signs = np.where(((n * 2654435769) & 0xFFFFFFFF) >> 31, -1.0, 1.0)
    return np.bincount((n % 64).astype(int), scaled * signs, minlength=64)


@dataclass
class Slot:
    """One slot of the action cache, modelled."""

    step: int = 0
    valid: bool = False
    taken: tuple[int, ...] = (0, 0, 0, 0, 0)  # action and its four parameters
    ring: list[tuple[int, ...]] = field(default_factory=list)
    features: np.ndarray | None = None
    hits: int = 0
    misses: int = 0
    fallbacks: int = 0


@dataclass
class CacheModel:
    """The action cache in plain Python."""

    mode: str
    interval: int
    threshold: float
    slots: dict[int, Slot]

    def holds(self, number: int, features: np.ndarray) -> bool:
        """Return whether the slot keeps its action; similarity must be clear."""
        slot = self.slots[number]
        steps = self.interval * (len(slot.ring) if self.mode == "scheduled" else 1)
        if not slot.valid or slot.step >= steps:
            return False
        if self.mode != "adaptive":
            return True
        if not (np.isfinite(features).all() and np.isfinite(slot.features).all()):
            return False
        norms = np.linalg.norm(features) * np.linalg.norm(slot.features)
        cosine = features @ slot.features / norms
        assert abs(cosine - self.threshold) > 1e-3
        return bool(cosine >= self.threshold)

    def hit(self, number: int) -> tuple[int, ...]:
        slot = self.slots[number]
        if self.mode == "scheduled":
            slot.taken = slot.ring[slot.step // self.interval]
        slot.step, slot.hits = slot.step + 1, slot.hits + 1
        return slot.taken

    def miss(
        self, number: int, decisions: list[tuple[int, ...]], features: np.ndarray, finite: bool
    ) -> tuple[int, ...]:
        slot = self.slots[number]
        slot.step, slot.valid, slot.taken, slot.ring = 1, finite, decisions[0], decisions
        slot.misses, slot.fallbacks = slot.misses + 1, slot.fallbacks + (not finite)
        if finite:
            slot.features = features
        return slot.taken
