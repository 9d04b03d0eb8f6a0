"""The caches of one sequence, and the pool that keeps those of sequences that have ended."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.cached_draft import CachedDraft

#: Caches that wait for the next sequence: so many sets, and so many bytes together. The largest
#: set waits whatever its size.
MOST_IDLE = 4
MOST_IDLE_BYTES = 1 << 30


class Caches:
    """The KV cache of the target and the draft with its own, of one sequence alone.

    Attributes:
        target: the target's cache.
        draft: the draft's runner, over a cache of its own; the weights are everybody's. None
            without a draft.
    """

    def __init__(
        self,
        new_target: Callable[[int], KVCache],
        new_draft: Callable[[int], CachedDraft] | None,
        capacity: int,
    ) -> None:
        """Allocate.

        Args:
            new_target: makes a cache of the target with room for so many rows.
            new_draft: makes a runner of the draft with room for so many rows; None without one.
            capacity: rows of either.
        """
        self._new_target = new_target
        self.draft = None if new_draft is None else new_draft(capacity)
        self.target = new_target(capacity)

    @property
    def capacity(self) -> int:
        """Rows that fit into either cache."""
        return self.target.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        draft = 0 if self.draft is None else self.draft.cache.data.nbytes
        return self.target.data.nbytes + draft

    def reset(self) -> None:
        """Forget all rows."""
        self.target.truncate(0)
        if self.draft is not None:
            self.draft.reset()

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows; the committed ones stay."""
        grown = self._new_target(capacity)
        grown.copy_committed(self.target)
        if self.draft is not None:
            self.draft.resize(capacity)
        self.target = grown


class CachePool:
    """Gives every sequence caches of its own, for any thread.

    What sequences at work hold is not limited; of the caches that came back, the largest
    `MOST_IDLE` wait for the next sequence, as far as they have `MOST_IDLE_BYTES` together.
    """

    def __init__(
        self, new_target: Callable[[int], KVCache], new_draft: Callable[[int], CachedDraft] | None
    ) -> None:
        """Begin empty; see `Caches`."""
        self._new_target = new_target
        self._new_draft = new_draft
        self._lock = threading.Lock()
        self._idle: list[Caches] = []
        # What came back and was not put in order yet. Garbage collection may give caches back at
        # any moment, even to a thread that has the lock, so this end takes none.
        self._returned: deque[Caches] = deque()

    @property
    def idle(self) -> tuple[Caches, ...]:
        """Caches that wait for a sequence, the largest first."""
        with self._lock:
            self._sort()
            return tuple(self._idle)

    def take(self, capacity: int) -> Caches:
        """Empty caches with room for `capacity` rows, which nobody else has.

        The largest that wait are taken; where even they are too small, new ones take their place.
        """
        with self._lock:
            self._sort()
            caches = self._idle.pop(0) if self._idle else None
        self._tidy()
        if caches is not None and caches.capacity >= capacity:
            caches.reset()
            return caches
        # Given up before the new ones are made: memory need not hold both.
        caches = None
        return Caches(self._new_target, self._new_draft, capacity)

    def give_back(self, caches: Caches) -> None:
        """End a sequence's use of its caches; they must not be used after that."""
        self._returned.append(caches)
        self._tidy()

    def _tidy(self) -> None:
        """Put in order what came back, unless somebody is at it, who will see it."""
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
