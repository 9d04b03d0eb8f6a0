"""When a sequence ends: transformers' stopping rules, applied to every token of a cycle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from transformers import StopStringCriteria

FinishReason = Literal["stop", "stop_string", "length", "context"]


class StoppingRules:
    """Checks tokens one by one, so that a cycle which emits several ends where `generate` would.

    Attributes:
        limit: new tokens after which the sequence ends.
        finish_reason: why it ended; None while it goes on.
    """

    def __init__(
        self,
        *,
        eos_token_ids: Iterable[int],
        max_new_tokens: int,
        room: int,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer=None,
    ) -> None:
        """Set up the rules of one sequence.

        Args:
            eos_token_ids: tokens that end the sequence; the token itself is part of the output.
            max_new_tokens: new tokens asked for.
            room: new tokens that fit into the target's context.
            stop_strings: texts that end the sequence when the output's end contains one.
            tokenizer: needed for `stop_strings`.

        Raises:
            ValueError: `stop_strings` without a tokenizer.
        """
        self._eos = frozenset(eos_token_ids)
        self.limit = min(max_new_tokens, room)
        self._limit_reason: FinishReason = "length" if max_new_tokens <= room else "context"
        self._stop_strings = None
        if stop_strings:
            if tokenizer is None:
                raise ValueError("stop_strings need the target's tokenizer: pass tokenizer=...")
            self._stop_strings = StopStringCriteria(tokenizer, stop_strings)
        self.finish_reason: FinishReason | None = None

    def accept(self, sequence: list[int], prompt_length: int, new_ids: Sequence[int]) -> int:
        """How many of the new tokens belong to the output.

        Args:
            sequence: prompt and output so far, without `new_ids`.
            prompt_length: tokens of the prompt in `sequence`.
            new_ids: tokens that a cycle emitted.

        Returns:
            The number of tokens to keep; `finish_reason` is set if the sequence ends with them.
        """
        generated = len(sequence) - prompt_length
        for count, token in enumerate(new_ids, start=1):
            if token in self._eos:
                self.finish_reason = "stop"
            elif self._stop_strings is not None and self._ends_with_stop_string(
                [*sequence, *new_ids[:count]]
            ):
                self.finish_reason = "stop_string"
            elif generated + count >= self.limit:
                self.finish_reason = self._limit_reason
            if self.finish_reason is not None:
                return count
        return len(new_ids)

    def _ends_with_stop_string(self, sequence: list[int]) -> bool:
        # A token holds at least one character, so a longer tail cannot matter.
        tail = sequence[-self._stop_strings.maximum_token_len :]
        return bool(self._stop_strings(torch.tensor([tail]), None)[0])
