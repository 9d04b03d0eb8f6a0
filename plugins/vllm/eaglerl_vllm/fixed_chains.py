"""The head's chain of one length in every step: what vLLM does without a policy."""

from __future__ import annotations

from collections.abc import Sequence

from eaglerl.policies.batch_chains import Chain, ChainState


class FixedChains:
    """Takes the methods of `BatchChainPolicy` and chooses nothing.

    With it, the plugin's own time can be measured against vLLM without the plugin.
    """

    rate = row_price = 0.0

    def __init__(self, slots: int, tokens: int) -> None:
        """Set up for so many sequences, with chains of `tokens` tokens."""
        self._tokens = tokens
        self._passes = 0
        self._drafted = [0] * slots

    def join(self, slot: int) -> None:
        """Begin a sequence."""

    def plan(self, states: Sequence[ChainState]) -> bool:
        """Begin a step."""
        self._passes = 0
        for state in states:
            self._drafted[state.slot] = 0
        return self._tokens > 0

    def drafts(self, slot: int) -> bool:
        """Return whether the head drafts for a sequence."""
        return self._tokens > 0

    def look(self, slot: int, token_id: int, logprob: float) -> None:
        """Count the token that a pass has drafted."""
        self._drafted[slot] += 1

    def continues(self) -> bool:
        """Return whether the chains are shorter than they should be."""
        self._passes += 1
        return self._passes < self._tokens

    def select(self) -> None:
        """Take everything."""

    def chain(self, slot: int) -> Chain:
        """Return all of a sequence's chain."""
        return Chain("head", self._drafted[slot])

    def observe(self, slot: int, token_ids: Sequence[int]) -> None:
        """Learn nothing."""

    def end_step(self, rows: int, draft_seconds: float, verify_seconds: float) -> None:
        """Learn nothing."""
