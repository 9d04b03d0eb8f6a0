"""A fallback to the best constant tree for policies that do worse than it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StepResult,
    TreeParams,
    TreePolicy,
)

# Prior standard deviation of the policy's gain: at least 10 points, or the gain itself if that is
# larger, because decoded text may differ from training text.
_PRIOR_DEVIATION = 0.1
# Cycles after which a measurement has faded to 1/e: on other text the policy gets another chance.
_MEMORY = 4000.0
# Squared coefficient of variation of the tokens of a cycle.
_SPREAD = 0.35
# Trials of the side that is not in use: at most every twelfth cycle, and fewer with time; none once
# both sides have 16 cycles and differ by 2.5 standard deviations.
_MOST_TRIALS = 1 / 12
_CLEAR = 2.5
_FEWEST_CYCLES = 16
# Largest share of the time that trials of a rejected policy may cost.
_TRIAL_COST = 0.001


class DecidingPolicy(SelectingPolicy, TreePolicy, Protocol):
    """A policy that chooses a plan before each cycle and selects its nodes at the end."""


@dataclass
class _Side:
    """Cycles, tokens and seconds of one side, with old ones fading."""

    cycles: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def fade(self, share: float) -> None:
        self.cycles *= share
        self.tokens *= share
        self.seconds *= share

    def add(self, tokens: int, seconds: float) -> None:
        self.cycles += 1.0
        self.tokens += tokens
        self.seconds += seconds


@dataclass
class _Found:
    """Measurements that a policy and its forks share.

    Attributes:
        own: the policy's cycles.
        other: the constant tree's cycles.
        observed: number of all cycles.
        due: outstanding trials of the side that is not in use, a fraction included.
    """

    own: _Side = field(default_factory=_Side)
    other: _Side = field(default_factory=_Side)
    observed: int = 0
    due: float = 0.0


class FallbackPolicy:
    """A policy that is used while it is likely to be faster than a constant tree.

    The estimate combines a prior, the gain over held-out prompts in training, with the tokens per
    second that both sides reach in this process. The side that is not in use gets some trial
    cycles: at most one in twelve, 1 / sqrt(n) of them after n cycles, and none once the difference
    is clear. A policy that is 30 % slower than the constant tree is rejected within about 500
    cycles and costs less than 1 % from then on; one that is as good as in training loses about a
    tenth of its gain to the trials at first.

    Attributes:
        policy: the policy.
        constant: the tree to fall back to.
    """

    def __init__(self, policy: DecidingPolicy, constant: TreeParams, gain: float = 0.0) -> None:
        """Set up.

        Args:
            policy: a policy that selects its nodes.
            constant: the best constant tree in training.
            gain: relative gain of the policy over that tree in tokens per second, on held-out
                prompts; 0.03 for 3 %.

        Raises:
            TypeError: `policy` does not select nodes, or `constant` is not a tree.
            ValueError: `gain` is not finite, or not above -1.
        """
        if not isinstance(policy, SelectingPolicy):
            raise TypeError(f"policy must be a SelectingPolicy, got {type(policy).__name__}")
        if not isinstance(constant, TreeParams):
            raise TypeError(f"constant must be TreeParams, got {constant!r}")
        if not -1 < gain < math.inf:
            raise ValueError(f"gain must be finite and above -1, got {gain!r}")
        self.policy = policy
        self.constant = constant
        self._gain = gain
        self._prior_deviation = max(_PRIOR_DEVIATION, abs(gain))
        self._found = _Found()
        self._uses_policy = True

    def fork(self) -> FallbackPolicy:
        """Return the same policy for another concurrent sequence; the two share measurements.

        Raises:
            ValueError: the policy cannot fork.
        """
        fork = getattr(self.policy, "fork", None)
        if fork is None:
            raise ValueError(
                f"the {type(self.policy).__name__} of a FallbackPolicy is in use by another "
                "generation and has no method fork() for another sequence"
            )
        other = copy.copy(self)
        other.policy = fork()
        return other

    @property
    def advantage(self) -> float:
        """Estimated gain of the policy over the constant tree; 0.03 for 3 %."""
        return self._estimate()[0]

    def reset(self) -> None:
        """Begin a sequence; the measurements stay."""
        self.policy.reset()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the policy's plan, or the constant tree."""
        advantage, deviation = self._estimate()
        self._found.due += self._trials(advantage, deviation)
        tries = self._found.due >= 1.0
        if tries:
            self._found.due -= 1.0
        self._uses_policy = (advantage > 0) != tries
        return self.policy.choose(state) if self._uses_policy else self.constant

    def observe(self, result: StepResult) -> None:
        """Count the cycle for the side that chose its tree."""
        self._found.own.fade(1 - 1 / _MEMORY)
        self._found.other.fade(1 - 1 / _MEMORY)
        side = self._found.own if self._uses_policy else self._found.other
        side.add(len(result.token_ids), result.seconds)
        self._found.observed += 1
        self.policy.observe(result)

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return the policy's answer; a constant tree is drafted to its full depth."""
        return not self._uses_policy or self.policy.should_continue(progress)

    def select(self, progress: DraftProgress) -> Selection:
        """Return the policy's selection, or the constant tree's candidates: those of best score."""
        if self._uses_policy:
            return self.policy.select(progress)
        best = np.argsort(-progress.scores, kind="stable")
        return Selection(best[: self.constant.total_tokens - 1])

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the number of rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _estimate(self) -> tuple[float, float]:
        """Return mean and standard deviation of the advantage.

        A normal prior is combined with the measured ratio of the two sides' tokens per second. The
        relative variance of a side's rate after n cycles is about 0.35 / n, the squared coefficient
        of variation of a cycle's tokens over n; relative variances of a ratio add.
        """
        precision = self._prior_deviation**-2
        mean = self._gain * precision
        if self._found.own.cycles and self._found.other.cycles:
            ratio = self._found.own.tokens * self._found.other.seconds
            ratio /= self._found.own.seconds * self._found.other.tokens
            measured = 1 / (_SPREAD * (1 / self._found.own.cycles + 1 / self._found.other.cycles))
            mean += (ratio - 1) * measured
            precision += measured
        return mean / precision, precision**-0.5

    def _trials(self, advantage: float, deviation: float) -> float:
        """Return the share of the cycles that go to the side not in use."""
        known = min(self._found.own.cycles, self._found.other.cycles) >= _FEWEST_CYCLES
        if not known or abs(advantage) < _CLEAR * deviation:
            return min(_MOST_TRIALS, (self._found.observed + 1) ** -0.5)
        if advantage > 0:
            return 0.0
        # At a relative speed of 1 + a, with a < 0, a cycle's tokens take -a / (1 + a) more time
        # than with the constant tree; the share keeps the total below _TRIAL_COST.
        speed = max(1.0 + advantage, 0.05)
        return min(_MOST_TRIALS, _TRIAL_COST * speed / -advantage)
