"""Times of the parts of a cycle, without waiting for a device in between."""

from __future__ import annotations

import time

import torch


class TotalTime:
    """Adds up the time of `with` blocks, on the host's clock.

    Attributes:
        seconds: so far.
    """

    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """The seconds so far; they begin at 0 again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Stopwatch:
    """Marks moments on the host's clock, or in the stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        """Note this moment: on the host now, on CUDA when the work queued so far is done."""
        if not self._on_cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def laps(self) -> list[float]:
        """Seconds between the marks; all of them must have passed, so nothing waits."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._on_cuda:
            return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]
        return [later - earlier for earlier, later in pairs]
