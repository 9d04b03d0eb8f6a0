"""The caches of one sequence, and the pool of caches of sequences that have ended."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.cached_draft import CachedDraft

if TYPE_CHECKING:
    from eaglerl.eagle3.captured.captured_cycle import CapturedCycle

#: Limits on idle caches: their number and their bytes together (1 GiB). The largest set is kept
#: whatever its size, so that one long sequence after another reuses its caches.
MOST_IDLE = 4
MOST_IDLE_BYTES = 1 << 30


class Caches:
    """The target's KV cache and the draft's runner with its cache, for one sequence.

    Attributes:
        target: the target's cache.
        draft: the draft's runner: its cache is this sequence's, its weights are shared. None
            without a draft.
        captured: the graphs over both caches; None before a cycle is captured.
    """

    def __init__(
        self,
        new_target: Callable[[int], KVCache],
        new_draft: Callable[[int], CachedDraft] | None,
        capacity: int,
    ) -> None:
        """Allocate both caches.

        Args:
            new_target: makes a cache of the target, given its rows.
            new_draft: makes a runner of the draft, given its cache's rows; None without a draft.
            capacity: rows of each cache.
        """
        self._new_target = new_target
        self.draft = None if new_draft is None else new_draft(capacity)
        self.target = new_target(capacity)
        self.captured: CapturedCycle | None = None

    @property
    def capacity(self) -> int:
        """Rows of each cache."""
        return self.target.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of both caches."""
        draft = 0 if self.draft is None else self.draft.cache.data.nbytes
        return self.target.data.nbytes + draft

    def reset(self) -> None:
        """Forget all rows."""
        self.target.truncate(0)
        if self.draft is not None:
            self.draft.reset()

    def with_room(self, capacity: int) -> KVCache:
        """Return the target's cache after making room for `capacity` rows in both, if there is not.

        This copies every committed row, 46 kB each for SmolLM2-135M in float32, so sessions reserve
        room for most plans beforehand.
        """
        if capacity <= self.capacity:
            return self.target
        # Graphs hold addresses.
        self.captured = None
        grown = self._new_target(capacity)
        grown.copy_committed(self.target)
        if self.draft is not None:
            self.draft.resize(capacity)
        self.target = grown
        return grown


class CachePool:
    """A pool that gives every sequence its own caches, on any thread.

    Caches in use are not limited. Of the idle ones, the largest are kept for the next sequence: at
    most `MOST_IDLE` sets with `MOST_IDLE_BYTES` together.
    """

    def __init__(
        self, new_target: Callable[[int], KVCache], new_draft: Callable[[int], CachedDraft] | None
    ) -> None:
        """Begin without caches; for the arguments see `Caches`."""
        self._new_target = new_target
        self._new_draft = new_draft
        self._lock = threading.Lock()
        self._idle: list[Caches] = []
        # Caches that came back and were not sorted into `_idle` yet. Garbage collection may give
        # caches back at any moment, even in the thread that holds the lock, so `give_back` must not
        # wait for it; a deque's append is atomic.
        self._returned: deque[Caches] = deque()

    @property
    def idle(self) -> tuple[Caches, ...]:
        """Idle caches, the largest first."""
        with self._lock:
            self._sort()
            return tuple(self._idle)

    def take(self, capacity: int) -> Caches:
        """Return empty caches with room for `capacity` rows, which no one else holds.

        The largest idle caches are taken. If they are too small, they are freed and new ones made.
        """
        with self._lock:
            self._sort()
            caches = self._idle.pop(0) if self._idle else None
        self._tidy()
        if caches is not None and caches.capacity >= capacity:
            caches.reset()
            return caches
        # Freed before the new ones are made, so that memory need not hold both.
        caches = None
        return Caches(self._new_target, self._new_draft, capacity)

    def give_back(self, caches: Caches) -> None:
        """End a sequence's use of its caches; they must not be used after that."""
        self._returned.append(caches)
        self._tidy()

    def _tidy(self) -> None:
        """Sort in the caches that came back, unless another thread does and will see them."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def _sort(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
        self._idle.sort(key=lambda caches: caches.capacity, reverse=True)
        kept: list[Caches] = []
        total = 0
        for caches in self._idle[:MOST_IDLE]:
            total += caches.nbytes
            if kept and total > MOST_IDLE_BYTES:
                break
            kept.append(caches)
        self._idle = kept
