"""The requests that wait, and those whose answers are decoded."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence

from eaglerl.server.tasks import BusyError, Task


class Request(Task):
    """A request for one or several answers, which begin one by one as there is room.

    The engine calls `begin` for each, and `close` when `over` is true.

    Attributes:
        tokens: most tokens of one answer, prompt included.
        unbegun: answers that have not begun.
        running: answers that have begun and not ended.
        failure: what the request failed with; None if it has not.
    """

    def __init__(self, *, tokens: int = 0, answers: int = 1) -> None:
        """Begin with no answer."""
        self.tokens = tokens
        self.unbegun = answers
        self.running = 0
        self.failure: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether all answers have ended, or one has failed."""
        return self.failure is not None or not (self.unbegun or self.running)

    @property
    def weight(self) -> int:
        """The answers that are decoded in the request's own turns."""
        return max(1, self.running)

    @abstractmethod
    def begin(self) -> None:
        """Begin the next answer, which the engine has counted."""


class Admission:
    """The queue, and what may be decoded at a time. Its owner has the lock.

    First come, first served: no request overtakes another, however much less room it needs. So none
    waits for ever, and the answers of one request begin one after another, in their order.
    """

    def __init__(self, *, queue_size: int, max_batch: int, max_tokens: int) -> None:
        """Set up.

        Args:
            queue_size: most requests that wait.
            max_batch: most answers that are decoded at a time.
            max_tokens: most tokens of these answers together, prompts included, if each is as long
                as it may become.

        Raises:
            ValueError: a number is less than 1, or `queue_size` is negative.
        """
        for name, value, least in (
            ("queue_size", queue_size, 0),
            ("max_batch", max_batch, 1),
            ("max_tokens", max_tokens, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.max_tokens = max_tokens
        self._queue_size = queue_size
        self._max_batch = max_batch
        # The first one may have answers that have begun.
        self._queue: deque[Request] = deque()
        self._active: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        """Iterate over all requests, those that have begun first."""
        return iter([*self._active, *(r for r in self._queue if r not in self._active)])

    @property
    def active(self) -> list[Request]:
        """The requests of which an answer has begun."""
        return [*self._active]

    @property
    def waiting(self) -> int:
        """Number of requests of which no answer has begun."""
        return sum(request not in self._active for request in self._queue)

    @property
    def answers(self) -> int:
        """Number of answers that are decoded."""
        return sum(request.running for request in self._active)

    @property
    def tokens(self) -> int:
        """Tokens of these answers, if each is as long as it may become."""
        return sum(request.running * request.tokens for request in self._active)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            BusyError: the queue is full.
            ValueError: an answer has more tokens than all together may have.
        """
        if request.tokens > self.max_tokens:
            raise ValueError(
                f"an answer of {request.tokens} tokens, prompt included, never fits into "
                f"{self.max_tokens}"
            )
        # Requests that the thread can take at once do not count as waiting.
        if self._left_waiting([*self._queue, request]) > self._queue_size:
            raise BusyError(f"{self.waiting} requests are waiting: the queue is full")
        self._queue.append(request)

    def take(self) -> Request | None:
        """Return the next request of which an answer may begin, and count that; None for none."""
        if not self._queue:
            return None
        request = self._queue[0]
        if not self._fitting(request, *self._room()):
            return None
        request.unbegun -= 1
        request.running += 1
        if request not in self._active:
            self._active.append(request)
        if not request.unbegun:
            self._queue.popleft()
        return request

    def remove(self, request: Task) -> None:
        """Forget a request."""
        self._active = [each for each in self._active if each is not request]
        self._queue = deque(each for each in self._queue if each is not request)

    def _room(self) -> tuple[int, int]:
        """Return the answers and the tokens that there is room for."""
        return self._max_batch - self.answers, self.max_tokens - self.tokens

    def _fitting(self, request: Request, places: int, tokens: int) -> int:
        """Return how many of a request's answers there is room for."""
        most = tokens // request.tokens if request.tokens else places
        return min(request.unbegun, places, most)

    def _left_waiting(self, requests: Sequence[Request]) -> int:
        """Return of how many requests no answer can begin at once, if these are the queue."""
        places, tokens = self._room()
        for index, request in enumerate(requests):
            fitting = self._fitting(request, places, tokens)
            if fitting < request.unbegun:
                waits = not fitting and request not in self._active
                return len(requests) - index - (not waits)
            places -= fitting
            tokens -= fitting * request.tokens
        return 0
