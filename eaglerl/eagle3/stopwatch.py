"""Times of the parts of a cycle, measured without waiting for a device in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import torch


class TotalTime:
    """A sum of the time of `with` blocks, on the host's clock.

    Attributes:
        seconds: the sum so far.
    """

    __slots__ = ("_started", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._started

    def take(self) -> float:
        """Return the seconds so far and start again at 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


#: A moment on the host's clock, in seconds, or in the stream of a CUDA device.
Moment: TypeAlias = float | torch.cuda.Event


def clock_of(device: torch.device) -> Callable[[], Moment]:
    """Return a function that records a moment of a device's work.

    On CUDA this is the moment when all work queued so far is done, elsewhere the current time.
    """
    return _record_event if device.type == "cuda" else time.perf_counter


def seconds_between(*moments: Moment) -> list[float]:
    """Return the seconds between consecutive moments, all of which must have passed."""
    return [_seconds(earlier, later) for earlier, later in pairwise(moments)]


def _seconds(earlier: Moment, later: Moment) -> float:
    if isinstance(earlier, float) and isinstance(later, float):
        return later - earlier
    # Both moments come from one clock.
    assert isinstance(earlier, torch.cuda.Event)
    assert isinstance(later, torch.cuda.Event)
    # The last moment of a cycle comes after the copy that the host has waited for: microseconds are
    # missing at most, and torch refuses an event that has not passed.
    while not later.query():
        pass
    return earlier.elapsed_time(later) / 1000


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
