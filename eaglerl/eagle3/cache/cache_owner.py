"""The owner of a sequence's caches: how long it holds them, and how it gives them back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eaglerl.eagle3.cache.caches import Caches
from eaglerl.eagle3.fair_lock import FairLock
from eaglerl.eagle3.thread_limit import begin_cycle, end_cycle


class CacheOwner:
    """An owner of caches until it is closed, a pass over them fails, or it is garbage collected."""

    def __init__(self, turns: FairLock) -> None:
        """Begin without caches.

        Args:
            turns: the lock that is held during every pass.
        """
        self._turns = turns
        self._caches: Caches | None = None
        self._release: Callable[[Caches | None], None] | None = None
        self._closed: str | None = None
        self._at_work = False

    def own(self, caches: Caches, release: Callable[[Caches | None], None]) -> None:
        """Take over caches.

        Args:
            caches: caches that no one else holds.
            release: called once: with the caches, or with None if a pass failed and left them half
                written. It must not refer to this object, or that is never garbage collected.
        """
        finalizer = weakref.finalize(self, release, caches)
        finalizer.atexit = False

        def give_back(returned: Caches | None) -> None:
            # `detach` succeeds once, so that `close` and the finalizer cannot both give them back.
            if finalizer.detach() is not None:
                release(returned)

        self._caches, self._release = caches, give_back

    @property
    def closed(self) -> str | None:
        """Why the sequence cannot continue; None while it can."""
        return self._closed

    def check_open(self) -> None:
        """Check that the caches are still held.

        Raises:
            ValueError: this was closed, or a pass failed.
        """
        if self._closed is not None:
            raise ValueError(
                f"this sequence has given its caches back and cannot continue: {self._closed}"
            )

    def close(self, reason: str = "it was closed") -> None:
        """Give the caches back.

        A call from another thread waits for the running pass. A call during a pass on the same
        thread, as from a policy, takes effect at the end of the pass.

        Args:
            reason: the reason that a later `check_open` reports.
        """
        if self._closed is not None:
            return
        with self._turns:
            if self._closed is not None:
                return
            self._closed = reason
            if not self._at_work:
                self._let_go(fit=True)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Guard a pass over the caches: one that fails leaves them unusable and closes this.

        Raises:
            ValueError: this was closed, or a pass is running.
        """
        self.check_open()
        if self._at_work:
            raise ValueError("this sequence is in the middle of a pass, which has to end first")
        self._at_work, fit = True, False
        try:
            begin_cycle()
            yield
            fit = True
        except BaseException as error:
            self._closed = f"it failed with {type(error).__name__} in the middle of a pass"
            raise
        finally:
            self._at_work = False
            if self._closed is not None:
                self._let_go(fit=fit)
            end_cycle()

    def _let_go(self, *, fit: bool) -> None:
        if self._release is not None:
            self._release(self._caches if fit else None)
        self._caches = self._release = None
