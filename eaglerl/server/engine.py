"""Single decoding thread.

Completions run one at a time or in turns; live sessions are interleaved with them, one cycle each.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import torch

from eaglerl._ext import C

log = logging.getLogger("eaglerl.server")

# Tasks whose used times differ by less than this take turns. Seconds of processor time, so that
# other processes on the machine do not count.
_EVEN = 0.05


class BusyError(Exception):
    """The server is at a limit; the message says which."""


class Task(ABC):
    """A decoding task. All methods but the constructor run on the engine's thread."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the task has a step to run now."""

    @abstractmethod
    def advance(self) -> bool:
        """Read a part of the prompt or run one cycle; return whether that was the last step."""

    @abstractmethod
    def close(self, error: Exception | None) -> None:
        """Release what the task holds; called exactly once.

        Args:
            error: why the task ends early; None if it has finished.
        """


class StoppedError(Exception):
    """The engine is stopping."""


class WithdrawnError(Exception):
    """The client has gone, or has cancelled the task."""


class Engine:
    """Runs a few completions at a time, interleaved with live sessions.

    The task that has used the least processor time is next, so that a long prompt takes no more
    than its share. A withdrawn task is not advanced again: what it holds is released after the step
    at work.
    """

    def __init__(self, *, queue_size: int, live_sessions: int, at_once: int = 1) -> None:
        """Set up; `start` starts the thread.

        Args:
            queue_size: most completions that wait.
            live_sessions: most live sessions at a time.
            at_once: most completions that are decoded in turns.

        Raises:
            ValueError: a number is negative, or `at_once` is 0.
        """
        for name, value, least in (
            ("queue_size", queue_size, 0),
            ("live_sessions", live_sessions, 0),
            ("at_once", at_once, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self._queue_size = queue_size
        self._live_sessions = live_sessions
        self._at_once = at_once
        self._condition = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._active: list[Task] = []
        self._live: list[Task] = []
        self._withdrawn: set[Task] = set()
        # Seconds that every task at work has used, counted from the least used when it arrived.
        self._spent: dict[Task, float] = {}
        self._least = 0.0
        self._were_ready: set[Task] = set()
        self._last_turn: dict[Task, int] = {}
        self._turn = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, from the one that loaded the model."""
        # libgomp counts the threads of all pools of a process. Where they are more than the cores,
        # threads wait asleep instead of awake: trees came at 91 instead of 100 tokens/s.
        C.release_pool()
        self._thread = threading.Thread(target=self._run, name="eaglerl-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all tasks after the step at work, and wait until that is done."""
        self.stop_soon()
        if self._thread is not None:
            self._thread.join()

    def stop_soon(self) -> None:
        """Close all tasks after the step at work, without waiting."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    @property
    def healthy(self) -> bool:
        """Whether the thread is running and not stopping."""
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._stopping

    @property
    def load(self) -> dict[str, int]:
        """Number of active, waiting and live tasks."""
        with self._condition:
            return {
                "active": len(self._active),
                "waiting": len(self._waiting),
                "live": len(self._live),
            }

    def submit(self, task: Task) -> None:
        """Queue a completion.

        Raises:
            BusyError: the queue is full.
            StoppedError: the engine is stopping.
        """
        with self._condition:
            self._check_going()
            # Tasks that the thread can take at once do not count as waiting.
            places = self._at_once - len(self._active)
            if len(self._waiting) >= self._queue_size + places:
                raise BusyError(f"{len(self._waiting)} requests are waiting: the queue is full")
            self._waiting.append(task)
            self._condition.notify_all()

    def attach(self, task: Task) -> None:
        """Add a live session.

        Raises:
            BusyError: there are already as many as allowed.
            StoppedError: the engine is stopping.
        """
        with self._condition:
            self._check_going()
            if len(self._live) >= self._live_sessions:
                raise BusyError(f"{len(self._live)} live sessions are open, as many as allowed")
            self._live.append(task)
            self._condition.notify_all()

    def withdraw(self, task: Task) -> None:
        """Cancel a task; no effect if it has ended."""
        with self._condition:
            if task in self._waiting or task in self._active or task in self._live:
                self._withdrawn.add(task)
                self._condition.notify_all()

    def tell(self, message: Callable[[], None]) -> None:
        """Run a callable between two steps; it may make a task ready."""
        with self._condition:
            message()
            self._condition.notify_all()

    def _check_going(self) -> None:
        if self._stopping:
            raise StoppedError("the server is shutting down")

    def _run(self) -> None:
        # A new thread starts with OpenMP's default number of threads, not the main thread's.
        torch.set_num_threads(torch.get_num_threads())
        while (task := self._next()) is not None:
            started = time.thread_time()
            try:
                over, error = task.advance(), None
            except Exception as failure:
                # One request's failure must not affect another.
                log.exception("a request failed")
                over, error = True, failure
            self._spent[task] += time.thread_time() - started
            if over:
                with self._condition:
                    self._remove(task)
                task.close(error)

    def _next(self) -> Task | None:
        """Wait for a ready task and return the next one, or None when the engine stops."""
        with self._condition:
            while True:
                for task in [*self._withdrawn]:
                    self._remove(task)
                    task.close(WithdrawnError())
                if self._stopping:
                    self._close_all()
                    return None
                while len(self._active) < self._at_once and self._waiting:
                    self._active.append(self._waiting.popleft())
                ready = [task for task in (*self._active, *self._live) if task.ready]
                if ready:
                    return self._behind(ready)
                self._condition.wait()

    def _behind(self, ready: list[Task]) -> Task:
        """Return the task whose turn it is among those that have used the least time."""
        for task in ready:
            # A task that arrives, or becomes ready again, gets no credit for the time before.
            if task not in self._were_ready:
                self._spent[task] = max(self._spent.get(task, 0.0), self._least)
                self._last_turn[task] = self._turn
        self._were_ready = {*ready}
        least = self._least = min(self._spent[task] for task in ready)
        even = [task for task in ready if self._spent[task] < least + _EVEN]
        self._turn += 1
        chosen = min(even, key=self._last_turn.__getitem__)
        self._last_turn[chosen] = self._turn
        return chosen

    def _close_all(self) -> None:
        for task in [*self._active, *self._waiting, *self._live]:
            self._remove(task)
            task.close(StoppedError("the server is shutting down"))

    def _remove(self, task: Task) -> None:
        self._withdrawn.discard(task)
        self._were_ready.discard(task)
        self._spent.pop(task, None)
        self._last_turn.pop(task, None)
        for tasks in (self._active, self._live, self._waiting):
            if task in tasks:
                tasks.remove(task)
