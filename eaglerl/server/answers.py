"""The formats of answers of the two endpoints: whole, streamed, and with log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eaglerl.server.text import PlacedToken, TokenTexts

#: What OpenAI's API writes for a token of probability 0.
_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Shape:
    """The answer format of an endpoint.

    Attributes:
        prefix: prefix of an answer's id.
        object: value of "object" in a whole answer.
        chunk: value of "object" in a chunk of a stream.
        choice: makes the choice of a whole answer from its text.
        delta: makes the choice of a chunk from its text.
        opening: content of the first choice of a stream; None if there is no such choice.
        logprobs: formats log-probabilities of tokens.
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
        # Bytes that are not a whole character.
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
