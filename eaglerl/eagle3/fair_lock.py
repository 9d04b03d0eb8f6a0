"""A lock that threads acquire in the order in which they ask for it."""

from __future__ import annotations

import threading
import time
from collections import deque


class FairLock:
    """A reentrant lock that goes to the thread that has waited longest.

    The thread that releases a `threading.Lock` can take it again at once, so of two loops that take
    it for every cycle one can starve the other.

    ``with lock as waited:`` gives the seconds that the thread waited for it.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    @property
    def held(self) -> bool:
        """Whether the calling thread has the lock."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> float:
        before = self._depth if self.held else 0
        try:
            return self._acquire()
        except BaseException:
            # Ctrl-C may arrive after the lock was taken but before this method returned.
            self._release_to(before)
            raise

    def __exit__(self, *exception: object) -> None:
        self._release_to(self._depth - 1)

    def _acquire(self) -> float:
        me = threading.get_ident()
        if self._owner == me:
            self._depth += 1
            return 0.0
        turn = threading.Lock()
        turn.acquire()
        with self._guard:
            if self._owner is None:
                self._owner, self._depth = me, 1
                return 0.0
            # Whoever sees this thread in the queue may rely on its time having begun.
            started = time.perf_counter()
            self._waiting.append((me, turn))
        try:
            turn.acquire()
        except BaseException:
            with self._guard:
                # Not in the queue if the lock was just handed over; `__enter__` releases it then.
                if (me, turn) in self._waiting:
                    self._waiting.remove((me, turn))
            raise
        return time.perf_counter() - started

    def _release_to(self, depth: int) -> None:
        if not self.held or self._depth <= depth:
            return
        self._depth = depth
        if depth:
            return
        with self._guard:
            if not self._waiting:
                self._owner = None
                return
            self._owner, turn = self._waiting.popleft()
            self._depth = 1
            turn.release()
