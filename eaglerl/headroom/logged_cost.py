"""The costs of steps by the times that an engine logged beside them."""

from __future__ import annotations

import numpy as np

from eaglerl.headroom.cost_curve import CostCurve
from eaglerl.headroom.step_log import Steps

# Contexts are rounded to this many tokens, so that a point has several steps.
_CONTEXT = 512
_FEWEST_STEPS = 3


def cost_of_steps(steps: Steps) -> CostCurve:
    """Make a curve of the medians of the logged times.

    Args:
        steps: with times and, where a step verified fewer rows than it drafted, with these.

    Raises:
        ValueError: no three steps of the same kind have times.
    """
    context = np.round(steps.context / _CONTEXT).astype(np.int64) * _CONTEXT
    timed = np.isfinite(steps.verify_seconds) & (steps.verify_seconds > 0)
    keys = np.stack((steps.rows, steps.batch, context), axis=1)
    verification = [
        (*map(int, key), value) for key, value in _medians(keys[timed], steps.verify_seconds[timed])
    ]
    if not verification:
        raise ValueError(
            "costs must be given (--cost): fewer than three steps of a kind in the log have "
            "'verify_seconds'"
        )
    timed = np.isfinite(steps.draft_seconds) & (steps.drafted > 0)
    each = steps.draft_seconds[timed] / steps.drafted[timed]
    keys = np.stack((steps.batch, context), axis=1)[timed]
    passes = [(*map(int, key), value) for key, value in _medians(keys, each)]
    notes = ["Costs are the medians of the times in the log"]
    if not passes:
        notes.append("Drafting is taken to cost nothing: the log has no 'draft_seconds'")
    return CostCurve("the log's own times", verification, passes, notes=notes)  # type: ignore[arg-type]


def _medians(keys: np.ndarray, values: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Return the median of the values of each key that has enough of them."""
    if not len(keys):
        return []
    kinds, place = np.unique(keys, axis=0, return_inverse=True)
    return [
        (kind, float(np.median(values[place.reshape(-1) == number])))
        for number, kind in enumerate(kinds)
        if (place == number).sum() >= _FEWEST_STEPS
    ]
