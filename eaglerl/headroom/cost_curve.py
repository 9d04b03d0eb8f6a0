"""What a step costs on any engine: a curve over rows, batch and context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from eaglerl.cost.cost_table import CostTable


class StepCost(Protocol):
    """What steps cost, as the studies ask for it."""

    @property
    def name(self) -> str:
        """Where it comes from, in words."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences on what it leaves out."""

    def most_rows(self, batch: int) -> int:
        """Return the most rows of a step of `batch` requests that it covers."""

    def verify(self, rows: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """Return the seconds of verifying `rows` rows in all; the arguments broadcast.

        Raises:
            ValueError: more rows than `most_rows`, or a batch that it does not cover.
        """

    def draft(self, levels: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """Return the seconds of drafting so many tokens for each request, 0 for none."""


class _Surface:
    """Seconds over rows, batch and context, linear between the points that were measured.

    Contexts and batches beyond the measured ones cost what the nearest measured ones do. Rows are
    never extrapolated. Nothing is assumed to be monotone: verifying 8 rows may cost less than 7.
    """

    def __init__(self, points: Iterable[tuple[int, int, int, float]]) -> None:
        """Build it from (rows, batch, context, seconds); of equal points the median counts."""
        groups: dict[tuple[int, int], dict[int, list[float]]] = {}
        for rows, batch, context, seconds in points:
            groups.setdefault((batch, context), {}).setdefault(rows, []).append(seconds)
        self._lines: dict[int, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
        for (batch, context), line in sorted(groups.items()):
            grid = np.array(sorted(line))
            medians = np.array([np.median(line[each]) for each in grid.tolist()])
            self._lines.setdefault(batch, {})[context] = grid, medians
        self.batches = np.array(sorted(self._lines))

    def most_rows(self, batch: int) -> int:
        return min(
            int(rows[-1])
            for near, _ in self._near(self.batches, batch)
            for rows, _ in self._lines[near].values()
        )

    def least_rows(self, batch: int) -> int:
        return max(
            int(rows[0])
            for near, _ in self._near(self.batches, batch)
            for rows, _ in self._lines[near].values()
        )

    def __call__(self, rows: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        parts = [
            share * self._of_batch(near, rows, context)
            for near, share in self._near(self.batches, batch)
        ]
        return np.add.reduce(parts)

    def _of_batch(self, batch: int, rows: np.ndarray, context: np.ndarray) -> np.ndarray:
        lines = self._lines[batch]
        contexts = np.array(sorted(lines))
        values = [np.interp(rows, *lines[each]) for each in contexts.tolist()]
        if len(contexts) == 1:
            return np.broadcast_to(values[0], np.broadcast_shapes(values[0].shape, context.shape))
        place = np.clip(np.searchsorted(contexts, context) - 1, 0, len(contexts) - 2)
        share = (context - contexts[place]) / (contexts[place + 1] - contexts[place])
        share = np.clip(share, 0.0, 1.0)
        shape = np.broadcast_shapes(values[0].shape, context.shape)
        stacked = np.stack([np.broadcast_to(value, shape) for value in values])
        place = np.broadcast_to(place, shape)[None]
        low = np.take_along_axis(stacked, place, axis=0)[0]
        high = np.take_along_axis(stacked, place + 1, axis=0)[0]
        return low + share * (high - low)

    @staticmethod
    def _near(grid: np.ndarray, value: int) -> list[tuple[int, float]]:
        """Return the one or two grid values beside a value, with their shares."""
        place = int(np.searchsorted(grid, value))
        if place == len(grid):
            return [(int(grid[-1]), 1.0)]
        if place == 0 or grid[place] == value:
            return [(int(grid[place]), 1.0)]
        low, high = int(grid[place - 1]), int(grid[place])
        share = (value - low) / (high - low)
        return [(low, 1.0 - share), (high, share)]


@dataclass(frozen=True, eq=False)
class CostCurve:
    """Seconds of a step by its rows, requests and context, from points that were measured.

    Attributes:
        name: where the points come from, in words.
        verification: (rows in all, batch, context, seconds) of verifying, at least one point.
        passes: (batch, context, seconds) of drafting one token for each request; without points,
            drafting costs nothing.
        by_rows_alone: the points do not say how many requests had the rows: those of any batch
            count.
        notes: sentences on what the curve leaves out.

    Raises:
        ValueError: there is no point, or a number is out of range.
    """

    name: str
    verification: Sequence[tuple[int, int, int, float]]
    passes: Sequence[tuple[int, int, float]] = ()
    by_rows_alone: bool = False
    notes: Sequence[str] = ()
    _verify: _Surface = field(init=False, repr=False)
    _pass: _Surface | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.verification:
            raise ValueError("verification must have a point, got none")
        for rows, batch, context, seconds in self.verification:
            if rows < 1 or batch < 1 or context < 0 or not 0.0 < seconds < 1e9:
                raise ValueError(
                    "a point must have rows and batch of at least 1, a context of at least 0 and "
                    f"positive seconds, got {(rows, batch, context, seconds)}"
                )
        for batch, context, seconds in self.passes:
            if batch < 1 or context < 0 or not 0.0 <= seconds < 1e9:
                raise ValueError(
                    "a draft pass must have a batch of at least 1, a context of at least 0 and "
                    f"seconds, got {(batch, context, seconds)}"
                )
        points = self.verification
        if self.by_rows_alone:
            points = [(rows, 1, context, seconds) for rows, _, context, seconds in points]
        drafts = [(1, batch, context, seconds) for batch, context, seconds in self.passes]
        object.__setattr__(self, "_verify", _Surface(points))
        object.__setattr__(self, "_pass", _Surface(drafts) if drafts else None)

    def most_rows(self, batch: int) -> int:
        """See `StepCost`."""
        return self._verify.most_rows(batch)

    def verify(self, rows: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """See `StepCost`."""
        rows, context = np.asarray(rows), np.asarray(context)
        least, most = self._verify.least_rows(batch), self._verify.most_rows(batch)
        if rows.size and (rows.min() < least or rows.max() > most):
            wrong = rows.min() if rows.min() < least else rows.max()
            raise ValueError(
                f"the costs ({self.name}) must cover steps of {wrong} rows for {batch} requests; "
                f"they have {least} to {most} rows: measure more, or ask for shorter chains"
            )
        return self._verify(rows, batch, context)

    def draft(self, levels: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """See `StepCost`."""
        levels, context = np.asarray(levels), np.asarray(context)
        if self._pass is None:
            return np.zeros(np.broadcast_shapes(levels.shape, context.shape))
        return levels * self._pass(np.ones(1), batch, context)

    def table(self, contexts: tuple[int, int], top_ks: Sequence[int]) -> CostTable:
        """Return the costs of one request as a table, for trees.

        A draft pass is taken to cost the same for all widths.

        Args:
            contexts: two lengths between which the cost is taken to grow linearly.
            top_ks: widths of the drafts, ascending.

        Raises:
            ValueError: one row was not measured, or the times give no table.
        """
        rows = np.array(sorted({rows for rows, batch, _, _ in self._points() if batch == 1}))
        if not len(rows) or rows[0] != 1:
            raise ValueError(
                f"the costs ({self.name}) must have points of 1 request and 1 row for trees, got "
                f"rows {rows.tolist()[:8]}"
            )
        rows = rows[rows <= self.most_rows(1)]
        low, high = contexts
        base, slope = _line(self.verify(rows, 1, np.array(low)),
                            self.verify(rows, 1, np.array(high)), low, high)  # fmt: skip
        one = np.ones(1)
        first, growth = _line(self.draft(one, 1, np.array(low)),
                              self.draft(one, 1, np.array(high)), low, high)  # fmt: skip
        each = (float(first[0]),) * len(top_ks)
        return CostTable(
            machine=self.name,
            draft_dtype="",
            total_tokens=tuple(rows.tolist()),
            verify_base=tuple(base.tolist()),
            verify_slope=tuple(slope.tolist()),
            top_ks=tuple(top_ks),
            first_pass=each,
            later_pass=each,
            draft_slope=float(growth[0]),
        )

    def _points(self) -> list[tuple[int, int, int, float]]:
        if self.by_rows_alone:
            return [(rows, 1, context, seconds) for rows, _, context, seconds in self.verification]
        return list(self.verification)


def _line(
    at_low: np.ndarray, at_high: np.ndarray, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return base and slope, not negative, of lines through two contexts."""
    slope = np.maximum((at_high - at_low) / max(high - low, 1), 0.0)
    return np.maximum(at_low - slope * low, 1e-12), slope


@dataclass(frozen=True, eq=False)
class TableCost:
    """A cost table of eaglerl as the cost of chains.

    It was measured with one sequence, so a step of several requests is taken to cost what one
    sequence's step of as many rows does.

    Attributes:
        table: the table.
        top_k: width whose draft passes are taken: the narrowest of the table.
    """

    table: CostTable

    @property
    def top_k(self) -> int:
        """See the class."""
        return self.table.top_ks[0]

    @property
    def name(self) -> str:
        """See `StepCost`."""
        return self.table.machine

    @property
    def notes(self) -> Sequence[str]:
        """See `StepCost`."""
        if self.top_k == 1:
            return ()
        return [f"Draft passes cost what those of width {self.top_k} do; the table has no narrower"]

    def most_rows(self, batch: int) -> int:
        """See `StepCost`."""
        return self.table.total_tokens[-1]

    def verify(self, rows: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """See `StepCost`."""
        return self.table.verify_seconds(np.asarray(rows), np.asarray(context))

    def draft(self, levels: np.ndarray, batch: int, context: np.ndarray) -> np.ndarray:
        """See `StepCost`."""
        levels, context = np.asarray(levels), np.asarray(context)
        passes = self.table.draft_seconds(np.maximum(levels - 1, 0), self.top_k, context)
        return np.where(levels > 0, passes, 0.0)


def curve_of(points: Mapping[tuple[int, int], Sequence[float]], name: str) -> CostCurve:
    """Make a curve of whole steps from the times of each (rows, batch), context unknown.

    Args:
        points: seconds by rows and batch.
        name: where they come from.
    """
    return CostCurve(
        name,
        [(rows, batch, 0, float(np.median(times))) for (rows, batch), times in points.items()],
        notes=[
            "The times are those of whole steps, drafting included, so what a shorter draft saves "
            "shows only where steps of fewer rows were measured, and the context is not known"
        ],
    )
