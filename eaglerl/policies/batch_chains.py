"""The policy for engines that verify one chain of tokens per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eaglerl._ext import C
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup, common_length
from eaglerl.ops.limits import LARGEST_TREE


class ChainState(NamedTuple):
    """What is known of a sequence before a step.

    Attributes:
        slot: the sequence's slot.
        context_length: tokens of its text.
        lookup: what prompt lookup proposes.
        unread: tokens that the head's next pass reads of it.
        room: most tokens that the step may emit beside the bonus token.
    """

    slot: int
    context_length: int
    lookup: Lookup
    unread: int
    room: int


class Chain(NamedTuple):
    """The tokens of a sequence that a step verifies.

    Attributes:
        source: "head", "lookup", or "none".
        length: number of leading tokens of that source's chain.
    """

    source: str
    length: int


class BatchChainPolicy:
    """Decides what an engine drafts and verifies that takes one chain of tokens per sequence.

    Before a step it chooses whether the head drafts at all, after every pass whether another one
    pays, and at the end the number of verified tokens of each sequence and where they come from:
    the head, or the continuation of an earlier occurrence of the text's last tokens. The choice
    maximises the batch's expected tokens - rate * seconds, as in `BatchAutoPolicy`. A pass of the
    head has rows of all sequences, whether or not they need it.

    Acceptance and costs are learned while decoding. Both chains are compared with the emitted
    tokens, so the one that was not verified teaches as well.

    A step calls `plan`; if it says that the head drafts, `look` for every sequence after each pass,
    and `continues` once; then `select`, and `chain` for every sequence. After the engine's next
    pass it calls `observe` for every sequence, and `end_step`.

    Attributes:
        cost: what is known of the engine's costs.
        slots: most sequences.
        most_tokens: most tokens of a chain.
    """

    def __init__(self, slots: int, most_tokens: int, *, cost: OnlineCost | None = None) -> None:
        """Set up.

        Args:
            slots: most sequences in a step.
            most_tokens: most tokens of a chain, from either source.
            cost: costs that were learned before, see `chain_cost`; None to begin without knowledge.

        Raises:
            ValueError: `slots` or `most_tokens` is out of range, or `cost` lacks the rows.
        """
        if not 1 <= most_tokens <= LARGEST_TREE["depth"]:
            raise ValueError(
                f"most_tokens must be in 1..{LARGEST_TREE['depth']}, got {most_tokens}"
            )
        self.slots, self.most_tokens = slots, most_tokens
        self.cost = chain_cost(slots, most_tokens) if cost is None else cost
        rows = min(slots * (most_tokens + 1), self.cost.max_rows)
        self._native = C.OnlineBatch(
            C.OnlineAcceptance(most_tokens - 1, 1.0), 1, most_tokens - 1, most_tokens + 1,
            most_tokens, self.cost._native, slots, rows, True,
        )  # fmt: skip
        self._lookups = [NO_LOOKUP] * slots
        self._drafted: list[list[int]] = [[] for _ in range(slots)]
        self._scores: list[list[float]] = [[] for _ in range(slots)]
        self._context = [0] * slots
        self._undrafted = [-1] * slots
        self._sequences = 1  # of the last step

    @property
    def rate(self) -> float:
        """Tokens per second of the last 1,000 steps of as many sequences as the last one."""
        return self._native.mean_rate / self.cost._native.speed

    @property
    def row_price(self) -> float:
        """Tokens that the seconds of a verified row could yield, for some rows of each sequence."""
        verify = self.cost._native.verify()
        most = min(3 * self._sequences, len(verify))
        rows = most - self._sequences
        if rows <= 0:
            return 0.0
        return self._native.mean_rate * float(verify[most - 1] - verify[self._sequences - 1]) / rows

    def join(self, slot: int) -> None:
        """Begin a sequence: what was learned stays."""
        self._native.join(slot)

    def plan(self, states: Sequence[ChainState]) -> bool:
        """Begin a step.

        Args:
            states: at least one sequence.

        Returns:
            Whether the head drafts. If not, `chain` says how many looked-up tokens to verify.

        Raises:
            ValueError: a slot occurs twice or is out of range, or a number is negative.
        """
        entries = [
            (each.slot, each.context_length, each.lookup.match_length, len(each.lookup.token_ids),
             each.unread, each.room) for each in states
        ]  # fmt: skip
        plans = self._native.plan(entries)
        self._sequences = len(states)
        for each, tokens in zip(states, plans, strict=True):
            self._lookups[each.slot] = each.lookup
            self._context[each.slot] = each.context_length
            self._undrafted[each.slot] = tokens
            self._drafted[each.slot].clear()
            self._scores[each.slot].clear()
        return any(tokens < 0 for tokens in plans)

    def drafts(self, slot: int) -> bool:
        """Return whether the sequence is among those that the head drafts for."""
        return self._undrafted[slot] < 0

    def look(self, slot: int, token_id: int, logprob: float) -> None:
        """Take the token that a pass has drafted for a sequence.

        Args:
            slot: a sequence that drafts.
            token_id: the token.
            logprob: logarithm of its probability, given the tokens before it, under the head.

        Raises:
            ValueError: there are more than `most_tokens`, or `logprob` is no number.
        """
        drafted, scores = self._drafted[slot], self._scores[slot]
        drafted.append(token_id)
        scores.append((scores[-1] if scores else 0.0) + logprob)
        match_length, looked_up = self._lookups[slot]
        nodes = None
        if looked_up:
            equal = common_length(drafted, looked_up)
            nodes = np.full(len(drafted), -1, np.int64)
            nodes[:equal] = np.arange(equal)
        self._native.score(
            slot, np.asarray(scores, np.float32), len(drafted) - 1, self._context[slot],
            match_length, len(looked_up), nodes,
        )  # fmt: skip

    def continues(self) -> bool:
        """Return whether another pass promises more tokens than its time could yield otherwise."""
        return bool(self._native.decide())

    def select(self) -> None:
        """Choose the tokens of all sequences."""
        self._native.select()

    def chain(self, slot: int) -> Chain:
        """Return what the step verifies of a sequence beside its last token."""
        if self._undrafted[slot] >= 0:
            return _chain(0, self._undrafted[slot])
        nodes, looked_up = self._native.selection(slot)
        return _chain(len(nodes), looked_up)

    def observe(self, slot: int, token_ids: Sequence[int]) -> None:
        """Learn from what a step has emitted.

        Args:
            slot: a sequence of the step.
            token_ids: its new tokens, the bonus token included.

        Raises:
            ValueError: the sequence is not part of the step, or there are no tokens.
        """
        self._native.observe_chains(
            slot, self._drafted[slot], self._lookups[slot].token_ids, token_ids
        )

    def end_step(self, rows: int, draft_seconds: float, verify_seconds: float) -> None:
        """Learn the costs of a step, after `observe`.

        Args:
            rows: rows that the target verified, of all sequences.
            draft_seconds: time of the head's passes; 0 if it says nothing, for example because they
                read a prompt as well.
            verify_seconds: all other time of the step; 0 if it says nothing.

        Raises:
            ValueError: a number is out of range.
        """
        self._native.end_cycle(rows, verify_seconds, draft_seconds)


def _chain(drafted: int, looked_up: int) -> Chain:
    if looked_up > 0:
        return Chain("lookup", looked_up)
    return Chain("head", drafted) if drafted else Chain("none", 0)


def chain_cost(slots: int, most_tokens: int) -> OnlineCost:
    """Return costs without knowledge, for passes of 1, 2, 4, ... sequences.

    Args:
        slots: most sequences in a step.
        most_tokens: most tokens of a chain.
    """
    widths = tuple(1 << power for power in range(max(slots - 1, 0).bit_length() + 1))
    rows = max(min(slots * (most_tokens + 1), LARGEST_TREE["total_tokens"]), slots)
    return OnlineCost(widths, rows)
