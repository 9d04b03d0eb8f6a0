"""The control for the worth of the state, for policies that decide while the draft is at work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StepResult,
)


class ShuffledProgress:
    """A `SelectingPolicy` that is shown the drafts of other cycles.

    From another cycle it takes whether to draft on, how many candidates to verify, and how much of
    the looked-up chain; the candidates are then the draft's own best. So the mix of decisions stays
    about the same, and their reason is gone. Drafts are drawn from those of the last `memory`
    cycles, of all sequences.
    """

    def __init__(self, policy: SelectingPolicy, *, memory: int = 1000, seed: int = 0) -> None:
        """Set up.

        Args:
            policy: the policy to control.
            memory: cycles that are kept.
            seed: of the draws.
        """
        self._policy = policy
        self._memory = memory
        self._draw = np.random.default_rng(seed)
        self._cycles: list[list[DraftProgress]] = []
        self._current: list[DraftProgress] = []
        self._shown: list[DraftProgress] = []

    def reset(self) -> None:
        """Reset the policy; the drafts stay."""
        self._policy.reset()

    def choose(self, state: CycleState) -> DraftPlan:
        """The policy's limit."""
        self._begin()
        return self._policy.choose(state)

    def observe(self, result: StepResult) -> None:
        """Pass the result on."""
        self._policy.observe(result)

    def should_continue(self, progress: DraftProgress) -> bool:
        """What the policy says of another cycle's draft of the same depth."""
        return self._policy.should_continue(self._other(progress))

    def select(self, progress: DraftProgress) -> Selection:
        """As many of the best candidates, and as much of the chain, as of another cycle's."""
        other = self._policy.select(self._other(progress))
        # A child's score is never above its parent's and comes later: the best are a tree.
        best = np.argsort(-progress.scores, kind="stable")[: len(other.nodes)]
        return Selection(np.sort(best), min(other.lookup_tokens, len(progress.lookup.token_ids)))

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _other(self, progress: DraftProgress) -> DraftProgress:
        """Another cycle's draft of the same depth; this one's while there is no other."""
        depth = progress.depth
        if len(self._current) == depth:
            # Its scores are a view that the next pass overwrites.
            self._current.append(replace(progress, scores=progress.scores.copy()))
        if len(self._shown) <= depth:
            deep = [cycle for cycle in self._cycles if len(cycle) > depth]
            self._shown = deep[self._draw.integers(len(deep))] if deep else self._current
            # The policy judges a cycle pass by pass.
            for earlier in self._shown[:depth]:
                self._policy.should_continue(earlier)
        return self._shown[depth]

    def _begin(self) -> None:
        """Put the cycle before among those to draw from."""
        if self._current and len(self._cycles) < self._memory:
            self._cycles.append(self._current)
        elif self._current:
            self._cycles[self._draw.integers(self._memory)] = self._current
        self._current, self._shown = [], []
