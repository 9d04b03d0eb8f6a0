"""Policies to compare with: constants, bandits, tiers, draft confidence, and controls."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import ConstantPolicy, CycleState, TreeParams, TreePolicy
from eaglerl.eagle3.session import StepResult
from eaglerl.traces.oracle import constant_seconds, trace_tables
from eaglerl.traces.simulation import DraftProgress
from eaglerl.traces.trace_set import Trace


def best_constant(traces: Iterable[Trace], actions: ActionSpace, cost: CostTable) -> ConstantPolicy:
    """The tuned constant tree: the action with the most tokens per second on training traces.

    Raises:
        ValueError: no traces, or an action that a trace or the cost table does not know.
    """
    tables = trace_tables(traces, actions, cost)
    total = sum(constant_seconds(table) for table in tables)
    return ConstantPolicy(actions[int(total.argmin())])


class RandomPolicy:
    """A tree drawn evenly at every cycle: the control for having actions but no reason."""

    def __init__(self, actions: ActionSpace, seed: int = 0) -> None:
        self._actions = actions
        self._draw = np.random.default_rng(seed)

    def reset(self) -> None:
        """Nothing to forget: the draws go on."""

    def choose(self, state: CycleState) -> TreeParams:
        """Any action."""
        return self._actions[int(self._draw.integers(len(self._actions)))]

    def observe(self, result: StepResult) -> None:
        """Nothing to learn."""


class UCB1Policy:
    """UCB1 (Auer et al. 2002) over the actions, without a look at the state.

    An arm's value is the ratio of its tokens and seconds over the last `window` cycles, as a share
    of the best arm's; its index is value + c sqrt(2 ln n / n_arm). What was learned is kept from
    sequence to sequence.
    """

    def __init__(self, actions: ActionSpace, *, exploration: float = 0.1, window: int = 500):
        """Set up.

        Args:
            actions: the arms.
            exploration: c, the weight of the confidence bound.
            window: cycles that are remembered.

        Raises:
            ValueError: a window too short to try every action.
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
        """Nothing to forget."""

    def choose(self, state: CycleState) -> TreeParams:
        """The action with the largest index; one that was not tried first of all."""
        untried = np.flatnonzero(self._counts == 0)
        if len(untried):
            self._chosen = int(untried[0])
        else:
            rates = self._tokens / self._seconds
            bound = np.sqrt(2 * math.log(self._counts.sum()) / self._counts)
            self._chosen = int((rates / rates.max() + self._exploration * bound).argmax())
        return self._actions[self._chosen]

    def observe(self, result: StepResult) -> None:
        """Count the cycle for the arm that was chosen."""
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
    """Exp3 (Auer et al. 2002) over the actions: a bandit that assumes nothing of the rewards.

    The reward of a cycle is its tokens per second, as a share of the largest seen so far.
    """

    def __init__(self, actions: ActionSpace, *, gamma: float = 0.1, seed: int = 0) -> None:
        """Set up.

        Args:
            actions: the arms.
            gamma: share of even exploration, in (0, 1].
            seed: of the draws.

        Raises:
            ValueError: `gamma` outside its range.
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
        """(A,) probability of every action in the next cycle."""
        weights = np.exp(self._log_weights - self._log_weights.max())
        even = 1 / len(weights)
        return (1 - self._gamma) * weights / weights.sum() + self._gamma * even

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state: CycleState) -> TreeParams:
        """A draw."""
        self._chosen = int(self._draw.choice(len(self._actions), p=self.probabilities))
        return self._actions[self._chosen]

    def observe(self, result: StepResult) -> None:
        """Raise the weight of the arm by its reward over the probability that it had."""
        rate = len(result.token_ids) / result.seconds
        self._largest = max(self._largest, rate)
        reward = rate / self._largest / self.probabilities[self._chosen]
        self._log_weights[self._chosen] += self._gamma * reward / len(self._actions)


class TierPolicy:
    """Tiers by the acceptance length of late, as SGLang's ``--speculative-adaptive`` has them.

    An exponential average of the accepted tokens (alpha 0.2) is compared with the tiers' levels
    every `interval` cycles, after a warm-up: the wanted number of levels is its nearest whole
    number, and one. Going down needs a margin, so that the tier does not swing.
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
            down_margin: accepted tokens below the boundary at which the tier is left for a lower.

        Raises:
            ValueError: no tiers, or depths that do not ascend.
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
        """The same tiers for a sequence beside the one at work."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Begin in the middle, without an average."""
        self._tier = len(self._tiers) // 2
        self._average: float | None = None
        self._cycles = 0

    def choose(self, state: CycleState) -> TreeParams:
        """The tree of the current tier."""
        return self._tiers[self._tier]

    def observe(self, result: StepResult) -> None:
        """Update the average, and the tier when it is time."""
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
        lower, upper = (
            self._tier_of(self._average + self._down_margin),
            self._tier_of(self._average),
        )
        if upper > self._tier:
            self._tier = upper
        elif lower < self._tier:
            self._tier = lower

    def _tier_of(self, accepted: float) -> int:
        levels = round(accepted) + 1
        fitting = (i for i, tree in enumerate(self._tiers) if tree.depth + 1 >= levels)
        return next(fitting, len(self._tiers) - 1)


class DraftConfidencePolicy:
    """Grows the tree while the draft's own confidence promises more than it costs.

    The draft's probability of a node's path is taken as the probability that the path is accepted
    (as in EAGLE-2 and OPT-Tree), so that a tree's expected acceptance length is 1 + the sum over
    its nodes. A round is drafted, and a node verified, if that adds more than lambda times its
    time, where lambda is the running ratio of all tokens to all seconds. Needs no training.
    """

    def __init__(self, cost: CostTable, *, limit: TreeParams, temperature: float = 1.0) -> None:
        """Set up.

        Args:
            cost: time of draft passes and of verified rows.
            limit: the largest tree; its width is the tree's.
            temperature: of the path probabilities, exp(score / temperature); above 1 trusts the
                draft more, below 1 less.

        Raises:
            ValueError: a limit that drafts nothing, or a temperature that is not positive.
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
        """Nothing to forget: lambda goes on."""

    def choose(self, state: CycleState) -> TreeParams:
        """The limit."""
        return self._limit

    def observe(self, result: StepResult) -> None:
        """Update lambda."""
        self._tokens += len(result.token_ids)
        self._seconds += result.seconds

    def should_continue(self, progress: DraftProgress) -> bool:
        """Whether another round promises more than it costs.

        The gain of a round is not known before it is drafted; it is estimated from the last one:
        the share of the probability that survives from level to level is taken to stay.
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
        """The number of rows at which expected length less lambda times the time is largest."""
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
    """A policy that is shown the states of other cycles: the control for the worth of the state.

    It keeps the policy's mix of actions, but not their reason. States are drawn from those seen so
    far, of all sequences.
    """

    def __init__(self, policy: TreePolicy, *, memory: int = 1000, seed: int = 0) -> None:
        """Set up.

        Args:
            policy: the policy to control.
            memory: states that are kept.
            seed: of the draws.

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

    def choose(self, state: CycleState) -> TreeParams:
        """What the policy says to another state."""
        # Features are views that the next cycle overwrites.
        kept = replace(state, features=state.features.clone())
        if len(self._states) < self._memory:
            self._states.append(kept)
        else:
            self._states[int(self._draw.integers(self._memory))] = kept
        return self._policy.choose(self._states[int(self._draw.integers(len(self._states)))])

    def observe(self, result: StepResult) -> None:
        """Pass the result on."""
        self._policy.observe(result)
