"""The index of a text's n-grams, against a search through the whole text."""

import random

import pytest

from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup


def search(tokens: list[int], longest: int, max_tokens: int) -> tuple[int, list[int]]:
    """The longest earlier match, the last of its occurrences, by trying all of them."""
    for length in range(min(longest, len(tokens) - 1), 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                text = list(tokens)
                for index in range(max_tokens):
                    text.append(text[end + index])
                return length, text[len(tokens) :]
    return 0, []


@pytest.mark.parametrize("alphabet", [2, 4, 12])
def test_it_finds_what_a_full_search_finds(alphabet: int) -> None:
    for seed in range(6):
        draw = random.Random(seed)
        tokens = [draw.randrange(alphabet) for _ in range(90)]
        index = ContextLookup(longest=6)
        for count in range(1, len(tokens) + 1):
            index.extend(tokens[count - 1 : count])
            match, proposed = index.propose(5)
            assert (match, list(proposed)) == search(tokens[:count], 6, 5)


def test_growing_and_building_at_once_are_the_same() -> None:
    tokens = [random.randrange(3) for _ in range(50)]
    grown = ContextLookup()
    for token in tokens:
        grown.extend([token])
    assert grown.propose(12) == ContextLookup(tokens).propose(12)
    assert len(grown) == 50


def test_no_match_and_no_room() -> None:
    assert ContextLookup([1, 2, 3]).propose(4) == NO_LOOKUP
    assert ContextLookup([]).propose(4) == NO_LOOKUP
    assert ContextLookup([1, 2, 1, 2]).propose(0) == NO_LOOKUP
    with pytest.raises(ValueError, match=r"longest must be in 2\.\.\d+, got 1"):
        ContextLookup(longest=1)
