"""The result of one decision: the cycles of a cache window, summed up for one transition."""

from __future__ import annotations

import numpy as np

from eaglerl.envs.rewards import RewardName, WindowReward
from eaglerl.resps.policies.checkpoint_state import WindowState


class RewardWindow:
    """The sums of a window's cycles, and its reward.

    The reward is that of the sums, never a mean of ratios, unless only ratios are given. In
    Re-SpS it is the mean of the rewards of the cycles.

    Attributes:
        tokens: tokens of the window so far.
        cycles: cycles of the window so far.
        total_tokens: tokens of all windows.
        total_seconds: seconds of all windows.
    """

    def __init__(self, kind: RewardName, *, reference: bool = False) -> None:
        """Set up.

        Args:
            kind: see `WindowReward`.
            reference: take the mean of the rewards that `add` is given.
        """
        self._kind = kind
        self._reference = reference
        self._reward: WindowReward | None = None
        self.total_tokens = 0
        self.total_seconds = 0.0
        self.clear()

    def clear(self) -> None:
        """Begin a window."""
        self.tokens, self.seconds, self.cycles = 0, 0.0, 0
        self._rewards: list[float] = []

    def add(
        self, reward: float | None = None, seconds: float | None = None, tokens: int | None = None
    ) -> None:
        """Add a cycle.

        Args:
            reward: its reward; used if the other two are not given.
            seconds: its duration, drafting included.
            tokens: what it emitted.

        Raises:
            ValueError: neither the reward nor both of the others are given, or the duration is not
                positive.
        """
        if (tokens is None or seconds is None) and reward is None:
            raise ValueError("a cycle needs new_tokens and generation_time, or a reward")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"generation_time must be positive, got {seconds}")
        self.cycles += 1
        if reward is not None:
            self._rewards.append(float(reward))
        if tokens is not None and seconds is not None:
            self.tokens += int(tokens)
            self.seconds += float(seconds)
            self.total_tokens += int(tokens)
            self.total_seconds += float(seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all windows, the ratio of the sums."""
        return self.total_tokens / self.total_seconds if self.total_seconds else 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the cycles' own rewards."""
        return float(np.std(self._rewards)) if self._rewards else 0.0

    def close(self) -> float | None:
        """Return the reward of the window, and clear it; None for one without cycles."""
        reward = self._sum_up()
        self.clear()
        return reward

    def _sum_up(self) -> float | None:
        by_sums = self.seconds > 0 and not self._reference
        if by_sums:
            if self._reward is None:
                # The rate starts at that of the first window.
                self._reward = WindowReward(self._kind, initial_rate=self.tokens / self.seconds)
            return float(self._reward(np.array(self.tokens), np.array(self.seconds)))
        return float(np.mean(self._rewards)) if self._rewards else None

    def state(self) -> dict[str, object]:
        """Return JSON values for a checkpoint between two windows."""
        return {
            "tokens": self.total_tokens,
            "seconds": self.total_seconds,
            "rate": None if self._reward is None else list(self._reward.state()),
        }

    def load_state(self, state: WindowState) -> None:
        """Restore what `state` returned."""
        self.clear()
        self.total_tokens, self.total_seconds = state.tokens, state.seconds
        if state.rate is not None:
            self._reward = WindowReward(self._kind, initial_rate=1.0)
            self._reward.load_state(state.rate)
