"""A guard for staged policies: one that does worse than the best constant tree gives way to it."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StepResult,
    TreeParams,
)

# Gain on other text than that of the training is believed to differ by this much, or by all of it.
_DOUBT = 0.1
# Cycles that are remembered: a policy that was put aside gets another chance on other text.
_MEMORY = 4000.0
# Squared ratio of the standard deviation of a cycle's tokens to their mean.
_SPREAD = 0.35
# Trials of the other side: at most every twelfth cycle, and ever fewer; none once the difference is
# clear by so many standard deviations of cycles that both sides had.
_MOST_TRIALS = 1 / 12
_CLEAR = 2.5
_FEWEST_CYCLES = 16
# What trials of a policy that is put aside may cost, as a share of all time.
_TRIAL_COST = 0.001


@dataclass
class _Side:
    """Cycles, tokens and seconds of one side, old ones fading."""

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
    """What a policy and its forks have found out.

    Attributes:
        own: the policy's cycles.
        other: those of the constant tree.
        observed: all of them.
        due: trials of the side that is not in use, as far as they have not come yet.
    """

    own: _Side = field(default_factory=_Side)
    other: _Side = field(default_factory=_Side)
    observed: int = 0
    due: float = 0.0


class FallbackPolicy:
    """Decodes with a policy as long as it is likely to be faster than a constant tree.

    Which of the two is faster is estimated from their own cycles in this process, tokens over
    seconds each, together with the gain that the training found on held-out prompts. Now and then
    a cycle is decoded by the side that is not in use: at most one in twelve, 1 / sqrt(n) of them
    after n cycles, none once the difference is clear. A policy that is 30 % slower than the
    constant tree is put aside within about 500 cycles, and costs less than 1 % from then on; one
    that is as good as in training loses about a tenth of its gain to the trials at first.

    Attributes:
        policy: the policy.
        constant: the tree that it must not fall behind.
    """

    def __init__(self, policy: SelectingPolicy, constant: TreeParams, gain: float = 0.0) -> None:
        """Set up.

        Args:
            policy: a policy that selects its nodes.
            constant: the best constant tree of the training.
            gain: of the policy over it on held-out prompts, in tokens per second; 0.03 for 3 %.

        Raises:
            TypeError: `policy` does not select nodes, or `constant` is no tree.
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
        self._doubt = max(_DOUBT, abs(gain))
        self._found = _Found()
        self._uses_policy = True

    def fork(self) -> FallbackPolicy:
        """The same for a sequence beside the one at work; what is found out is found out by both.

        Raises:
            ValueError: the policy cannot fork.
        """
        fork = getattr(self.policy, "fork", None)
        if fork is None:
            raise ValueError(
                f"a guarded {type(self.policy).__name__} is in use by another generation and has "
                "no method fork() for another sequence"
            )
        other = copy.copy(self)
        other.policy = fork()
        return other

    @property
    def advantage(self) -> float:
        """What the policy is believed to gain over the constant tree; 0.03 for 3 %."""
        return self._estimate()[0]

    def reset(self) -> None:
        """Begin a sequence; what was found out stays."""
        self.policy.reset()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """The policy's plan, or the constant tree."""
        advantage, deviation = self._estimate()
        self._found.due += self._trials(advantage, deviation)
        tries = self._found.due >= 1.0
        if tries:
            self._found.due -= 1.0
        self._uses_policy = (advantage > 0) != tries
        return self.policy.choose(state) if self._uses_policy else self.constant

    def observe(self, result: StepResult) -> None:
        """Count the cycle for the side that decoded it."""
        self._found.own.fade(1 - 1 / _MEMORY)
        self._found.other.fade(1 - 1 / _MEMORY)
        side = self._found.own if self._uses_policy else self._found.other
        side.add(len(result.token_ids), result.seconds)
        self._found.observed += 1
        self.policy.observe(result)

    def should_continue(self, progress: DraftProgress) -> bool:
        """As the policy says; a constant tree is drafted to its end."""
        return not self._uses_policy or self.policy.should_continue(progress)

    def select(self, progress: DraftProgress) -> Selection:
        """As the policy says, or the constant tree: the candidates of the best scores."""
        if self._uses_policy:
            return self.policy.select(progress)
        best = np.argsort(-progress.scores, kind="stable")
        return Selection(best[: self.constant.total_tokens - 1])

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _estimate(self) -> tuple[float, float]:
        """Mean and standard deviation of the advantage: a normal prior, and two measured rates."""
        precision = self._doubt**-2
        mean = self._gain * precision
        if self._found.own.cycles and self._found.other.cycles:
            ratio = self._found.own.tokens * self._found.other.seconds
            ratio /= self._found.own.seconds * self._found.other.tokens
            measured = 1 / (_SPREAD * (1 / self._found.own.cycles + 1 / self._found.other.cycles))
            mean += (ratio - 1) * measured
            precision += measured
        return mean / precision, precision**-0.5

    def _trials(self, advantage: float, deviation: float) -> float:
        """Share of the cycles that the side which is not in use gets."""
        known = min(self._found.own.cycles, self._found.other.cycles) >= _FEWEST_CYCLES
        if not known or abs(advantage) < _CLEAR * deviation:
            return min(_MOST_TRIALS, (self._found.observed + 1) ** -0.5)
        if advantage > 0:
            return 0.0
        # A cycle at 1 + a of the speed takes -a / (1 + a) longer than one of the constant tree.
        speed = max(1.0 + advantage, 0.05)
        return min(_MOST_TRIALS, _TRIAL_COST * speed / -advantage)
