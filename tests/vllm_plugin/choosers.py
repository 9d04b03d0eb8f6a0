"""Policies whose choices depend on nothing that is measured."""

from __future__ import annotations

import random
from collections.abc import Sequence

from eaglerl_vllm.fixed_chains import FixedChains

from eaglerl.policies.batch_chains import Chain, ChainState


class RandomChains(FixedChains):
    """Pauses, passes, sources and lengths by chance."""

    def __init__(self, slots: int, tokens: int) -> None:
        """Set up."""
        super().__init__(slots, tokens)
        self._random = random.Random(0)
        self._found: dict[int, int] = {}
        self._drafting = False

    def plan(self, states: Sequence[ChainState]) -> bool:
        """Draft in half of the steps."""
        super().plan(states)
        self._found = {state.slot: len(state.lookup.token_ids) for state in states}
        self._drafting = self._random.random() < 0.5
        return self._drafting

    def drafts(self, slot: int) -> bool:
        """Return whether the head drafts."""
        return self._drafting

    def continues(self) -> bool:
        """Go on in most cases."""
        super().continues()
        return self._random.random() < 0.7

    def chain(self, slot: int) -> Chain:
        """Take any part of any chain."""
        if self._found[slot] and self._random.random() < 0.5:
            return Chain("lookup", self._random.randint(0, self._found[slot]))
        if not self._drafting:
            return Chain("none", 0)
        return Chain("head", self._random.randint(0, self._drafted[slot]))


class EverySecondStep(FixedChains):
    """Drafts in every second step, and verifies all of it."""

    def __init__(self, slots: int, tokens: int) -> None:
        """Set up."""
        super().__init__(slots, tokens)
        self._drafting = False

    def plan(self, states: Sequence[ChainState]) -> bool:
        """Draft in every second step."""
        super().plan(states)
        self._drafting = not self._drafting
        return self._drafting

    def drafts(self, slot: int) -> bool:
        """Return whether the head drafts."""
        return self._drafting

    def chain(self, slot: int) -> Chain:
        """Take what was drafted."""
        return Chain("head", self._drafted[slot]) if self._drafting else Chain("none", 0)
