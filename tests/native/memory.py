"""Real memory and any numbers, of which calls of the extension are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from arguments import Source

# Sizes between what there is and what no machine has are the caller's word.
HUGE = (2**41, 2**62, 2**63 - 1, 2**63, 2**70)
NEGATIVE = (-1, -7, -(2**31), -(2**63), -(2**70))
WORDS = (None, "text", 0.5, [], True)

Step = tuple[Callable[..., Any], list[Any]]


class Memory:
    """Zeroed arrays of one case, by their addresses."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def __call__(self, count: int, dtype: torch.dtype = torch.float32) -> int:
        self.kept.append(torch.zeros(max(count, 1) + 64, dtype=dtype))
        return self.kept[-1].data_ptr()

    def int32(self, count: int) -> int:
        return self(count, torch.int32)

    def int64(self, count: int) -> int:
        return self(count, torch.int64)


def spoil_numbers(values: list[Any], source: Source) -> list[Any]:
    """Replace up to two numbers; addresses are only left out or moved by a byte."""
    values = list(values)
    count = min(source.choice((0, 1, 1, 2)), len(values))
    for place in source.sample(range(len(values)), count):
        value = values[place]
        if isinstance(value, int) and value > 2**32:
            values[place] = source.choice((0, value + 1, -value))
        elif value == 0:  # perhaps an address that was left out
            values[place] = source.choice((*NEGATIVE, *WORDS, 2**70))
        else:
            values[place] = source.choice((*HUGE, *NEGATIVE, *WORDS, float("nan"), float("inf")))
    return values


def drive_calls(calls: list[Callable[[], Any]]) -> None:
    """Make the calls; documented errors are right, unless all calls raise."""
    problem, succeeded = None, 0
    for call in calls:
        try:
            call()
            succeeded += 1
        except (ValueError, TypeError, RuntimeError) as error:
            problem = error
    if problem is not None and not succeeded:
        raise problem


def spoiled_array(array: np.ndarray | None, source: Source, share: float = 0.02) -> Any:
    if array is None or source.random() >= share:
        return array
    return source.choice((
        array.astype(np.float64), array.astype(np.int64), array[:-1], array[..., None], array.T,
        np.repeat(array, 2, -1)[..., ::2], array.astype(">f4"), array.tolist(), None, array[:0],
        np.full_like(array, np.nan), array * 1e38, np.frombuffer(
            bytearray(b"\1") + array.tobytes(), array.dtype, array.size, 1).reshape(array.shape),
    ))  # fmt: skip
