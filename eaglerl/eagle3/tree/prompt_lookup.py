"""Prompt lookup: drafts copied from where the last tokens of the text occurred before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_SHORTEST = 2


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

    Instead of searching the text in every cycle, the index enters each new token's n-grams of all
    lengths from 2 to `longest` into dictionaries: at most 15 entries by default, about 3 kB per
    token of text that does not repeat. A proposal then takes at most as many look-ups, however
    long the text is.
    """

    def __init__(self, token_ids: Iterable[int] = (), *, longest: int = 16) -> None:
        """Index a text.

        Args:
            token_ids: its tokens.
            longest: longest n-gram that is indexed; longer matches count as this long.

        Raises:
            ValueError: `longest` is below 2.
        """
        if longest < _SHORTEST:
            raise ValueError(f"longest must be at least {_SHORTEST}, got {longest}")
        self._longest = longest
        self._tokens: list[int] = []
        # By length: where each n-gram ended last, and where it ended before that. The n-gram at the
        # end of the text has its last occurrence there, so a proposal needs the one before.
        self._ends: list[dict[tuple[int, ...], tuple[int, int]]] = [
            {} for _ in range(longest - _SHORTEST + 1)
        ]
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The text."""
        return tuple(self._tokens)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens to the text."""
        tokens = self._tokens
        for token in token_ids:
            tokens.append(int(token))
            end = len(tokens)
            tail = tuple(tokens[-self._longest :])
            for length in range(_SHORTEST, len(tail) + 1):
                ends = self._ends[length - _SHORTEST]
                gram = tail[-length:]
                previous = ends.get(gram)
                ends[gram] = (end, 0 if previous is None else previous[0])

    def propose(self, max_tokens: int) -> Lookup:
        """Propose the tokens that followed the longest match.

        If the match is so close to the end that fewer than `max_tokens` tokens follow it, the
        proposal repeats them: a text that repeats itself is expected to continue to.

        Args:
            max_tokens: the most tokens to propose.
        """
        tokens = self._tokens
        tail = tuple(tokens[-self._longest :])
        best_length, best_end = 0, 0
        for length in range(_SHORTEST, len(tail) + 1):
            _, earlier = self._ends[length - _SHORTEST][tail[-length:]]
            # If an n-gram did not occur before, neither did a longer one that ends with it.
            if not earlier:
                break
            best_length, best_end = length, earlier
        if not best_length or max_tokens < 1:
            return NO_LOOKUP
        period = len(tokens) - best_end
        proposed = [tokens[best_end + index % period] for index in range(max_tokens)]
        return Lookup(best_length, tuple(proposed))


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of leading tokens that two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
