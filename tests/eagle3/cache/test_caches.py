"""The pool of caches: nobody gets what somebody has, and no more is kept than is said."""

import gc
import threading

import pytest

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.cache import caches
from eaglerl.eagle3.cache.caches import CachePool
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.packed_target import packed_target

from ..tiny import tiny_head, tiny_model

PROMPT = [1, 2, 3, 1, 2]


@pytest.fixture(scope="module")
def target() -> BlockTarget:
    return packed_target(tiny_model(vocab_size=12, logit_scale=3.0))


@pytest.fixture
def decoder(target) -> SpeculativeDecoder:
    head = tiny_head(target, draft_vocab_size=12)
    return SpeculativeDecoder(target, head, draft_dtype="float32")


@pytest.fixture
def pool(decoder) -> CachePool:
    return CachePool(decoder.target.new_cache, decoder.draft_runner.with_own_cache)


def test_the_largest_that_wait_are_taken(pool) -> None:
    taken = [pool.take(capacity) for capacity in (100, 300, 200)]
    assert [each.capacity for each in taken] == [100, 300, 200]
    for each in taken:
        pool.give_back(each)
    assert [each.capacity for each in pool.idle] == [300, 200, 100]
    assert pool.take(50) is taken[1]
    assert pool.take(50) is taken[2]
    # Too small: freed before new ones are made, so that memory need not hold both.
    assert pool.take(101).capacity == 101
    assert pool.idle == ()


def test_what_comes_back_is_empty_when_it_is_taken_again(decoder) -> None:
    session = decoder.new_session(GreedyVerifier(), 100)
    session.prefill(PROMPT)
    session.step(TreeParams(4, 1, 2))
    held = session.cache, session.draft
    assert held[0].lengths[0] > 0
    assert held[1].lengths[0] > 0
    session.close()
    again = decoder.new_session(GreedyVerifier(), 100)
    assert (again.cache, again.draft) == held
    assert again.cache.lengths == again.draft.lengths == [0]


def test_only_so_many_are_kept(pool, monkeypatch) -> None:
    taken = [pool.take(100 + index) for index in range(caches.MOST_IDLE + 3)]
    for each in taken:
        pool.give_back(each)
    assert list(pool.idle) == taken[:2:-1]
    assert len(pool.idle) == caches.MOST_IDLE
    monkeypatch.setattr(caches, "MOST_IDLE_BYTES", 2 * taken[-1].nbytes)
    assert list(pool.idle) == taken[:-3:-1]
    monkeypatch.setattr(caches, "MOST_IDLE_BYTES", 1)
    # The largest stays, whatever its size.
    assert list(pool.idle) == taken[-1:]


def test_they_come_back_from_garbage_collection_wherever_it_runs(pool) -> None:
    """A thread that has the pool's lock must not wait for itself."""
    first = pool.take(50)
    with pool._lock:
        pool.give_back(first)
    assert pool.take(50) is first


def test_threads_never_have_the_same(pool) -> None:
    held, doubled = set(), []
    guard = threading.Lock()

    def work(seed: int) -> None:
        for turn in range(60):
            mine = pool.take(10 + (seed * 7 + turn * 5) % 40)
            with guard:
                if id(mine) in held:
                    doubled.append(mine)
                held.add(id(mine))
            assert mine.target.lengths == [0]
            mine.target.advance(3)
            with guard:
                held.discard(id(mine))
            pool.give_back(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not doubled
    assert len(pool.idle) <= caches.MOST_IDLE


def test_caches_come_back_when_a_text_ends_is_closed_or_is_dropped(decoder) -> None:
    ended = decoder.start(PROMPT, max_new_tokens=3)
    while ended.finish_reason is None:
        ended.advance()
    assert len(decoder._sessions.pool.idle) == 1
    closed, dropped = (decoder.start(PROMPT, max_new_tokens=9) for _ in range(2))
    for generation in (closed, dropped):
        generation.advance()
    assert decoder._sessions.pool.idle == ()
    closed.close()
    closed.close()
    assert len(decoder._sessions.pool.idle) == 1
    del dropped, generation
    gc.collect()
    assert len(decoder._sessions.pool.idle) == 2


def test_many_generations_in_turn_take_one_set_of_caches(decoder) -> None:
    made = []
    decoder._sessions.pool = CachePool(
        lambda capacity: made.append(capacity) or decoder.target.new_cache(capacity),
        decoder.draft_runner.with_own_cache,
    )
    for count in (20, 9, 15, 1):
        decoder.generate(PROMPT, max_new_tokens=count)
    assert len(made) == 1


def test_a_cycle_wider_than_the_caches_lets_them_grow(decoder) -> None:
    wide = TreeParams(600, 6, 12)
    session = decoder.new_session(GreedyVerifier(), 20)
    session.prefill(PROMPT)
    before = session.cache.capacity
    session.step(wide)
    assert session.cache.capacity > before
    session.close()
    assert decoder._sessions.pool.idle[0].capacity > before
