"""`PrefixCache` against a list of all texts, whose rows are numbered."""

from __future__ import annotations

import random

import pytest
import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.cache.prefix_cache import BLOCK_ROWS, PrefixCache

CAPACITY, WIDTH = 400, 6


def row_of(token_ids: list[int], position: int) -> float:
    """A number that depends on a token and all before it, exact in float32."""
    return float(hash(tuple(token_ids[: position + 1])) % (1 << 20))


class Caches:
    """The caches of two slots, filled as by passes over a text, and prefixes of them."""

    def __init__(self, max_tokens: int, *, drafts: bool = True) -> None:
        self.target = KVCache(3, 2, 4, CAPACITY, slots=2)
        self.draft = KVCache(1, 1, 8, CAPACITY, slots=2) if drafts else None
        self.prefixes = PrefixCache(max_tokens, self.target, self.draft, WIDTH if drafts else 0)

    def empty(self, slot: int) -> None:
        for cache in (self.target, self.draft):
            if cache is not None:
                cache.truncate(0, slot)
                cache.data[slot] = -1.0

    def fill(self, token_ids: list[int], slot: int) -> None:
        """Write the rows of a text: the draft's row of a token depends on the next one."""
        self.empty(slot)
        for position in range(len(token_ids)):
            self.target.data[slot, ..., position, :] = row_of(token_ids, position)
        self.target.advance(len(token_ids), slot)
        if self.draft is not None:
            for position in range(len(token_ids) - 1):
                self.draft.data[slot, ..., position, :] = row_of(token_ids, position + 1)
            self.draft.advance(max(len(token_ids) - 1, 0), slot)

    def store(self, token_ids: list[int], slot: int = 0) -> None:
        self.fill(token_ids, slot)
        width = WIDTH if self.draft is not None else 0
        features = {
            position: torch.full((width,), row_of(token_ids, position))
            for position in range(BLOCK_ROWS - 1, len(token_ids), BLOCK_ROWS)
        }
        self.prefixes.store(token_ids, slot, features)

    def check(self, token_ids: list[int], slot: int = 1) -> int:
        """Restore what is known of a text, compare every row, and return how much it is."""
        self.empty(slot)
        found = self.prefixes.find(token_ids)
        features = self.prefixes.restore(found, slot)
        assert found.length <= max(len(token_ids) - 1, 0)
        assert self.target.lengths[slot] == found.length
        for position in range(found.length):
            assert (self.target.data[slot, ..., position, :] == row_of(token_ids, position)).all()
        assert (self.target.data[slot, ..., found.length :, :] == -1.0).all()
        if self.draft is not None:
            known = max(found.length - 1, 0)
            assert self.draft.lengths[slot] == known
            for position in range(known):
                expected = row_of(token_ids, position + 1)
                assert (self.draft.data[slot, ..., position, :] == expected).all()
            assert (self.draft.data[slot, ..., known:, :] == -1.0).all()
            assert features.shape == (found.length // BLOCK_ROWS, WIDTH)
            for block, own in enumerate(features):
                assert (own == row_of(token_ids, (block + 1) * BLOCK_ROWS - 1)).all()
        return found.length


def text(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(50) for _ in range(length)]


@pytest.mark.parametrize("drafts", [True, False])
def test_whole_blocks_of_a_common_beginning_are_found(drafts: bool) -> None:
    caches = Caches(10 * BLOCK_ROWS, drafts=drafts)
    first = text(0, 3 * BLOCK_ROWS + 5)
    assert caches.check(first) == 0
    caches.store(first)
    assert caches.prefixes.tokens == 3 * BLOCK_ROWS
    assert caches.check(first) == 3 * BLOCK_ROWS
    assert caches.check([*first, 1, 2, 3]) == 3 * BLOCK_ROWS
    # A token must be left to read.
    assert caches.check(first[: 2 * BLOCK_ROWS]) == BLOCK_ROWS
    assert caches.check(first[: 2 * BLOCK_ROWS + 1]) == 2 * BLOCK_ROWS
    # They differ in the second block.
    other = [*first[:40], (first[40] + 1) % 50, *first[41:]]
    assert caches.check(other) == BLOCK_ROWS
    # The same tokens behind others are another text.
    assert caches.check(first[BLOCK_ROWS:]) == 0
    assert caches.check([]) == caches.check([1]) == 0


def test_a_common_beginning_is_stored_once() -> None:
    caches = Caches(10 * BLOCK_ROWS)
    system = text(1, 2 * BLOCK_ROWS)
    for seed in range(4):
        caches.store(system + text(2 + seed, BLOCK_ROWS + 3))
    assert caches.prefixes.tokens == 6 * BLOCK_ROWS


def test_the_least_recently_used_goes_first_and_its_end_before_its_beginning() -> None:
    caches = Caches(4 * BLOCK_ROWS)
    old, new = text(0, 2 * BLOCK_ROWS + 1), text(1, 2 * BLOCK_ROWS + 1)
    caches.store(old)
    caches.store(new)
    caches.check(old)
    caches.store(text(2, BLOCK_ROWS))
    assert caches.check(new) == BLOCK_ROWS
    assert caches.check(old) == 2 * BLOCK_ROWS
    caches.store(text(3, 3 * BLOCK_ROWS))
    assert caches.check(new) == 0
    assert caches.check(old) == BLOCK_ROWS


def test_of_a_text_longer_than_the_cache_the_beginning_is_kept() -> None:
    caches = Caches(3 * BLOCK_ROWS + 7)
    long = text(0, 8 * BLOCK_ROWS)
    caches.store(text(1, 2 * BLOCK_ROWS))
    for _ in range(2):
        caches.store(long)
        assert caches.check(long) == 3 * BLOCK_ROWS
    assert caches.prefixes.max_blocks == 3


@pytest.mark.parametrize("seed", range(6))
def test_random_texts(seed: int) -> None:
    """Whatever is stored, dropped and asked: only right rows come back, and as many as can be."""
    draw = random.Random(seed)
    blocks = draw.choice([1, 2, 5, 12])
    caches = Caches(blocks * BLOCK_ROWS)
    starts = [text(100 + index, BLOCK_ROWS) for index in range(3)]
    used: list[list[int]] = []
    for _ in range(60):
        chosen = [token for _ in range(draw.randrange(4)) for token in draw.choice(starts)]
        chosen += text(draw.randrange(3), draw.randrange(2 * BLOCK_ROWS))
        if draw.random() < 0.5:
            caches.store(chosen)
            assert caches.check([*chosen, 0]) == min(len(chosen) // BLOCK_ROWS, blocks) * BLOCK_ROWS
        else:
            caches.check(chosen)
        used.append(chosen)
        assert len(caches.prefixes._places) + len(caches.prefixes._free) == blocks
        # No block is kept without those before it.
        places = set(caches.prefixes._places.values())
        assert len(places) == len(caches.prefixes._places)
        assert {parent for parent, _ in caches.prefixes._places} <= places | {-1}
    for chosen in used:
        caches.check(chosen)
    caches.prefixes.clear()
    assert caches.prefixes.tokens == 0
    assert caches.check(used[-1]) == 0


def test_missing_features_change_nothing() -> None:
    caches = Caches(2 * BLOCK_ROWS)
    caches.store(text(0, BLOCK_ROWS))
    caches.fill(text(1, BLOCK_ROWS), 0)
    with pytest.raises(KeyError):
        caches.prefixes.store(text(1, BLOCK_ROWS), 0, {})
    assert caches.prefixes.tokens == BLOCK_ROWS
    caches.store(text(1, BLOCK_ROWS))
    assert caches.check([*text(0, BLOCK_ROWS), 1]) == BLOCK_ROWS


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 32, got 31"):
        Caches(31)
    caches = Caches(64)
    caches.store(text(0, 64))
    found = caches.prefixes.find(text(0, 65))
    with pytest.raises(ValueError, match="slot 0 holds 64 rows, it must be empty"):
        caches.prefixes.restore(found, 0)
