"""Tokens to text as they come, and the texts that end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalText:
    """Decodes one token after another; what it gives adds up to the text of all of them.

    A character may take several tokens, and a token's text may depend on the one before. So the
    text of the last tokens is decoded anew with their predecessors, and a character that is not
    complete is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start an empty text.

        Args:
            tokenizer: of transformers.
        """
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Text is decoded from here on; what comes before `_read` is complete.
        self._context = 0
        self._read = 0
        self._sent = 0

    def push(self, token_id: int) -> str:
        """Add a token; the text that is complete with it."""
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
        """What was held back."""
        piece = self._decode(self._context)[self._sent :]
        self._sent += len(piece)
        return piece

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(
            self._ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopTexts:
    """Lets text pass up to the first of some texts, which may be cut anywhere in between.

    Attributes:
        found: whether one of them came.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Set up.

        Args:
            texts: none of them empty.
        """
        self._texts = tuple(texts)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text; what of it surely stands before the first stop text."""
        text = self._held + piece
        places = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, as no stop text came of it."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
