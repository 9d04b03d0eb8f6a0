"""The order in which sequences that are decoded side by side are complete."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def in_order_of_completion(items: Iterable[tuple[_T, int]], slots: int) -> Iterator[_T]:
    """Put items in the order in which one machine would complete them.

    The machine has so many slots, takes the next item as soon as one is free, and advances the
    items of all slots by one pass at a time. Of items that are complete after the same pass, the
    earlier one comes first.

    Args:
        items: items in the order in which they are begun, each with the number of its passes.
        slots: number of items side by side.
    """
    running: list[tuple[int, int, _T]] = []
    passes = 0
    waiting = enumerate(items)
    while True:
        while len(running) < slots and (entry := next(waiting, None)) is not None:
            index, (item, needed) = entry
            heapq.heappush(running, (passes + needed, index, item))
        if not running:
            return
        passes = running[0][0]
        while running and running[0][0] == passes:
            yield heapq.heappop(running)[2]
