"""Whoever has caches for itself: how long it has them, and what happens to them at the end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eaglerl.eagle3.cache.caches import Caches
from eaglerl.eagle3.fair_lock import FairLock


class CacheOwner:
    """Has caches until it is closed, until work on them fails, or until it is garbage collected."""

    def __init__(self, turns: FairLock) -> None:
        """Begin without caches.

        Args:
            turns: held by whoever works.
        """
        self._turns = turns
        self._caches: Caches | None = None
        self._release: Callable[[Caches | None], None] | None = None
        self._closed: str | None = None
        self._at_work = False

    def own(self, caches: Caches, release: Callable[[Caches | None], None]) -> None:
        """Take caches over.

        Args:
            caches: nobody else has them.
            release: called once, with them, or with None where they were left half written. It must
                not refer to this object.
        """
        finalizer = weakref.finalize(self, release, caches)
        finalizer.atexit = False

        def give_back(returned: Caches | None) -> None:
            # Whoever detaches the finalizer is the one who gives back.
            if finalizer.detach() is not None:
                release(returned)

        self._caches, self._release = caches, give_back

    @property
    def closed(self) -> str | None:
        """Why it cannot go on; None as long as it can."""
        return self._closed

    def check_open(self) -> None:
        """Make sure that the caches are still its own.

        Raises:
            ValueError: it was closed, or work on them failed.
        """
        if self._closed is not None:
            raise ValueError(
                f"this sequence has given its caches back and cannot go on: {self._closed}"
            )

    def close(self, reason: str = "it was closed") -> None:
        """Give the caches back.

        From another thread it waits for the work at hand; in the midst of it, where a policy may
        call it, it takes effect at the end.

        Args:
            reason: what a later `check_open` says.
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
        """For work on the caches that cannot be taken up again where it failed.

        Raises:
            ValueError: it was closed, or this is called in the midst of such work.
        """
        self.check_open()
        if self._at_work:
            raise ValueError("this sequence is in the middle of a pass, which has to end first")
        self._at_work, fit = True, False
        try:
            yield
            fit = True
        except BaseException as error:
            self._closed = f"it failed with {type(error).__name__} in the middle of a pass"
            raise
        finally:
            self._at_work = False
            if self._closed is not None:
                self._let_go(fit=fit)

    def _let_go(self, *, fit: bool) -> None:
        if self._release is not None:
            self._release(self._caches if fit else None)
        self._caches = self._release = None
