"""Control for staged policies: decisions from the drafts of other cycles."""

from __future__ import annotations

from dataclasses import replace
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


class _Policy(TreePolicy, SelectingPolicy, Protocol):
    """A policy that names the nodes to verify."""


class ShuffledProgress:
    """A `SelectingPolicy` that is shown the drafts of other cycles.

    Another cycle's draft decides whether to draft another round, how many candidates and how many
    looked-up tokens to verify; the candidates are then the best ones of this cycle's draft. The mix
    of decisions stays about the same, but they no longer depend on this cycle. Drafts are drawn
    from up to `memory` earlier cycles of all sequences.
    """

    def __init__(self, policy: _Policy, *, memory: int = 1000, seed: int = 0) -> None:
        """Set up.

        Args:
            policy: the policy to control.
            memory: number of cycles that are kept.
            seed: seed of the random draws.
        """
        self._policy = policy
        self._memory = memory
        self._draw = np.random.default_rng(seed)
        self._cycles: list[list[DraftProgress]] = []
        self._current: list[DraftProgress] = []
        self._shown: list[DraftProgress] = []

    def reset(self) -> None:
        """Reset the policy; the kept drafts stay."""
        self._policy.reset()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the policy's limit."""
        self._begin()
        return self._policy.choose(state)

    def observe(self, result: StepResult) -> None:
        """Pass the result on."""
        self._policy.observe(result)

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return the policy's decision for another cycle's draft of the same depth."""
        return self._policy.should_continue(self._other(progress))

    def select(self, progress: DraftProgress) -> Selection:
        """Select as many of the best candidates and looked-up tokens as for another cycle."""
        other = self._policy.select(self._other(progress))
        # A child's score is at most its parent's, and children come later: the best form a tree.
        best = np.argsort(-progress.scores, kind="stable")[: len(other.nodes)]
        return Selection(np.sort(best), min(other.lookup_tokens, len(progress.lookup.token_ids)))

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the number of rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _other(self, progress: DraftProgress) -> DraftProgress:
        """Return another cycle's draft of the same depth, or this one's while there is no other."""
        depth = progress.depth
        if len(self._current) == depth:
            # Its scores are a view that the next pass overwrites.
            self._current.append(replace(progress, scores=progress.scores.copy()))
        if len(self._shown) <= depth:
            deep = [cycle for cycle in self._cycles if len(cycle) > depth]
            self._shown = deep[self._draw.integers(len(deep))] if deep else self._current
            # The policy scores a cycle pass by pass.
            for earlier in self._shown[:depth]:
                self._policy.should_continue(earlier)
        return self._shown[depth]

    def _begin(self) -> None:
        """Add the previous cycle to those that are drawn from."""
        if self._current and len(self._cycles) < self._memory:
            self._cycles.append(self._current)
        elif self._current:
            self._cycles[self._draw.integers(self._memory)] = self._current
        self._current, self._shown = [], []
