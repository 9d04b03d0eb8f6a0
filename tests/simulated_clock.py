"""A clock that shows the times of a cost table, with noise and stalls, and three such tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from eaglerl.cost.cost_table import CostTable

#: Costs of three kinds of machine: rows that cost much, and the passes of drafts of width 4.
STEEP = CostTable(
    "steep", "float32", (1, 2, 4, 8, 16, 32), (0.010, 0.012, 0.016, 0.026, 0.05, 0.09),
    (0.0,) * 6, (4,), (1.5e-3,), (6e-4,),
)  # fmt: skip
#: A kernel that takes rows in blocks of 8.
STEP = CostTable(
    "step", "float32", (1, 8, 9, 32), (0.040, 0.043, 0.060, 0.070), (0.0,) * 4, (4,),
    (2e-3,), (1e-3,),
)  # fmt: skip
FLAT = CostTable("flat", "float32", (1, 32), (0.010, 0.010), (0.0, 0.0), (4,), (5e-4,), (5e-4,))
#: `STEEP` with one thread instead of two: all is slower, and rows cost more beside each other.
ONE_THREAD = CostTable(
    "one thread", "float32", (1, 2, 4, 8, 16, 32), (0.016, 0.022, 0.033, 0.057, 0.11, 0.2),
    (0.0,) * 6, (4,), (2.5e-3,), (9e-4,),
)  # fmt: skip
WIDTH = 4


def repriced(table: CostTable, factor: Callable[[int], float], passes: float = 1.0) -> CostTable:
    """Return a table of 1 to 32 rows that cost `factor(rows)` times as much, and its passes."""
    rows = range(1, 33)
    return replace(
        table,
        total_tokens=tuple(rows),
        verify_base=tuple(factor(row) * float(table.verify_seconds(row, 0)) for row in rows),
        verify_slope=(0.0,) * 32,
        first_pass=tuple(passes * seconds for seconds in table.first_pass),
        later_pass=tuple(passes * seconds for seconds in table.later_pass),
    )


@dataclass
class Clock:
    """Times of a cost table, with noise and stalls.

    Attributes:
        table: the true costs.
        noise: standard deviation of the logarithm of a time.
        stalls: share of the times that are 2 to 10 times as long.
        seed: seed of noise and stalls.
        later: the true costs after `drift` cycles, if they drift; they go on as they began.
        drift: number of cycles.
        stall_rows: the next verification of so many rows takes 10 times as long.
        cycle: number of the cycle.
        stalled: the cycles in which that happened.
    """

    table: CostTable
    noise: float = 0.05
    stalls: float = 0.01
    seed: int = 0
    later: CostTable | None = None
    drift: int = 1
    stall_rows: int | None = None
    cycle: int = 0
    stalled: list[int] = field(default_factory=list)
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed + 1_000_000)

    def measure(self, true: float) -> float:
        """Return what a stopwatch would show."""
        stall = self.draw.uniform(2, 10) if self.draw.random() < self.stalls else 1.0
        return float(true) * math.exp(self.draw.normal(0, self.noise)) * stall

    def verify_seconds(self, rows: int, context: int = 0) -> float:
        """Return the true seconds of a verification now."""
        now = float(self.table.verify_seconds(rows, context))
        if self.later is None:
            return now
        return now * (float(self.later.verify_seconds(rows, context)) / now) ** self._drifted()

    def draft_seconds(self, depth: int, context: int = 0) -> float:
        """Return the true seconds of a draft now."""
        now = float(self.table.draft_seconds(depth, WIDTH, context))
        if self.later is None:
            return now
        return now * (float(self.later.draft_seconds(depth, WIDTH, context)) / now) ** (
            self._drifted()
        )

    def measure_verification(self, rows: int, context: int = 0) -> float:
        """Return what a stopwatch would show for a verification."""
        measured = self.measure(self.verify_seconds(rows, context))
        if rows != self.stall_rows:
            return measured
        self.stall_rows = None
        self.stalled.append(self.cycle)
        return 10 * measured

    def _drifted(self) -> float:
        return self.cycle / self.drift
