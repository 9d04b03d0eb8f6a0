"""The reward of a cache window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

RewardName = Literal["tokens", "throughput"]


class WindowReward:
    """Turns the tokens and seconds of windows into rewards.

    "tokens" is tokens - lambda x seconds, where lambda is the ratio of all tokens to all seconds so
    far: what maximises it maximises the ratio of the sums, which is what a user sees (Dinkelbach
    1967). "throughput" is tokens / seconds of the window, whose mean is no such ratio; Re-SpS uses
    it.

    Attributes:
        kind: which of the two.
    """

    def __init__(self, kind: RewardName = "tokens", *, initial_rate: float, weight: float = 100.0):
        """Set up.

        Args:
            kind: "tokens" or "throughput".
            initial_rate: lambda before the first window, in tokens per second.
            weight: tokens that the initial rate counts for.

        Raises:
            ValueError: an unknown kind, or a rate or weight that is not positive.
        """
        if kind not in get_args(RewardName):
            raise ValueError(f"kind must be one of {get_args(RewardName)}, got {kind!r}")
        if not (initial_rate > 0 and weight > 0):
            raise ValueError(
                f"initial_rate and weight must be positive, got {initial_rate} and {weight}"
            )
        self.kind = kind
        self._initial = (weight, weight / initial_rate)
        self.reset()

    def reset(self) -> None:
        """Begin with the initial lambda again."""
        self._tokens, self._seconds = self._initial

    def state(self) -> tuple[float, float]:
        """The tokens and seconds that lambda is the ratio of; `load_state` takes them back."""
        return self._tokens, self._seconds

    def load_state(self, state: Sequence[float]) -> None:
        """Go on with the lambda of a `state`."""
        self._tokens, self._seconds = (float(value) for value in state)

    @property
    def rate(self) -> float:
        """lambda, in tokens per second."""
        return self._tokens / self._seconds

    def __call__(self, tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Rewards of windows of any number; lambda takes them in afterwards."""
        reward = tokens / seconds if self.kind == "throughput" else tokens - self.rate * seconds
        self._tokens += float(np.sum(tokens))
        self._seconds += float(np.sum(seconds))
        return reward
