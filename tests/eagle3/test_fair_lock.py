"""The lock with which generations take turns."""

import threading
import time

import pytest

from eaglerl.eagle3.fair_lock import FairLock


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_get_it_in_the_order_in_which_they_asked() -> None:
    """A thread that takes the lock again at once comes after all that waited."""
    lock, order, threads = FairLock(), [], []

    def work(name: int) -> None:
        for _ in range(3):
            with lock:
                order.append(name)
                time.sleep(0.002)

    with lock:
        for name in range(4):
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            wait_until(lambda count=name + 1: len(lock._waiting) == count)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3] * 3


def test_it_is_reentrant_and_held_by_one_thread_at_a_time() -> None:
    lock, inside, most = FairLock(), [0], [0]

    def work() -> None:
        for _ in range(50):
            with lock, lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                with lock:
                    pass
                assert lock.held
                inside[0] -= 1
            assert not lock.held

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert inside == [0]


def test_the_time_waited_is_told() -> None:
    lock, waited = FairLock(), []

    def work() -> None:
        with lock as seconds:
            waited.append(seconds)

    with lock as seconds:
        assert seconds == 0.0
        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: lock._waiting)
        time.sleep(0.05)
    thread.join()
    assert 0.05 <= waited[0] < 20


def test_an_exception_within_releases_it_wholly() -> None:
    lock = FairLock()
    with pytest.raises(KeyboardInterrupt), lock, lock:
        raise KeyboardInterrupt
    assert not lock.held
    thread = threading.Thread(target=lock.__enter__)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("handed_over", [False, True])
def test_an_interrupt_of_whoever_waits_leaves_the_others_their_turn(handed_over: bool) -> None:
    """Both before the lock is handed over, and when it just was."""
    lock, order = FairLock(), []

    class Interrupted:
        """Stands in for the lock that a waiting thread sleeps on."""

        def __init__(self) -> None:
            self._calls = 0

        def acquire(self) -> None:
            self._calls += 1
            if self._calls == 2:
                if handed_over:
                    wait_until(lambda: lock._owner == threading.get_ident())
                raise KeyboardInterrupt

        def release(self) -> None:
            pass

    def interrupted() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eaglerl.eagle3.fair_lock.threading.Lock", Interrupted)
            try:
                with lock:
                    order.append("never")
            except KeyboardInterrupt:
                order.append("interrupted")

    with lock:
        first = threading.Thread(target=interrupted)
        first.start()
        wait_until(lambda: lock._waiting if handed_over else order)
    first.join(20)
    second = threading.Thread(target=lambda: order.append(lock.__enter__() >= 0))
    second.start()
    second.join(20)
    assert order == ["interrupted", True]
