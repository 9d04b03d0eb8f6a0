"""The end of a sequence: transformers' stopping rules, applied to every token of a cycle."""

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
    """Read token ids in any form in which a user or a file gives them.

    Args:
        value: None, an integer of Python, numpy or torch, or an iterable of integers, such as a
            tensor.
        name: name of the argument in the message.

    Returns:
        The ids in their order; an empty list for None.

    Raises:
        ValueError: `value` is anything else, or an id is negative.
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
    """Check stop strings; None and an empty list are allowed.

    Raises:
        TypeError: `stop_strings` is neither a text nor a list of texts.
        ValueError: a text is empty: every sequence would end at once.
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
    """The stopping rules of one sequence, applied token by token.

    A cycle may emit several tokens; the sequence ends at the one where transformers' `generate`
    would end it.

    Attributes:
        limit: number of new tokens at which the sequence ends.
        finish_reason: why the sequence ended; None if it has not.
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
            eos_token_ids: tokens that end the sequence and belong to the output, in a form that
                `read_token_ids` takes.
            max_new_tokens: most new tokens that the caller wants.
            room: number of new tokens that fit into the target's context.
            stop_strings: texts that end the sequence when they appear at its end.
            tokenizer: needed for `stop_strings`.
            criteria: transformers' stopping criteria. Each is called once per new token, in order,
                with the sequence up to that token as (1, L) ids on the CPU.
            padding: tokens that criteria see before the prompt.

        Raises:
            ValueError: `stop_strings` are given without a tokenizer, or an id is no token id.
        """
        self._eos = frozenset(read_token_ids(eos_token_ids, "eos_token_id"))
        self.limit = min(max_new_tokens, room)
        self._limit_reason: FinishReason = "length" if max_new_tokens <= room else "context"
        self._stop_strings: StopStringCriteria | None = None
        check_stop_strings(stop_strings)
        if stop_strings:
            if tokenizer is None:
                raise ValueError("stop_strings need the target's tokenizer: pass tokenizer=...")
            # transformers caches what it computes for a vocabulary in one dict for all threads.
            with _STOP_STRINGS:
                self._stop_strings = StopStringCriteria(
                    tokenizer, stop_strings if isinstance(stop_strings, str) else [*stop_strings]
                )
        self._criteria = StoppingCriteriaList(criteria)
        self._padding = list(padding)
        self._checked = 0
        self.finish_reason: FinishReason | None = None

    @property
    def reads_text(self) -> bool:
        """Whether a rule needs the text: any other than end-of-sequence tokens and the length."""
        return bool(self._criteria) or self._stop_strings is not None

    @property
    def has_criteria(self) -> bool:
        """Whether there are stopping criteria, which may remember what they have seen."""
        return bool(self._criteria)

    def ends(self, sequence: Sequence[int], prompt_length: int) -> bool:
        """Check the last token of a sequence. Every new token is checked once, in order.

        Args:
            sequence: prompt and output, with at least one token of output.
            prompt_length: number of prompt tokens in `sequence`.

        Returns:
            Whether the sequence ends with the token; `finish_reason` says why.
        """
        self._checked = len(sequence) - prompt_length
        # Before all other rules, so that criteria are called for every token: they may count.
        stopped = bool(self._criteria) and self._criteria_say_so(sequence)
        if sequence[-1] in self._eos:
            self.finish_reason = "stop"
        elif self._stop_strings and self._ends_with_stop_string(self._stop_strings, sequence):
            self.finish_reason = "stop_string"
        elif stopped:
            self.finish_reason = "criteria"
        elif self._checked >= self.limit:
            self.finish_reason = self._limit_reason
        return self.finish_reason is not None

    def accept(self, sequence: list[int], prompt_length: int, new_ids: Sequence[int]) -> int:
        """Count the new tokens that belong to the output.

        Args:
            sequence: prompt and output so far, without `new_ids`.
            prompt_length: number of prompt tokens in `sequence`.
            new_ids: tokens that a cycle emitted. Those that `ends` has checked already, during the
                verification, are not checked again.

        Returns:
            The number of tokens to keep; `finish_reason` is set if the sequence ends with them.
        """
        start = len(sequence) - prompt_length
        known = max(0, min(self._checked - start, len(new_ids)))
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
        # A token has at least one character, so a stop string spans at most this many tokens.
        longest = criteria.maximum_token_len
        if len(sequence) < longest:
            sequence = [*self._padding, *sequence]
        tail = sequence[-longest:]
        return bool(criteria(torch.tensor([tail]), None)[0])
