"""One thread that decodes, for all who wait: a cycle of this, a cycle of that."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import torch

log = logging.getLogger("eaglerl.server")


class BusyError(Exception):
    """There is no place left; the message says of what."""


class Task(ABC):
    """Something to decode. All methods but the constructor run on the engine's thread."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether there is a cycle to run now."""

    @abstractmethod
    def advance(self) -> bool:
        """Run one cycle; whether that was the last one."""

    @abstractmethod
    def close(self, error: Exception | None) -> None:
        """Give back what it holds; called once, whatever the end.

        Args:
            error: why it ends before its own end; None if it does not.
        """


class StoppedError(Exception):
    """The engine stops."""


class WithdrawnError(Exception):
    """Nobody wants the task any more."""


class Engine:
    """Runs completions one after another, and live sessions between their cycles.

    A task that is withdrawn is not advanced again, so what it holds is free within one cycle.
    """

    def __init__(self, *, queue_size: int, live_sessions: int) -> None:
        """Set up; `start` starts the thread.

        Args:
            queue_size: completions that may wait beside the one at work.
            live_sessions: live sessions at a time.

        Raises:
            ValueError: a negative number.
        """
        for name, value in (("queue_size", queue_size), ("live_sessions", live_sessions)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or positive, got {value}")
        self._queue_size = queue_size
        self._live_sessions = live_sessions
        self._condition = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._active: Task | None = None
        self._live: list[Task] = []
        self._withdrawn: set[Task] = set()
        self._turn = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="eaglerl-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all tasks after the cycle at work, and wait for it."""
        self.stop_soon()
        if self._thread is not None:
            self._thread.join()

    def stop_soon(self) -> None:
        """`stop` without waiting."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    @property
    def load(self) -> dict[str, int]:
        """Tasks by what they are at."""
        with self._condition:
            return {
                "active": int(self._active is not None),
                "waiting": len(self._waiting),
                "live": len(self._live),
            }

    def submit(self, task: Task) -> None:
        """Queue a completion.

        Raises:
            BusyError: the queue is full.
            StoppedError: the engine stops.
        """
        with self._condition:
            self._check_going()
            free = self._active is None and not self._waiting
            if len(self._waiting) >= self._queue_size and not free:
                raise BusyError(f"{len(self._waiting)} requests are waiting already")
            self._waiting.append(task)
            self._condition.notify_all()

    def attach(self, task: Task) -> None:
        """Add a live session.

        Raises:
            BusyError: there are as many as there may be.
            StoppedError: the engine stops.
        """
        with self._condition:
            self._check_going()
            if len(self._live) >= self._live_sessions:
                raise BusyError(f"{len(self._live)} live sessions are open already")
            self._live.append(task)
            self._condition.notify_all()

    def withdraw(self, task: Task) -> None:
        """Give a task up, whether it waits, is at work, or has ended."""
        with self._condition:
            if task in self._waiting or task is self._active or task in self._live:
                self._withdrawn.add(task)
                self._condition.notify_all()

    def tell(self, message: Callable[[], None]) -> None:
        """Run something between two looks for a task that is ready, which it may make so."""
        with self._condition:
            message()
            self._condition.notify_all()

    def _check_going(self) -> None:
        if self._stopping:
            raise StoppedError("the server is shutting down")

    def _run(self) -> None:
        # A new thread has OpenMP's default instead of what the main thread was told.
        torch.set_num_threads(torch.get_num_threads())
        while (task := self._next()) is not None:
            try:
                over, error = task.advance(), None
            except Exception as failure:
                # One request's failure must not be another's.
                log.exception("a request failed")
                over, error = True, failure
            if over:
                with self._condition:
                    self._remove(task)
                task.close(error)

    def _next(self) -> Task | None:
        """Wait for a task that is ready, in turns; None when the engine stops."""
        with self._condition:
            while True:
                for task in [*self._withdrawn]:
                    self._remove(task)
                    task.close(WithdrawnError())
                if self._stopping:
                    self._close_all()
                    return None
                if self._active is None and self._waiting:
                    self._active = self._waiting.popleft()
                held = [*self._live] if self._active is None else [self._active, *self._live]
                ready = [task for task in held if task.ready]
                if ready:
                    self._turn += 1
                    return ready[self._turn % len(ready)]
                self._condition.wait()

    def _close_all(self) -> None:
        active = [] if self._active is None else [self._active]
        for task in [*active, *self._waiting, *self._live]:
            self._remove(task)
            task.close(StoppedError("the server is shutting down"))

    def _remove(self, task: Task) -> None:
        self._withdrawn.discard(task)
        if task is self._active:
            self._active = None
        elif task in self._live:
            self._live.remove(task)
        elif task in self._waiting:
            self._waiting.remove(task)
