"""Whether a cost table is good enough to decide by, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from eaglerl.cost.cost_table import CostTable

#: Largest errors of a fit (see `CostError`) that a table is kept with. A machine that does nothing
#: else gives about 0.03 and 0.1. The error of the total has no bound: it holds every disturbance,
#: which the medians that a table is made of do not.
MOST_MEDIAN, MOST_WORST = 0.25, 1.0
#: What T rows may take at most, beside T passes of one row each; below a smaller number of rows,
#: at least.
_MOST_BESIDE_SINGLE, _LEAST_BESIDE_FEWER = 2.0, 0.5
# A context at which a table is looked at.
_CONTEXT = 256


def why_unusable(table: CostTable) -> str | None:
    """Why a table must not be decided by, in a sentence without its end; None if it may be.

    A policy divides by these times and chooses by their differences: what seems to cost nothing
    would be done always.
    """
    rows = np.array(table.total_tokens)
    if (free := np.asarray(table.verify_base) <= 0).any():
        return f"verifying {ranges(rows, free)} rows takes 0.0 s"
    for name, words in (("first_pass", "the first draft pass"), ("later_pass", "a draft pass")):
        if (free := np.asarray(getattr(table, name)) <= 0).any():
            return f"{words} of width {ranges(np.array(table.top_ks), free)} takes 0.0 s"
    for context in (0, _CONTEXT):
        why = _why_uneven(rows, np.asarray(table.verify_seconds(rows, context)))
        if why is not None:
            return f"after {context} tokens, {why}"
    return _why_inexact(table)


def _why_uneven(rows: np.ndarray, seconds: np.ndarray) -> str | None:
    most = np.maximum.accumulate(seconds)
    if (cheap := seconds < _LEAST_BESIDE_FEWER * most).any():
        i = int(cheap.argmax())
        j = int(seconds[:i].argmax())
        return (
            f"verifying {rows[i]} rows takes {seconds[i]:.3g} s, less than half of the "
            f"{seconds[j]:.3g} s of {rows[j]} rows"
        )
    if (dear := seconds > _MOST_BESIDE_SINGLE * rows * seconds[0]).any():
        i = int(dear.argmax())
        return (
            f"verifying {rows[i]} rows takes {seconds[i] / seconds[0]:.0f} times as long as one row"
        )
    return None


def _why_inexact(table: CostTable) -> str | None:
    if table.error is None:
        return None
    for value, most, words in (
        (table.error.median, MOST_MEDIAN, "half of the kinds of cycle are off by more than"),
        (table.error.worst, MOST_WORST, "the worst kind of cycle is off by"),
    ):
        # So that NaN is none that passes.
        if not value <= most:
            return f"{words} {100 * value:.0f} %, where at most {100 * most:.0f} % are allowed"
    return None


def ranges(grid: np.ndarray, chosen: np.ndarray) -> str:
    """The chosen of some ascending numbers, neighbours as a range."""
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
