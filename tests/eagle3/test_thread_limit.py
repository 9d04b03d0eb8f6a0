"""What a cycle does to torch's threads, and what it says where they are limited."""

import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from eaglerl._ext import C, thread_count
from eaglerl.eagle3 import thread_limit
from eaglerl.eagle3.cache.cache_owner import CacheOwner
from eaglerl.eagle3.fair_lock import FairLock


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def extension(limit: int, threads: int) -> SimpleNamespace:
    """An extension with a limit that lasts."""
    return SimpleNamespace(
        begin_cycle=lambda threads: None,
        end_cycle=lambda: limit,
        cycle_threads=lambda: threads,
    )


@pytest.mark.usefixtures("three_threads")
def test_a_cycle_knows_its_threads_and_gives_them_back() -> None:
    owner = CacheOwner(FairLock())
    assert C.cycle_threads() == 0
    with owner._working():
        assert C.cycle_threads() == 3
        torch.set_num_threads(1)  # as where the limit is 1
        assert thread_count() == 3
    assert C.cycle_threads() == 0
    assert torch.get_num_threads() == thread_count() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_failed_pass_gives_the_threads_back() -> None:
    def fail() -> None:
        with CacheOwner(FairLock())._working():
            torch.set_num_threads(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.get_num_threads() == 3
    assert C.cycle_threads() == 0


def test_a_cycle_is_of_one_thread_alone() -> None:
    seen = []
    with CacheOwner(FairLock())._working():
        other = threading.Thread(target=lambda: seen.append(C.cycle_threads()))
        other.start()
        other.join()
    assert seen == [0]


def test_a_lasting_limit_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_limit, "_warned", False)
    monkeypatch.setattr(thread_limit, "C", extension(limit=2, threads=4))
    with pytest.warns(UserWarning, match="goes on with 2 of 4 threads"):
        thread_limit.end_cycle()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread_limit.end_cycle()


@pytest.mark.parametrize(("limit", "threads"), [(0, 4), (2, 2), (2, 1)])
def test_no_report_without_a_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int, threads: int
) -> None:
    monkeypatch.setattr(thread_limit, "_warned", False)
    monkeypatch.setattr(thread_limit, "C", extension(limit, threads))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread_limit.end_cycle()


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_impossible_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValueError, match="threads"):
        C.begin_cycle(threads)
    assert C.cycle_threads() == 0
