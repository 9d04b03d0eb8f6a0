"""The fixed tokens around the text that a target writes: those of its chat template, if any."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptPieces:
    """The tokens around the text of a prompt.

    Attributes:
        opening: token ids before it, at least one.
        turn_change: token ids between it and the answer; empty if the answer continues the text.
    """

    opening: Sequence[int]
    turn_change: Sequence[int]


class ChatTemplatePieces(PromptPieces):
    """The fixed tokens of a chat template around a user turn and before the answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        marker = "\x00"
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": marker}], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)  # tokenize=False
        opening, separator, turn_change = text.partition(marker)
        if not separator:
            raise ValueError(
                "the tokenizer's chat template does not contain the user's text verbatim"
            )
        super().__init__(
            tokenizer(opening, add_special_tokens=False).input_ids,
            tokenizer(turn_change, add_special_tokens=False).input_ids,
        )
        if not self.opening or not self.turn_change:
            raise ValueError("the tokenizer's chat template has no text around the user's turn")


def prompt_pieces(tokenizer: Any) -> PromptPieces:
    """Return the pieces of a target's prompts.

    A base model has no chat template: its prompt is the beginning of a text, its answer the
    continuation. A warning says so.

    Raises:
        ValueError: a chat template that does not keep the user's text, or a tokenizer without a
            template and without a token that begins a text.
    """
    if tokenizer.chat_template is not None:
        return ChatTemplatePieces(tokenizer)
    opening = list(tokenizer("").input_ids)
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if not opening and token is not None:
            opening = [token]
    if not opening:
        raise ValueError(
            "the target's tokenizer has no chat template, and neither a bos_token nor an eos_token "
            "to begin a text with; give it one of them"
        )
    warnings.warn(
        "the target's tokenizer has no chat template: prompts are beginnings of plain texts, and "
        "answers their continuations",
        stacklevel=3,
    )
    return PromptPieces(opening, [])
