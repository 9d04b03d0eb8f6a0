"""Policies with a clock around each of their calls."""

from __future__ import annotations

import time

from eaglerl.eagle3.params import (
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StagedPolicy,
    StepResult,
    TreeParams,
    TreePolicy,
)


class TimedPolicy:
    """A policy whose calls are timed, cycle by cycle.

    Attributes:
        around: per cycle of the sequence, seconds of the calls before and after it.
        within: per cycle, seconds of the calls between the draft's passes; they are part of the
            cycle's drafting time.
    """

    def __init__(self, policy: TreePolicy) -> None:
        """Put the clock around a policy."""
        self._policy = policy
        self.around: list[float] = []
        self.within: list[float] = []

    def reset(self) -> None:
        """Begin a sequence."""
        self.around.clear()
        self.within.clear()
        self._policy.reset()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """The policy's choice."""
        started = time.perf_counter()
        choice = self._policy.choose(state)
        self.around.append(time.perf_counter() - started)
        self.within.append(0.0)
        return choice

    def observe(self, result: StepResult) -> None:
        """Pass the result on."""
        started = time.perf_counter()
        self._policy.observe(result)
        self.around[-1] += time.perf_counter() - started


class TimedStagedPolicy(TimedPolicy):
    """A `TimedPolicy` that also decides while the draft is at work."""

    def goes_on(self, progress: DraftProgress) -> bool:
        """The policy's answer."""
        started = time.perf_counter()
        answer = self._policy.goes_on(progress)
        self.within[-1] += time.perf_counter() - started
        return answer

    def rows(self, progress: DraftProgress) -> int:
        """The policy's answer."""
        started = time.perf_counter()
        answer = self._policy.rows(progress)
        self.within[-1] += time.perf_counter() - started
        return answer


class TimedSelectingPolicy(TimedStagedPolicy):
    """A `TimedStagedPolicy` that names the nodes itself."""

    def select(self, progress: DraftProgress) -> Selection:
        """The policy's answer."""
        started = time.perf_counter()
        answer = self._policy.select(progress)
        self.within[-1] += time.perf_counter() - started
        return answer


def timed(policy: TreePolicy) -> TimedPolicy:
    """Put a clock around a policy, with the methods that the decoding loop looks for in it."""
    if isinstance(policy, SelectingPolicy):
        return TimedSelectingPolicy(policy)
    if isinstance(policy, StagedPolicy):
        return TimedStagedPolicy(policy)
    return TimedPolicy(policy)
