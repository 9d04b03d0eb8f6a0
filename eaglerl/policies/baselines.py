"""Baseline policies: constants, bandits, tiers, draft confidence, and controls."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    ConstantPolicy,
    CycleState,
    DraftPlan,
    DraftProgress,
    StepResult,
    TreeParams,
    TreePolicy,
)
from eaglerl.traces.oracle import total_constant_seconds, trace_tables
from eaglerl.traces.trace_set import Trace


def best_constant(traces: Iterable[Trace], actions: ActionSpace, cost: CostTable) -> ConstantPolicy:
    """Find the tuned constant tree: the action with the most tokens per second on training traces.

    Raises:
        ValueError: there are no traces, or a trace or the cost table lacks an action.
    """
    return ConstantPolicy(best_constant_tree(traces, actions, cost))


def best_constant_tree(
    traces: Iterable[Trace], actions: ActionSpace, cost: CostTable
) -> TreeParams:
    """Find the action with the most tokens per second on some traces; see `best_constant`."""
    total = total_constant_seconds(trace_tables(traces, actions, cost))
    return actions[int(total.argmin())]


class RandomPolicy:
    """A tree drawn uniformly at every cycle: a control that ignores the state."""

    def __init__(self, actions: ActionSpace, seed: int = 0) -> None:
        self._actions = actions
        self._draw = np.random.default_rng(seed)

    def reset(self) -> None:
        """Do nothing: the random draws continue."""

    def choose(self, state: CycleState) -> TreeParams:
        """Return a random action."""
        return self._actions[int(self._draw.integers(len(self._actions)))]

    def observe(self, result: StepResult) -> None:
        """Do nothing: the policy does not learn."""


class UCB1Policy:
    """UCB1 (Auer et al. 2002) over the actions; it ignores the state.

    An arm's value is the ratio of its tokens to its seconds over the last `window` cycles, relative
    to the best arm's; its index is value + c sqrt(2 ln n / n_arm). Statistics carry over from
    sequence to sequence.
    """

    def __init__(self, actions: ActionSpace, *, exploration: float = 0.1, window: int = 500):
        """Set up.

        Args:
            actions: the arms.
            exploration: c, the weight of the confidence bound.
            window: number of recent cycles to use.

        Raises:
            ValueError: the window is too short to try every action.
        """
        if window < len(actions):
            raise ValueError(
                f"window must be at least the number of actions, {len(actions)}, got {window}"
            )
        self._actions = actions
        self._exploration = exploration
        self._window: deque[tuple[int, int, float]] = deque(maxlen=window)
        self._counts = np.zeros(len(actions))
        self._tokens = np.zeros(len(actions))
        self._seconds = np.zeros(len(actions))
        self._chosen = 0

    def reset(self) -> None:
        """Do nothing: statistics carry over."""

    def choose(self, state: CycleState) -> TreeParams:
        """Return the action with the largest index; untried actions come first."""
        untried = np.flatnonzero(self._counts == 0)
        if len(untried):
            self._chosen = int(untried[0])
        else:
            rates = self._tokens / self._seconds
            bound = np.sqrt(2 * math.log(self._counts.sum()) / self._counts)
            self._chosen = int((rates / rates.max() + self._exploration * bound).argmax())
        return self._actions[self._chosen]

    def observe(self, result: StepResult) -> None:
        """Count the cycle for the chosen arm."""
        if len(self._window) == self._window.maxlen:
            self._add(*self._window[0], sign=-1)
        entry = (self._chosen, len(result.token_ids), result.seconds)
        self._window.append(entry)
        self._add(*entry, sign=1)

    def _add(self, arm: int, tokens: int, seconds: float, *, sign: int) -> None:
        self._counts[arm] += sign
        self._tokens[arm] += sign * tokens
        self._seconds[arm] += sign * seconds


class Exp3Policy:
    """Exp3 (Auer et al. 2002) over the actions: a bandit without assumptions on the rewards.

    The reward of a cycle is its tokens per second, relative to the largest seen so far.
    """

    def __init__(self, actions: ActionSpace, *, gamma: float = 0.1, seed: int = 0) -> None:
        """Set up.

        Args:
            actions: the arms.
            gamma: share of uniform exploration, in (0, 1].
            seed: seed of the draws.

        Raises:
            ValueError: `gamma` is out of range.
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        self._actions = actions
        self._gamma = gamma
        self._draw = np.random.default_rng(seed)
        self._log_weights = np.zeros(len(actions))
        self._largest = 0.0
        self._chosen = 0

    @property
    def probabilities(self) -> np.ndarray:
        """Probability of each of the A actions in the next cycle."""
        weights = np.exp(self._log_weights - self._log_weights.max())
        even = 1 / len(weights)
        return (1 - self._gamma) * weights / weights.sum() + self._gamma * even

    def reset(self) -> None:
        """Do nothing: statistics carry over."""

    def choose(self, state: CycleState) -> TreeParams:
        """Draw an action."""
        self._chosen = int(self._draw.choice(len(self._actions), p=self.probabilities))
        return self._actions[self._chosen]

    def observe(self, result: StepResult) -> None:
        """Raise the arm's weight by its reward divided by its probability."""
        rate = len(result.token_ids) / result.seconds
        self._largest = max(self._largest, rate)
        reward = rate / self._largest / self.probabilities[self._chosen]
        self._log_weights[self._chosen] += self._gamma * reward / len(self._actions)


class TierPolicy:
    """Tiers by recent acceptance length, as in SGLang's ``--speculative-adaptive``.

    After a warm-up, every `interval` cycles an exponential average of the accepted tokens is
    rounded, and the lowest tier whose tree is deep enough for one token more is chosen. Going down
    needs a margin, so that the tier does not oscillate.
    """

    def __init__(
        self,
        tiers: Sequence[TreeParams],
        *,
        alpha: float = 0.2,
        warm_up: int = 10,
        interval: int = 5,
        down_margin: float = 0.25,
    ) -> None:
        """Set up.

        Args:
            tiers: trees of ascending depth.
            alpha: weight of the newest cycle.
            warm_up: cycles before the first change.
            interval: cycles between changes.
            down_margin: accepted tokens below a boundary at which a lower tier is chosen.

        Raises:
            ValueError: there are no tiers, or depths do not ascend.
        """
        depths = [tree.depth for tree in tiers]
        if not depths or sorted(set(depths)) != depths:
            raise ValueError(f"tiers must be of ascending depth, got depths {depths}")
        self._tiers = tuple(tiers)
        self._alpha = alpha
        self._warm_up = warm_up
        self._interval = interval
        self._down_margin = down_margin
        self.reset()

    def fork(self) -> TierPolicy:
        """Return the same tiers for another concurrent sequence."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Begin with the middle tier and no average."""
        self._tier = len(self._tiers) // 2
        self._average: float | None = None
        self._cycles = 0

    def choose(self, state: CycleState) -> TreeParams:
        """Return the tree of the current tier."""
        return self._tiers[self._tier]

    def observe(self, result: StepResult) -> None:
        """Update the average, and the tier when it is due."""
        self._cycles += 1
        previous = self._average
        self._average = (
            float(result.accepted)
            if previous is None
            else (1 - self._alpha) * previous + self._alpha * result.accepted
        )
        due = self._cycles > self._warm_up and self._cycles % self._interval == 0
        if not due:
            return
        lower = self._tier_of(self._average + self._down_margin)
        upper = self._tier_of(self._average)
        if upper > self._tier:
            self._tier = upper
        elif lower < self._tier:
            self._tier = lower

    def _tier_of(self, accepted: float) -> int:
        """Return the lowest tier whose tree holds the accepted tokens and one more."""
        levels = round(accepted) + 1
        fitting = (i for i, tree in enumerate(self._tiers) if tree.depth + 1 >= levels)
        return next(fitting, len(self._tiers) - 1)


class DraftConfidencePolicy:
    """A tree that grows while the draft's own confidence promises more than it costs.

    As in EAGLE-2 and OPT-Tree, the draft's probability of a node's path is taken as the probability
    that the path is accepted, so a tree's expected acceptance length is 1 + the sum over its nodes.
    A round is drafted, and a node verified, if that adds more tokens than rate * seconds, where the
    rate is the running ratio of all tokens to all seconds. The policy needs no training.
    """

    def __init__(self, cost: CostTable, *, limit: TreeParams, temperature: float = 1.0) -> None:
        """Set up.

        Args:
            cost: duration of draft passes and of the verification.
            limit: the largest tree; every tree has its width.
            temperature: temperature of the path probabilities, exp(score / temperature); above 1
                trusts the draft more, below 1 less.

        Raises:
            ValueError: the limit drafts nothing, or the temperature is not positive.
        """
        if limit.total_tokens == 1:
            raise ValueError("limit must draft at least one node, got total_tokens=1")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self._cost = cost
        self._limit = limit
        self._temperature = temperature
        self._tokens = 1.0
        self._seconds = float(cost.verify_seconds(1, 0))

    def reset(self) -> None:
        """Do nothing: the rate carries over."""

    def choose(self, state: CycleState) -> TreeParams:
        """Return the limit."""
        return self._limit

    def observe(self, result: StepResult) -> None:
        """Update the rate."""
        self._tokens += len(result.token_ids)
        self._seconds += result.seconds

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return whether another round promises more than it costs.

        The gain of a round is unknown before it is drafted. It is extrapolated from the last one,
        assuming that the share of the probability that survives from level to level stays the same.
        """
        widest = progress.scores[-(progress.top_k**2) :] if progress.depth else progress.scores
        reached = float(np.sort(self._probabilities(widest))[-progress.top_k :].sum())
        before = 1.0
        if progress.depth:
            start = len(progress.scores) - progress.top_k**2
            previous = progress.scores[max(0, start - progress.top_k**2) : start]
            before = float(np.sort(self._probabilities(previous))[-progress.top_k :].sum())
        gain = reached * min(reached / max(before, 1e-9), 1.0)
        seconds = self._cost.draft_seconds(1, progress.top_k, progress.context_length)
        seconds = seconds - self._cost.draft_seconds(0, progress.top_k, progress.context_length)
        return gain > self._rate * float(seconds)

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the number of rows that maximises expected length - rate * seconds."""
        most = min(self._limit.total_tokens, 1 + len(progress.scores))
        nodes = np.sort(self._probabilities(progress.scores))[::-1][: most - 1]
        length = 1 + np.concatenate(([0.0], np.cumsum(nodes)))
        seconds = self._cost.verify_seconds(np.arange(1, most + 1), progress.context_length)
        return 1 + int((length - self._rate * seconds).argmax())

    @property
    def _rate(self) -> float:
        return self._tokens / self._seconds

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        return np.exp(scores / self._temperature)


class ShuffledStates:
    """A policy that sees the states of other cycles: a control for the value of the state.

    The policy keeps its mix of actions, but they no longer depend on the state. States are drawn
    from those of all sequences so far.
    """

    def __init__(self, policy: TreePolicy, *, memory: int = 1000, seed: int = 0) -> None:
        """Set up.

        Args:
            policy: the policy to control.
            memory: number of states to keep.
            seed: seed of the draws.

        Raises:
            ValueError: `memory` is below 1.
        """
        if memory < 1:
            raise ValueError(f"memory must be at least 1, got {memory}")
        self._policy = policy
        self._states: list[CycleState] = []
        self._memory = memory
        self._draw = np.random.default_rng(seed)

    def reset(self) -> None:
        """Reset the policy; the states stay."""
        self._policy.reset()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the policy's choice for another state."""
        # The features are a view that the next cycle overwrites.
        kept = replace(state, features=state.features.clone())
        if len(self._states) < self._memory:
            self._states.append(kept)
        else:
            self._states[int(self._draw.integers(self._memory))] = kept
        return self._policy.choose(self._states[int(self._draw.integers(len(self._states)))])

    def observe(self, result: StepResult) -> None:
        """Pass the result on to the policy."""
        self._policy.observe(result)
