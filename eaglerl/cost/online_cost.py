"""The cost of a cycle on this machine, learned while decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from eaglerl._ext import C
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, StepResult
from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, VersionedSchema, read_json
from eaglerl.ops.limits import LARGEST_TREE

FORMAT = "eaglerl-online-cost"
VERSION = 1
# Standard deviation of a logarithm that is taken over from another process or from a table: the
# machine's speed may have changed by half, its passes by 15 %, and what rows cost beside each other
# by three quarters of what is thought possible at the beginning. With less, row counts that a table
# priced too high were never tried, and decoding was up to 26 % slower than with the truth.
_LEAST_SPREAD = 0.15
_LEAST_SHARE = 0.75
_SPEED_SPREAD = 0.5
# Within e^30 of a second.
_Logarithm = Annotated[float, Field(ge=-30.0, le=30.0)]


class OnlineCost:
    """Seconds of a cycle, learned from the measured times of every cycle.

    Verifying r rows at context length c takes speed * verify(r) * (1 + c * growth) seconds, and a
    draft of D rounds after the first takes speed * (first_pass + D * later_pass). The logarithms of
    these factors are tracked by an extended Kalman filter (Simon, "Optimal State Estimation",
    section 13.2). A cycle that is slow as a whole therefore moves the speed, and not what rows cost
    beside each other. Up to 32 rows the factors are kept at 17 row counts, whose prior is a
    random walk over the logarithm of the rows. A time that is off by more than three standard
    deviations counts as one off by three; four cycles in a row that are off in the same direction
    mean that the machine has changed, and widen the belief.

    Where sequences draft together, a pass has rows of several: its width is that of one draft times
    their number, and between two widths its cost is interpolated.

    Attributes:
        top_ks: widths of the draft, ascending.
        max_rows: most rows.
    """

    def __init__(self, top_ks: Sequence[int] = (4,), max_rows: int = 64) -> None:
        """Begin without knowledge: 7 % more for every row, and passes of 15 % and 6 % of a row.

        What is learned of one width is believed of the others, too, the less the more they differ.

        Args:
            top_ks: widths of the draft, ascending.
            max_rows: most rows that are ever verified.

        Raises:
            ValueError: the widths do not ascend from at least 1, or `max_rows` is out of range.
        """
        top_ks = tuple(top_ks)
        if not top_ks or top_ks[0] < 1 or list(top_ks) != sorted(set(top_ks)):
            raise ValueError(f"top_ks must ascend from at least 1, got {list(top_ks)}")
        self.top_ks = top_ks
        self.max_rows = max_rows
        self._native = C.OnlineCost(max_rows, top_ks)

    @property
    def cycles(self) -> int:
        """Number of cycles learned from."""
        return self._native.cycles

    @property
    def speed(self) -> float:
        """Seconds of verifying one row without context."""
        return self._native.speed * float(self._native.verify()[0])

    def observe(self, result: StepResult) -> None:
        """Learn from the times of a cycle.

        A cycle without times is passed over, and so is one of more than `max_rows` rows.

        Raises:
            ValueError: the draft's width is not one of `top_ks`, or a time is not finite.
        """
        if not result.verify_seconds > 0.0 or result.rows > self.max_rows:
            return
        drafted = result.params != NO_DRAFT
        self._native.observe(
            result.rows,
            result.context_length - len(result.token_ids),
            result.verify_seconds,
            self.width_index(result.params.top_k) if drafted else 0,
            result.params.depth,
            result.draft_seconds if drafted else 0.0,
        )

    def width_index(self, top_k: int) -> int:
        """Return the place of a width in `top_ks`.

        Raises:
            ValueError: it is not among them.
        """
        if top_k not in self.top_ks:
            raise ValueError(f"top_k must be one of {list(self.top_ks)}, got {top_k}")
        return self.top_ks.index(top_k)

    def table(self, machine: str = "learned while decoding", draft_dtype: str = "") -> CostTable:
        """Return the present estimate as a table.

        Args:
            machine: description for the table.
            draft_dtype: precision of the draft's matrix products, for the table.
        """
        rows = [row for row in self._native.knots().tolist() if row <= self.max_rows]
        unit = self._native.speed
        base = unit * self._native.verify()[np.array(rows) - 1]
        passes = [self._native.passes(width) for width in range(len(self.top_ks))]
        return CostTable(
            machine=machine,
            draft_dtype=draft_dtype,
            total_tokens=tuple(rows),
            verify_base=tuple(base.tolist()),
            verify_slope=tuple((base * self._native.context_growth).tolist()),
            top_ks=self.top_ks,
            first_pass=tuple(unit * first for first, _ in passes),
            later_pass=tuple(unit * later for _, later in passes),
            samples=self.cycles,
        )

    def fill(self, table: CostTable) -> None:
        """Take over the costs of a table, as what is known before the next cycle.

        Row counts beyond the table's and widths that it lacks stay as they are.
        """
        mean, spread = self._native.belief()
        knots = self._native.knots()
        known = knots <= table.total_tokens[-1]
        base = np.asarray(table.verify_seconds(knots[known], 0))
        mean[0] = np.log(base[0])
        growth_of = mean[1 : len(knots)]
        growth_of[known[1:]] = np.log(base[1:] / base[0])
        # What is beyond the table costs no less than its end.
        growth_of[~known[1:]] = np.maximum(growth_of[~known[1:]], np.log(base[-1] / base[0]))
        growth = np.mean(np.asarray(table.verify_slope) / np.asarray(table.verify_base))
        mean[len(knots)] = np.log(max(growth, 1e-9))
        spread[: len(knots)][known] = 0.0
        spread[len(knots)] = _LEAST_SPREAD
        for width, top_k in enumerate(self.top_ks):
            if top_k in table.top_ks:
                first, later, _ = table.draft_passes(top_k)
                place = len(knots) + 1 + 2 * width
                mean[place : place + 2] = np.log(np.maximum((first, later), 1e-9) / base[0])
                spread[place : place + 2] = _LEAST_SPREAD
        self._native.restore(mean, self._taken_over(spread), max(self.cycles, 1))

    def _taken_over(self, spread: np.ndarray) -> np.ndarray:
        """Return standard deviations that leave room for changes."""
        rows = len(self._native.knots())
        spread = np.maximum(spread, _LEAST_SPREAD)
        first = C.OnlineCost(self.max_rows, self.top_ks).belief()[1]
        spread[:rows] = np.maximum(spread[:rows], _LEAST_SHARE * first[:rows])
        spread[0] = _SPEED_SPREAD
        return spread

    def to_json(self, path: str | Path) -> None:
        """Write what was learned to a file."""
        mean, spread = self._native.belief()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "top_ks": self.top_ks,
            "max_rows": self.max_rows,
            "cycles": self.cycles,
            "mean": mean.tolist(),
            "spread": spread.tolist(),
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> OnlineCost:
        """Read a file that `to_json` wrote; what it says is a little less certain than it was.

        Raises:
            ValueError: the file is not one of learned costs.
        """
        content = read_json(path, _Schema, "learned costs", form=(FORMAT, VERSION))
        try:
            cost = cls(content.top_ks, content.max_rows)
            mean, spread = np.array(content.mean), np.array(content.spread)
            cost._native.restore(mean, spread, content.cycles)  # refuses a wrong size
            cost._native.restore(mean, cost._taken_over(spread), content.cycles)
        except ValueError as problem:
            raise ValueError(f"the learned costs {str(path)!r}: {problem}") from None
        return cost


class _Schema(VersionedSchema):
    top_ks: Items[Annotated[int, Field(ge=1, le=LARGEST_TREE["top_k"])]]
    max_rows: Annotated[int, Field(ge=1, le=LARGEST_TREE["total_tokens"])]
    cycles: Count
    mean: Items[_Logarithm]
    spread: Items[Annotated[float, Field(gt=0.0, le=30.0)]]
