"""Fit a cost table to measured cycles, on a machine whose speed varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.cost.cost_check import ranges
from eaglerl.cost.cost_table import CostError, CostTable
from eaglerl.eagle3.policy import TreeParams

# Number of consecutive cycles from which the machine's speed at the middle one is estimated.
_STRETCH = 15
# Prior standard deviation of the time of T rows around the line between its neighbours, relative.
_UNEVENNESS = 0.02
# Least relative standard error of a median: identical samples would make it 0.
_LEAST_NOISE = 1e-4


@dataclass(frozen=True, slots=True)
class CycleSample:
    """One measured cycle.

    Attributes:
        params: the draft tree.
        context_length: tokens before the tree.
        draft_seconds: duration of the draft passes.
        verify_seconds: duration of the verification.
    """

    params: TreeParams
    context_length: int
    draft_seconds: float
    verify_seconds: float


def fit_cost_table(samples: Sequence[CycleSample], *, machine: str, draft_dtype: str) -> CostTable:
    """Fit a table to measured cycles.

    Medians make the fit robust to single disturbances. If 15 consecutive cycles as a whole are
    slower or faster than the table, this is attributed to the machine's speed at that time and
    divided out before the next fit. Where samples are few, the time of T rows is smoothed over T: a
    row that seemed to cost nothing would always be verified.

    Args:
        samples: several samples of every T and of every pair of D and K, with at least two D for
            every K, in the order of measurement and with kinds of cycle interleaved.
        machine: description of the machine, stored in the table.
        draft_dtype: precision of the draft's matrix products, stored in the table.

    Returns:
        The table. Verification is monotone in T and in the context.

    Raises:
        ValueError: the samples do not determine a table, or a fitted time is not positive.
    """
    steady: Sequence[CycleSample] = samples
    for _ in range(2):
        table = _fit(steady, machine=machine, draft_dtype=draft_dtype)
        steady = _without_drift(samples, table)
    table = _fit(steady, machine=machine, draft_dtype=draft_dtype)
    return replace(table, error=_fit_error(table, samples))


def _without_drift(samples: Sequence[CycleSample], table: CostTable) -> list[CycleSample]:
    """Return the samples scaled to the machine's median speed."""
    ratios = np.array(
        [
            (sample.draft_seconds + sample.verify_seconds)
            / table.seconds(sample.params, sample.context_length)
            for sample in samples
        ]
    )
    half = _STRETCH // 2
    around = [np.median(ratios[max(0, i - half) : i + half + 1]) for i in range(len(ratios))]
    speeds = np.array(around) / np.median(around)
    return [
        replace(
            sample,
            draft_seconds=sample.draft_seconds / speed,
            verify_seconds=sample.verify_seconds / speed,
        )
        for sample, speed in zip(samples, speeds, strict=True)
    ]


def _fit(samples: Sequence[CycleSample], *, machine: str, draft_dtype: str) -> CostTable:
    totals = sorted({sample.params.total_tokens for sample in samples})
    drafted = [sample for sample in samples if sample.params.total_tokens > 1]
    top_ks = sorted({sample.params.top_k for sample in drafted})
    if not totals or totals[0] != 1 or not top_ks:
        raise ValueError("samples must hold cycles that draft and cycles that do not")
    bases, slopes = _fit_verification(samples, totals)
    if (free := bases <= 0).any():
        raise ValueError(f"verifying {ranges(np.array(totals), free)} rows seems to take no time")
    first, later = zip(*(_fit_passes(drafted, top_k) for top_k in top_ks), strict=True)
    table = CostTable(
        machine=machine,
        draft_dtype=draft_dtype,
        total_tokens=tuple(totals),
        verify_base=tuple(float(base) for base in bases),
        verify_slope=tuple(float(slope) for slope in slopes),
        top_ks=tuple(top_ks),
        first_pass=first,
        later_pass=later,
        samples=len(samples),
    )
    return _with_draft_slope(table, drafted)


def _fit_verification(
    samples: Sequence[CycleSample], totals: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for every T, the seconds of T rows without context and per token of context."""
    contexts, seconds = [], []
    for total in totals:
        chosen = [sample for sample in samples if sample.params.total_tokens == total]
        contexts.append(np.array([sample.context_length for sample in chosen], dtype=float))
        seconds.append(np.array([sample.verify_seconds for sample in chosen]))
    counts = np.array([len(measured) for measured in seconds], dtype=float)
    lines = [_median_line(x, y) for x, y in zip(contexts, seconds, strict=True)]
    slopes = isotonic(np.array([max(slope, 0.0) for _, slope in lines]), counts)
    bases, noise = np.empty(len(totals)), np.empty(len(totals))
    for i, (x, y) in enumerate(zip(contexts, seconds, strict=True)):
        left = y - slopes[i] * x
        bases[i] = np.median(left)
        # Standard error of a median of n normal values, 1.2533 sigma / sqrt(n), with sigma = 1.4826
        # times the median absolute deviation.
        deviation = 1.4826 * np.median(np.abs(left - bases[i]))
        noise[i] = max(1.2533 * deviation / np.sqrt(len(left)), _LEAST_NOISE * np.median(y))
    return isotonic(smoothed(np.array(totals), bases, noise), noise**-2), slopes


def smoothed(places: np.ndarray, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Smooth measured values, the more the less certain they are.

    The result is the most likely one if measurements have normal errors of standard deviation
    `noise`, and the true value has a normal deviation of 2 % from the line between its neighbours
    (Whittaker 1923, for unevenly spaced places).

    Args:
        places: (n,) ascending.
        values: (n,) positive.
        noise: (n,) standard deviations, positive.
    """
    count = len(places)
    if count < 3:
        return values
    before, after = places[1:-1] - places[:-2], places[2:] - places[1:-1]
    rows = np.arange(count - 2)
    beside = np.zeros((count - 2, count))
    beside[rows, rows] = -after / (before + after)
    beside[rows, rows + 1] = 1.0
    beside[rows, rows + 2] = -before / (before + after)
    beside /= (_UNEVENNESS * values[1:-1])[:, None]
    precision = np.diag(noise**-2)
    return np.linalg.solve(precision + beside.T @ beside, precision @ values)


def _fit_passes(samples: Sequence[CycleSample], top_k: int) -> tuple[float, float]:
    """Fit the seconds of the first and of a later pass of one width to the medians per depth."""
    chosen = [sample for sample in samples if sample.params.top_k == top_k]
    depths = sorted({sample.params.depth for sample in chosen})
    if len(depths) < 2:
        raise ValueError(f"samples must hold two depths for top_k={top_k}, got {depths}")
    medians = [np.median([s.draft_seconds for s in chosen if s.params.depth == d]) for d in depths]
    # Weighted by relative errors: a deep tree takes longer, and the error of its median grows with
    # it.
    weights = 1.0 / np.array(medians)
    columns = np.stack((np.ones(len(depths)), np.array(depths, dtype=float)), axis=1)
    (first, later), *_ = np.linalg.lstsq(
        columns * weights[:, None], np.array(medians) * weights, rcond=None
    )
    return max(float(first), 0.0), max(float(later), 0.0)


def _with_draft_slope(table: CostTable, samples: Sequence[CycleSample]) -> CostTable:
    """Fit the draft's time per token of context to the residuals of the passes."""
    contexts = np.array([sample.context_length for sample in samples], dtype=float)
    left = []
    for sample in samples:
        tree = sample.params
        predicted = table.draft_seconds(tree.depth, tree.top_k, 0)
        left.append((sample.draft_seconds - predicted) / (1 + tree.depth))
    _, slope = _median_line(contexts, np.array(left))
    slope = max(slope, 0.0)
    # The passes were fitted at the median context, whose share of the slope they already include.
    inside = slope * float(np.median(contexts))
    return replace(
        table,
        draft_slope=slope,
        first_pass=tuple(max(seconds - inside, 0.0) for seconds in table.first_pass),
        later_pass=tuple(max(seconds - inside, 0.0) for seconds in table.later_pass),
    )


def _median_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope by Theil and Sen, from the median slope of all pairs."""
    first, second = np.triu_indices(len(x), k=1)
    # Pairs closer than a tenth of the range have mostly noise in their slope.
    apart = np.abs(x[second] - x[first]) > 0.1 * (np.ptp(x) if len(x) else 0.0)
    rise, run = (y[second] - y[first])[apart], (x[second] - x[first])[apart]
    slope = float(np.median(rise / run)) if len(run) else 0.0
    return float(np.median(y - slope * x)), slope


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the non-decreasing sequence closest to `values` in weighted least squares."""
    # Only fitting needs scipy, and importing it takes longer than reading a table.
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values, weights=weights).x


def _fit_error(table: CostTable, samples: Sequence[CycleSample]) -> CostError:
    """Compare the table with the samples, disturbances included."""
    ratios: dict[TreeParams, list[float]] = {}
    measured = predicted = 0.0
    for sample in samples:
        seconds = sample.draft_seconds + sample.verify_seconds
        expected = table.seconds(sample.params, sample.context_length)
        ratios.setdefault(sample.params, []).append(seconds / expected)
        measured += seconds
        predicted += expected
    errors = [abs(float(np.median(values)) - 1.0) for values in ratios.values()]
    return CostError(
        median=float(np.median(errors)), worst=max(errors), total=predicted / measured - 1.0
    )
