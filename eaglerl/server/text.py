"""Incremental decoding of tokens to text, and detection of stop texts."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from eaglerl.eagle3.continuation import Continuation
from eaglerl.eagle3.logprobs import TokenLogprobs

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_TOKENS_KEPT = 65_536

#: The offset of a token's first character in the answer's text, and the token.
PlacedToken = tuple[int, TokenLogprobs]


class IncrementalText:
    """Incremental decoder; the pieces that it returns join to the text of all tokens.

    A character may take several tokens, and a token's text may depend on the previous token. The
    last tokens are therefore decoded again together with their predecessors, and an incomplete
    character is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start with an empty text.

        Args:
            tokenizer: a tokenizer of transformers.
        """
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Tokens are decoded from `_context` on; the text of those before `_read` is complete.
        self._context = 0
        self._read = 0
        self._sent = 0

    def push(self, token_id: int) -> str:
        """Add a token and return the text that it completes."""
        self._ids.append(token_id)
        text = self._decode(self._context)
        complete = text.rstrip(_REPLACEMENT)
        piece = complete[self._sent :]
        self._sent += len(piece)
        if len(complete) == len(text):
            self._context, self._read = self._read, len(self._ids)
            self._sent = len(self._decode(self._context))
        return piece

    def finish(self) -> str:
        """Return the text that was held back."""
        piece = self._decode(self._context)[self._sent :]
        self._sent += len(piece)
        return piece

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopTexts:
    """A filter that passes text up to the first stop text, which may be split between pieces.

    Attributes:
        found: whether a stop text was found.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Set up.

        Args:
            texts: the stop texts, none of them empty.
        """
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text and return what certainly precedes the first stop text."""
        text = self._held + piece
        places = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Return the text that was held back: it did not become a stop text."""
        text, self._held = self._held, ""
        return text


class AnswerText:
    """The text of an answer up to its end, and the log-probabilities of the tokens in it.

    Attributes:
        tokens: number of tokens so far, those of a stop text or an end token included.
        finish_reason: "stop" or "length"; None until the answer ends.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        """Start with an empty text.

        Args:
            tokenizer: a tokenizer of transformers.
            stops: texts that end the answer and are not part of it.
        """
        self._text = IncrementalText(tokenizer)
        self._stops = StopTexts(stops)
        self.tokens = 0
        self.finish_reason: str | None = None
        self._piece = ""
        # Characters that were decoded, and those of them that were passed on.
        self._decoded = 0
        self._passed = 0
        # Tokens whose first character has not been passed on yet.
        self._held: deque[PlacedToken] = deque()

    def push(self, token_ids: Sequence[int], continuation: Continuation) -> None:
        """Add the tokens that a sequence has just emitted; the answer may end with them."""
        logprobs = continuation.logprobs[-len(token_ids) :]
        for place, token in enumerate(token_ids):
            self.tokens += 1
            if logprobs:
                self._held.append((self._decoded, logprobs[place]))
            self._add(self._text.push(token))
            if self._stops.found:
                self.finish_reason = "stop"
                return
        if continuation.finish_reason is None:
            return
        if continuation.finish_reason == "stop" and self._held:
            # The end token is not part of the text.
            self._held.pop()
        self._add(self._text.finish())
        if not self._stops.found:
            self._pass(self._stops.finish())
        stopped = self._stops.found or continuation.finish_reason not in ("length", "context")
        self.finish_reason = "stop" if stopped else "length"

    def take(self) -> tuple[str, tuple[PlacedToken, ...]]:
        """Return the text passed on since the last call, and the tokens that begin in it."""
        piece, self._piece = self._piece, ""
        begun: list[PlacedToken] = []
        # At an end without a stop text, all tokens are returned, even those without text.
        whole = self.finish_reason is not None and not self._stops.found
        while self._held and (whole or self._held[0][0] < self._passed):
            begun.append(self._held.popleft())
        return piece, tuple(begun)

    def _add(self, text: str) -> None:
        self._decoded += len(text)
        self._pass(self._stops.push(text))

    def _pass(self, text: str) -> None:
        self._piece += text
        self._passed += len(text)


class TokenTexts:
    """Texts of single tokens, for log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        """Set up.

        Args:
            tokenizer: a tokenizer of transformers.
        """
        self._tokenizer = tokenizer
        self._byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
        self.of = lru_cache(_TOKENS_KEPT)(self._of)

    def _of(self, token_id: int) -> tuple[str, list[int] | None]:
        """Return the text of a token and its bytes.

        If a token holds only a part of a character, its text is its bytes, written as in OpenAI's
        API, ``\\xf0\\x9f``. The bytes are None if unknown.
        """
        text = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if _REPLACEMENT not in text:
            return text, list(text.encode())
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        single = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
        if single:
            held = [int(single[1], 16)]
        elif all(char in self._byte_of for char in token):
            held = [self._byte_of[char] for char in token]
        else:
            return text, None
        return "".join(f"\\x{byte:02x}" for byte in held), held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
