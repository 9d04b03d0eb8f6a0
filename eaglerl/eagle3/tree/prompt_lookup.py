"""Drafts looked up in the text itself: what followed the last tokens where they stood before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_SHORTEST = 2


class Lookup(NamedTuple):
    """A chain of drafted tokens.

    Attributes:
        match_length: tokens at the end of the text that stood there before; 0 for no match.
        token_ids: what followed them, the first drafted token first.
    """

    match_length: int
    token_ids: tuple[int, ...]


NO_LOOKUP = Lookup(0, ())


class ContextLookup:
    """An index of one text's n-grams that grows with it.

    Prompt lookup (as in transformers' ``prompt_lookup_num_tokens``): of the n-grams at the end of
    the text, the longest that occurred before, at least two tokens; of its earlier occurrences the
    last. A token costs a fixed number of dictionary entries, `longest` at most.
    """

    def __init__(self, token_ids: Iterable[int] = (), *, longest: int = 16) -> None:
        """Index a text.

        Args:
            token_ids: its tokens.
            longest: longest match that is told apart.

        Raises:
            ValueError: `longest` is below 2.
        """
        if longest < _SHORTEST:
            raise ValueError(f"longest must be at least {_SHORTEST}, got {longest}")
        self._longest = longest
        self._tokens: list[int] = []
        # End of the last occurrence of every n-gram, and of the one before, which is wanted when
        # the last one is the text's own end.
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
        """The chain that follows the longest match.

        Where the match is so late that the text ends before the chain does, the chain goes on with
        itself: text that repeats is expected to go on repeating.

        Args:
            max_tokens: longest chain.
        """
        tokens = self._tokens
        tail = tuple(tokens[-self._longest :])
        best_length, best_end = 0, 0
        for length in range(_SHORTEST, len(tail) + 1):
            _, earlier = self._ends[length - _SHORTEST][tail[-length:]]
            if not earlier:
                break
            best_length, best_end = length, earlier
        if not best_length or max_tokens < 1:
            return NO_LOOKUP
        period = len(tokens) - best_end
        chain = [tokens[best_end + index % period] for index in range(max_tokens)]
        return Lookup(best_length, tuple(chain))
