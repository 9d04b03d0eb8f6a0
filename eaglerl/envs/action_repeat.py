"""Decisions that last for several cycles, and several decisions made at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from eaglerl.eagle3.policy import TreeParams
from eaglerl.ops import ActionCache, PolicyWeights, fused_encode


def check_keeping(similarity_threshold: float | None, horizon: int) -> None:
    """Check that at most one of `similarity_threshold` and `horizon` is used.

    Args:
        similarity_threshold: see `ActionRepeat`.
        horizon: windows per decision.

    Raises:
        ValueError: a value is out of its range, or both are used.
    """
    number = isinstance(similarity_threshold, int | float)
    if similarity_threshold is not None and not (number and -1 <= similarity_threshold <= 1):
        raise ValueError(
            f"similarity_threshold must lie in -1..1 or be None, got {similarity_threshold!r}"
        )
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
        raise ValueError(f"horizon must be an int of at least 1, got {horizon!r}")
    if horizon > 1 and similarity_threshold is not None:
        raise ValueError(
            f"horizon must be 1 where similarity_threshold ends windows early, got {horizon}: "
            "decisions for later windows would be discarded"
        )


def resembles(features: np.ndarray, references: np.ndarray, threshold: float) -> np.ndarray:
    """Return which features resemble those of decisions, as in an adaptive `ActionCache`.

    They do if their cosine similarity is at least the threshold. Zeros and values that are not
    finite resemble nothing. Sums are float64, in the cache float32, so the two may differ where
    rounding decides.

    Args:
        features: (P, k).
        references: (Q, k).
        threshold: smallest cosine similarity, in -1..1.

    Returns:
        (P, Q) bool.
    """
    features = np.asarray(features, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        dot = features @ references.T
        norms = [np.linalg.norm(rows, axis=1) for rows in (features, references)]
        scale = np.multiply.outer(*norms)
        return (dot >= threshold * scale) & (scale > 0) & np.isfinite(scale)


class ActionRepeat:
    """The current decision of one sequence, and for how many cycles it has been used.

    It is used for `interval` cycles. With a threshold it ends earlier, once the features no longer
    resemble those that it was made from, as in an adaptive `ActionCache`. A decision for several
    windows is used for `interval` cycles of each, as in a scheduled one.
    """

    def __init__(self, interval: int, similarity_threshold: float | None = None) -> None:
        """Begin without a decision.

        Args:
            interval: cycles per tree.
            similarity_threshold: smallest cosine similarity that keeps the decision; None keeps it
                regardless.
        """
        self._interval = interval
        self._threshold = similarity_threshold
        self.forget()

    def forget(self) -> None:
        """Discard the decision, so that the next cycle needs a new one."""
        self._trees: tuple[TreeParams, ...] = ()
        self._served = 0
        self._reference: np.ndarray | None = None

    def take(self, trees: Sequence[TreeParams], features: np.ndarray) -> TreeParams:
        """Start a decision.

        Args:
            trees: the tree of the next window, or of several windows.
            features: (k,) features that it was made from.

        Returns:
            The tree of the next cycle.
        """
        self._trees, self._served, self._reference = tuple(trees), 1, features
        return trees[0]

    def serve(self, features: Callable[[], np.ndarray | None]) -> TreeParams | None:
        """Return the tree of the next cycle; None if a new decision is due.

        Args:
            features: returns those of the next cycle, (k,), or None if they are unknown; called
                only if a threshold needs them.
        """
        if self._served >= self._interval * len(self._trees):
            return None
        if self._threshold is not None:
            assert self._reference is not None  # `take` has set it
            now = features()
            if now is None or not resembles(now[None], self._reference[None], self._threshold):
                return None
        tree = self._trees[self._served // self._interval]
        self._served += 1
        return tree


def decide(
    weights: PolicyWeights,
    observations: torch.Tensor,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> np.ndarray:
    """Return a policy's actions for all windows of its horizon.

    Args:
        weights: the policy.
        observations: (n, size) float32.
        temperature: see `fused_encode`.
        seed: see `fused_encode`.
        offset: see `fused_encode`.

    Returns:
        (n, horizon) int64.
    """
    encode = partial(
        fused_encode, observations, None, None, weights,
        temperature=temperature, seed=seed, offset=offset, return_features=False,
    )  # fmt: skip
    if weights.horizon == 1:
        return encode().action[:, None].numpy().astype(np.int64)
    # The cache holds the decisions for later windows.
    cache = ActionCache(len(observations), 1, "scheduled", horizon=weights.horizon)
    encode(cache=cache)
    assert cache.ring is not None  # it is a scheduled one
    return cache.ring[..., 0].numpy().astype(np.int64)
