"""Prompt lookup: drafts copied from where the last tokens of the text occurred before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from eaglerl._ext import C


class Lookup(NamedTuple):
    """Looked-up tokens.

    Attributes:
        match_length: length of the n-gram at the end of the text that occurred before; 0 for none.
        token_ids: the tokens that followed it there, the first drafted token first.
    """

    match_length: int
    token_ids: tuple[int, ...]


NO_LOOKUP = Lookup(0, ())


class ContextLookup:
    """An index of one text's n-grams that grows with it.

    Prompt lookup, as with transformers' ``prompt_lookup_num_tokens``: of the n-grams at the end of
    the text, at least two tokens long, it takes the longest one that occurred before, and of its
    earlier occurrences the last one.

    Instead of searching the text in every cycle, the index knows where the two tokens at each place
    occurred before: about 30 bytes per token. A proposal compares the occurrences of the text's
    last two tokens until one matches over `longest` tokens.
    """

    def __init__(self, token_ids: Iterable[int] = (), *, longest: int = 16) -> None:
        """Index a text.

        Args:
            token_ids: its tokens.
            longest: longest match, at least 2; longer ones count as this long.

        Raises:
            ValueError: `longest` is out of range.
        """
        self._index = C.NgramIndex(longest)
        self.extend(token_ids)

    def __len__(self) -> int:
        return self._index.length

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The text."""
        return self._index.token_ids()

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text.

        Raises:
            ValueError: the text would have more than 2^30 tokens.
        """
        self._index.extend(token_ids if isinstance(token_ids, list) else list(token_ids))

    def propose(self, max_tokens: int) -> Lookup:
        """Propose the tokens that followed the longest match.

        If the match is so close to the end that fewer than `max_tokens` tokens follow it, the
        proposal repeats them: a text that repeats itself is expected to continue to.

        Args:
            max_tokens: the most tokens to propose.
        """
        match_length, token_ids = self._index.propose(max_tokens)
        return Lookup(match_length, token_ids) if match_length else NO_LOOKUP


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of leading tokens that two sequences share."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
