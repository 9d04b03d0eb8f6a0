"""Check that a cost table is good enough to base decisions on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

#: Largest errors of a fit (see `CostError`) with which a table is accepted. An otherwise idle
#: machine gives about 0.03 and 0.1. The error of the total has no bound: it includes every
#: disturbance, to which the medians that a table is fitted to are robust.
MOST_MEDIAN, MOST_WORST = 0.25, 1.0
#: Largest errors of a fit that are not reported. An idle machine stays below both.
MOST_MEDIAN_UNREPORTED, MOST_WORST_UNREPORTED = 0.05, 0.2
# One pass over T rows may take at most 2.0 times as long as T passes over one row, and at least 0.5
# times as long as a pass over fewer rows: anything beyond that is noise.
_MOST_BESIDE_SINGLE, _LEAST_BESIDE_FEWER = 2.0, 0.5
# Context length, besides 0, at which the times are checked.
_CONTEXT = 256


@dataclass(frozen=True)
class CostError:
    """The error of a fitted table on the measurements that it was fitted to.

    Attributes:
        median: median over the measured kinds of cycle of |median measured / predicted - 1|.
        worst: largest of the same.
        total: predicted time of all measured cycles together over their measured time, less 1.
    """

    median: float
    worst: float
    total: float


class Costs(Protocol):
    """The part of a `CostTable` that is checked."""

    @property
    def total_tokens(self) -> tuple[int, ...]: ...
    @property
    def verify_base(self) -> tuple[float, ...]: ...
    @property
    def top_ks(self) -> tuple[int, ...]: ...
    @property
    def first_pass(self) -> tuple[float, ...]: ...
    @property
    def later_pass(self) -> tuple[float, ...]: ...
    @property
    def error(self) -> CostError | None: ...

    def verify_seconds(self, rows: np.ndarray, context_length: int) -> np.ndarray: ...


def why_doubtful(error: CostError) -> str | None:
    """Return why a usable table should be measured again, as a clause; None if it fits well."""
    if error.median <= MOST_MEDIAN_UNREPORTED and error.worst <= MOST_WORST_UNREPORTED:
        return None
    return (
        f"the table is off by {100 * error.median:.0f} % for half of the kinds of cycle and by up "
        f"to {100 * error.worst:.0f} %"
    )


def why_unusable(table: Costs) -> str | None:
    """Return why a table is unusable, as a clause without a full stop; None if it is usable.

    A policy divides by these times and chooses by their differences, so it would always choose an
    operation that seems to cost nothing.
    """
    rows = np.array(table.total_tokens)
    if (free := np.asarray(table.verify_base) <= 0).any():
        return f"verifying {ranges(rows, free)} rows takes 0.0 s"
    for name, words in (("first_pass", "the first draft pass"), ("later_pass", "a draft pass")):
        if (free := np.asarray(getattr(table, name)) <= 0).any():
            return f"{words} of width {ranges(np.array(table.top_ks), free)} takes 0.0 s"
    for context in (0, _CONTEXT):
        why = _why_uneven(rows, table.verify_seconds(rows, context))
        if why is not None:
            return f"after {context} tokens, {why}"
    return _why_inexact(table)


def _why_uneven(rows: np.ndarray, seconds: np.ndarray) -> str | None:
    most = np.maximum.accumulate(seconds)
    if (fast := seconds < _LEAST_BESIDE_FEWER * most).any():
        i = int(fast.argmax())
        j = int(seconds[:i].argmax())
        return (
            f"verifying {rows[i]} rows takes {seconds[i]:.3g} s, less than half of the "
            f"{seconds[j]:.3g} s of {rows[j]} rows"
        )
    if (slow := seconds > _MOST_BESIDE_SINGLE * rows * seconds[0]).any():
        i = int(slow.argmax())
        return (
            f"verifying {rows[i]} rows takes {seconds[i] / seconds[0]:.0f} times as long as one row"
        )
    return None


def _why_inexact(table: Costs) -> str | None:
    if table.error is None:
        return None
    for value, most, words in (
        (table.error.median, MOST_MEDIAN, "half of the kinds of cycle are off by more than"),
        (table.error.worst, MOST_WORST, "the worst kind of cycle is off by"),
    ):
        # Written so that NaN fails.
        if not value <= most:
            return f"{words} {100 * value:.0f} %, where at most {100 * most:.0f} % are allowed"
    return None


def ranges(grid: np.ndarray, chosen: np.ndarray) -> str:
    """Return the chosen ones of ascending numbers as text, with neighbours as a range."""
    parts: list[list[int]] = []
    last: int | None = None
    for index in np.flatnonzero(chosen):
        if last is not None and index == last + 1:
            parts[-1][1] = int(grid[index])
        else:
            parts.append([int(grid[index])] * 2)
        last = int(index)
    return _listed([str(a) if a == b else f"{a} to {b}" for a, b in parts])


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
