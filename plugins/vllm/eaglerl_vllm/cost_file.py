"""Learned costs that outlast the process."""

from __future__ import annotations

import atexit
import time
from multiprocessing import util
from pathlib import Path

from eaglerl.cost.online_cost import OnlineCost

# vLLM ends its processes without warning; writing takes a millisecond.
_SECONDS = 5.0


class CostFile:
    """Writes what is learned to a file, every five seconds and, where it can, at the end."""

    def __init__(self, cost: OnlineCost, path: str | Path) -> None:
        """Set up.

        Args:
            cost: what is learned.
            path: the file.
        """
        self._cost, self._path = cost, path
        self._next = time.monotonic() + _SECONDS
        atexit.register(self.write)
        # Processes that multiprocessing has started end without atexit.
        util.Finalize(self, self._cost.to_json, (path,), exitpriority=1)

    def end_step(self) -> None:
        """Write the file if it is time."""
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the file."""
        self._cost.to_json(self._path)
        self._next = time.monotonic() + _SECONDS


def kept_cost(path: str | Path, like: OnlineCost) -> OnlineCost:
    """Return the costs in a file, or `like` if there is none for as many rows and widths.

    Raises:
        ValueError: the file is not one of learned costs.
    """
    if Path(path).exists():
        known = OnlineCost.from_json(path)
        if (known.top_ks, known.max_rows) == (like.top_ks, like.max_rows):
            return known
    return like
