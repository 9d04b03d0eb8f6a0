"""The thread that decodes: all requests in one batch, and live sessions in turns with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import torch

from eaglerl._ext import C
from eaglerl.server.admission import Admission, Request
from eaglerl.server.tasks import BusyError, StoppedError, Task, WithdrawnError

log = logging.getLogger("eaglerl.server")

# Tasks whose used times differ by less than this take turns. Seconds of processor time, so that
# other processes on the machine do not count.
_EVEN = 0.05


class Engine:
    """Admits requests, and runs the batch in turns with what decodes outside of it.

    The task that has used the least processor time for each of its sequences is next, so that a
    long prompt, or a live session, takes no more than its share. A withdrawn task is not advanced
    again: what it holds is released after the step at work.
    """

    def __init__(
        self, admission: Admission, *, live_sessions: int, batch: Task | None = None
    ) -> None:
        """Set up; `start` starts the thread.

        Args:
            admission: the queue and the limits of the requests; the engine's from now on.
            live_sessions: most live sessions at a time.
            batch: decodes the answers that have no turns of their own; it never ends.

        Raises:
            ValueError: `live_sessions` is negative.
        """
        if live_sessions < 0:
            raise ValueError(f"live_sessions must be at least 0, got {live_sessions}")
        self._admission = admission
        self._live_sessions = live_sessions
        self._batch = batch
        self._condition = threading.Condition()
        self._live: list[Task] = []
        self._withdrawn: set[Task] = set()
        # Seconds that every task at work has used for each of its sequences, counted from the least
        # used when it arrived.
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
        """Number of requests at work, of waiting requests, and of live sessions."""
        with self._condition:
            return {
                "active": len(self._admission.active),
                "waiting": self._admission.waiting,
                "live": len(self._live),
            }

    @property
    def answers(self) -> int:
        """Number of answers that are decoded at the moment."""
        with self._condition:
            return self._admission.answers

    @property
    def usage(self) -> float:
        """Share of the tokens that may be decoded at a time which the answers have reserved."""
        with self._condition:
            return self._admission.tokens / self._admission.max_tokens

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            BusyError: the queue is full.
            StoppedError: the engine is stopping.
            ValueError: the request is too long to be ever admitted.
        """
        with self._condition:
            self._check_going()
            self._admission.add(request)
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
        """Cancel a request or a live session; no effect if it has ended."""
        with self._condition:
            if task in self._all():
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

    def _all(self) -> list[Task]:
        return [*self._admission, *self._live]

    def _run(self) -> None:
        # A new thread starts with OpenMP's default number of threads, not the main thread's.
        torch.set_num_threads(torch.get_num_threads())
        while (action := self._next()) is not None:
            action()
            self._close_ended()
        if self._batch is not None:
            self._batch.close(StoppedError("the server is shutting down"))

    def _next(self) -> Callable[[], None] | None:
        """Wait for something to do and return it; None after everything is closed."""
        with self._condition:
            while True:
                if self._withdrawn:
                    return partial(self._close, self._withdrawn.pop(), WithdrawnError())
                if self._stopping:
                    left = self._all()
                    stopped = StoppedError("the server is shutting down")
                    return partial(self._close, left[0], stopped) if left else None
                if (request := self._admission.take()) is not None:
                    return partial(self._begin, request)
                working: list[Task] = [*self._admission.active, *self._live]
                if self._batch is not None:
                    working.append(self._batch)
                ready = [task for task in working if task.ready]
                if ready:
                    return partial(self._advance, self._behind(ready))
                self._condition.wait()

    def _begin(self, request: Request) -> None:
        try:
            request.begin()
        except Exception as failure:
            log.exception("a request failed")
            request.failure = failure

    def _advance(self, task: Task) -> None:
        started, weight = time.thread_time(), task.weight
        try:
            over, error = task.advance(), None
        except Exception as failure:
            # One request's failure must not affect another.
            log.exception("a request failed")
            over, error = task is not self._batch, failure
        self._spent[task] += (time.thread_time() - started) / weight
        if over:
            self._close(task, error)

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

    def _close_ended(self) -> None:
        """Close the requests whose answers have all ended, or of which one has failed."""
        # Only this thread changes the requests at work.
        for request in self._admission.active:
            if request.over:
                self._close(request, request.failure)

    def _close(self, task: Task, error: Exception | None) -> None:
        with self._condition:
            if task not in self._all():
                return
            self._withdrawn.discard(task)
            self._were_ready.discard(task)
            self._spent.pop(task, None)
            self._last_turn.pop(task, None)
            if task in self._live:
                self._live.remove(task)
            else:
                self._admission.remove(task)
        task.close(error)
