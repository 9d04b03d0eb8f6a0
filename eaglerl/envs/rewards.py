"""The reward of a cache window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

RewardName = Literal["tokens", "throughput"]


class WindowReward:
    """The rewards of windows, from their tokens and seconds.

    "tokens" is tokens - rate x seconds, where the rate is the ratio of all tokens to all seconds so
    far: maximising it maximises the ratio of the sums, the speed that a user sees (Dinkelbach
    1967). "throughput" is tokens / seconds of the window, as in Re-SpS; its mean is not the ratio
    of the sums.

    Attributes:
        kind: "tokens" or "throughput".
    """

    def __init__(self, kind: RewardName = "tokens", *, initial_rate: float, weight: float = 100.0):
        """Set up.

        Args:
            kind: "tokens" or "throughput".
            initial_rate: the rate before the first window, in tokens per second.
            weight: weight of the initial rate, in tokens.

        Raises:
            ValueError: the kind is unknown, or a rate or weight is not positive.
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
        """Return to the initial rate."""
        self._tokens, self._seconds = self._initial

    def state(self) -> tuple[float, float]:
        """Return the tokens and seconds whose ratio is the rate, for `load_state`."""
        return self._tokens, self._seconds

    def load_state(self, state: Sequence[float]) -> None:
        """Continue with the rate of a `state`."""
        self._tokens, self._seconds = (float(value) for value in state)

    @property
    def rate(self) -> float:
        """Tokens per second of all windows so far."""
        return self._tokens / self._seconds

    def __call__(self, tokens: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return the rewards of windows, and then include these in the rate."""
        reward = tokens / seconds if self.kind == "throughput" else tokens - self.rate * seconds
        self._tokens += float(np.sum(tokens))
        self._seconds += float(np.sum(seconds))
        return reward
