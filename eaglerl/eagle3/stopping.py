"""When a sequence ends: transformers' stopping rules, applied to every token of a cycle."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

FinishReason = Literal["stop", "stop_string", "criteria", "length", "context"]


def read_token_ids(value: Any, name: str) -> list[int]:
    """The token ids in any form in which a user or a file may name them.

    Args:
        value: None, an integer of Python, numpy or torch, or an iterable of them, such as a tensor.
        name: what the message calls it.

    Returns:
        The ids in their order; none for None.

    Raises:
        ValueError: anything else, or a negative id.
    """
    if value is None:
        return []
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        value = [value]
    ids = []
    for item in value:
        if isinstance(item, torch.Tensor | np.generic) and item.ndim == 0:
            item = item.item()
        if not isinstance(item, int) or isinstance(item, bool) or item < 0:
            raise ValueError(f"{name} must be token ids, integers of 0 or more, got {item!r}")
        ids.append(item)
    return ids


_STOP_STRINGS = threading.Lock()


def check_stop_strings(stop_strings: object) -> None:
    """Make sure that stop strings can stop anything; None, and a list of none, are fine.

    Raises:
        TypeError: what is neither text nor a list of texts.
        ValueError: an empty text, at which every sequence would end.
    """
    if stop_strings is None:
        return
    texts = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise TypeError(f"stop_strings must be a text or a list of texts, got {stop_strings!r}")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"stop_strings must be texts, got {text!r}")
        if not text:
            raise ValueError("stop_strings must not hold an empty text, which ends everywhere")


class StoppingRules:
    """Checks tokens one by one, so that a cycle which emits several ends where `generate` would.

    Attributes:
        limit: new tokens after which the sequence ends.
        finish_reason: why it ended; None while it goes on.
    """

    def __init__(
        self,
        *,
        eos_token_ids: Any,
        max_new_tokens: int,
        room: int,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        criteria: Sequence[StoppingCriteria] = (),
        padding: Sequence[int] = (),
    ) -> None:
        """Set up the rules of one sequence.

        Args:
            eos_token_ids: tokens that end the sequence, see `read_token_ids`; the token itself is
                part of the output.
            max_new_tokens: new tokens asked for.
            room: new tokens that fit into the target's context.
            stop_strings: texts that end the sequence when the output's end contains one.
            tokenizer: needed for `stop_strings`.
            criteria: transformers' stopping criteria. Each is called once for every new token in
                turn, with the sequence up to it, (1, L) ids on the CPU.
            padding: tokens that criteria are shown before the prompt.

        Raises:
            ValueError: `stop_strings` without a tokenizer, or ids that are none.
        """
        self._eos = frozenset(read_token_ids(eos_token_ids, "eos_token_id"))
        self.limit = min(max_new_tokens, room)
        self._limit_reason: FinishReason = "length" if max_new_tokens <= room else "context"
        self._stop_strings: StopStringCriteria | None = None
        check_stop_strings(stop_strings)
        if stop_strings:
            if tokenizer is None:
                raise ValueError("stop_strings need the target's tokenizer: pass tokenizer=...")
            # It keeps what it has found out of a vocabulary in a dict of all threads.
            with _STOP_STRINGS:
                self._stop_strings = StopStringCriteria(
                    tokenizer, stop_strings if isinstance(stop_strings, str) else [*stop_strings]
                )
        self._criteria = StoppingCriteriaList(criteria)
        self._padding = list(padding)
        self._judged = 0
        self.finish_reason: FinishReason | None = None

    @property
    def reads_text(self) -> bool:
        """Whether anything but the last token and the length ends a sequence."""
        return bool(self._criteria) or self._stop_strings is not None

    def ends(self, sequence: Sequence[int], prompt_length: int) -> bool:
        """Judge the last token of a sequence; every new token is judged once, in turn.

        Args:
            sequence: prompt and output, at least one token of it.
            prompt_length: tokens of the prompt in `sequence`.

        Returns:
            Whether the sequence ends with it; `finish_reason` says why.
        """
        self._judged = len(sequence) - prompt_length
        # First, for criteria may count their calls.
        stopped = bool(self._criteria) and self._criteria_say_so(sequence)
        if sequence[-1] in self._eos:
            self.finish_reason = "stop"
        elif self._stop_strings and self._ends_with_stop_string(self._stop_strings, sequence):
            self.finish_reason = "stop_string"
        elif stopped:
            self.finish_reason = "criteria"
        elif self._judged >= self.limit:
            self.finish_reason = self._limit_reason
        return self.finish_reason is not None

    def accept(self, sequence: list[int], prompt_length: int, new_ids: Sequence[int]) -> int:
        """How many of the new tokens belong to the output.

        Args:
            sequence: prompt and output so far, without `new_ids`.
            prompt_length: tokens of the prompt in `sequence`.
            new_ids: tokens that a cycle emitted; those that `ends` was told of before are not
                judged again.

        Returns:
            The number of tokens to keep; `finish_reason` is set if the sequence ends with them.
        """
        start = len(sequence) - prompt_length
        known = max(0, min(self._judged - start, len(new_ids)))
        if self.finish_reason is not None:
            return known
        longer = [*sequence, *new_ids[:known]]
        for count in range(known, len(new_ids)):
            longer.append(new_ids[count])
            if self.ends(longer, prompt_length):
                return count + 1
        return len(new_ids)

    def _criteria_say_so(self, sequence: Sequence[int]) -> bool:
        ids = torch.tensor([[*self._padding, *sequence]])
        return bool(self._criteria(ids, None).all())

    def _ends_with_stop_string(self, criteria: StopStringCriteria, sequence: Sequence[int]) -> bool:
        # A token holds at least one character, so a longer tail cannot matter.
        longest = criteria.maximum_token_len
        if len(sequence) < longest:
            sequence = [*self._padding, *sequence]
        tail = sequence[-longest:]
        return bool(criteria(torch.tensor([tail]), None)[0])
