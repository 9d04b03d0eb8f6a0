"""How the two endpoints write answers: whole, in chunks of a stream, with log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eaglerl.server.text import PlacedToken, TokenTexts

#: What OpenAI's API writes for a token that is out of the question.
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Shape:
    """How an endpoint writes an answer.

    Attributes:
        prefix: of its id.
        object: kind of the whole answer.
        chunk: kind of a streamed part.
        choice: makes a choice of the whole answer of its text.
        delta: makes a choice of a streamed part of its text.
        opening: what a stream's first choice holds besides; None for no such choice.
        logprobs: writes log-probabilities of tokens.
    """

    prefix: str
    object: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    logprobs: Callable[[Sequence[PlacedToken], TokenTexts], dict[str, Any]]


def _chat_logprobs(placed: Sequence[PlacedToken], texts: TokenTexts) -> dict[str, Any]:
    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, held = texts.of(token_id)
        return {"token": text, "logprob": max(logprob, _LEAST_LOGPROB), "bytes": held}

    content = [
        entry(token.token_id, token.logprob)
        | {"top_logprobs": [entry(token_id, logprob) for token_id, logprob in token.top]}
        for _, token in placed
    ]
    return {"content": content, "refusal": None}


def _text_logprobs(placed: Sequence[PlacedToken], texts: TokenTexts) -> dict[str, Any]:
    def name(token_id: int) -> str:
        text, held = texts.of(token_id)
        # Bytes that are no characters.
        return f"bytes:{text}" if held is not None and bytes(held) != text.encode() else text

    tokens = [token for _, token in placed]
    return {
        "tokens": [name(token.token_id) for token in tokens],
        "token_logprobs": [max(token.logprob, _LEAST_LOGPROB) for token in tokens],
        "top_logprobs": [
            {
                name(token_id): max(logprob, _LEAST_LOGPROB)
                for token_id, logprob in (*token.top, (token.token_id, token.logprob))
            }
            for token in tokens
        ],
        "text_offset": [place for place, _ in placed],
    }


CHAT = Shape(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
    _chat_logprobs,
)
TEXT = Shape(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
    _text_logprobs,
)
