"""A cost table from measured cycles, on a machine that is not always equally fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.cost.cost_check import ranges
from eaglerl.cost.cost_table import CostError, CostTable
from eaglerl.eagle3.policy import TreeParams

# Cycles around one that say how fast the machine was then.
_STRETCH = 15
# How far the time of T rows lies from the line between its neighbours', as a share of it.
_UNEVENNESS = 0.02
# A median is never believed to be more exact than this share of it.
_LEAST_NOISE = 1e-4


@dataclass(frozen=True, slots=True)
class CycleSample:
    """One measured cycle.

    Attributes:
        params: its tree.
        context_length: tokens before it.
        draft_seconds: time of its draft passes.
        verify_seconds: time of its verification.
    """

    params: TreeParams
    context_length: int
    draft_seconds: float
    verify_seconds: float


def fit_cost_table(samples: Sequence[CycleSample], *, machine: str, draft_dtype: str) -> CostTable:
    """Fit the table to measured cycles.

    By medians, so that single disturbances do not count. What a stretch of 15 cycles took together
    beside the table is put down to the machine, which was faster or slower then, and taken out
    before the table is fitted again. The time of T rows is smoothed over T where the samples say
    less than that neighbours are alike: a row that seems to cost nothing would be verified always.

    Args:
        samples: several of every T and of every pair of D and K; two D at least for every K. In the
            order in which they were measured, the kinds mixed.
        machine: kept with the table.
        draft_dtype: kept with the table.

    Returns:
        The table. Verification is monotone in T and in the context.

    Raises:
        ValueError: samples from which no table follows, or one whose times are not positive.
    """
    steady = samples
    for _ in range(2):
        table = _fit(steady, machine=machine, draft_dtype=draft_dtype)
        steady = _without_drift(samples, table)
    table = _fit(steady, machine=machine, draft_dtype=draft_dtype)
    return replace(table, error=_fit_error(table, samples))


def _without_drift(samples: Sequence[CycleSample], table: CostTable) -> list[CycleSample]:
    """The samples as if the machine had been as fast as in the median throughout."""
    ratios = np.array(
        [
            (sample.draft_seconds + sample.verify_seconds)
            / float(table.seconds(sample.params, sample.context_length))
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
    """Seconds of T rows without a context, and per token of it, for every T."""
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
        # Standard error of a median, from the median deviation, for normal noise.
        deviation = 1.4826 * np.median(np.abs(left - bases[i]))
        noise[i] = max(1.2533 * deviation / np.sqrt(len(left)), _LEAST_NOISE * np.median(y))
    return isotonic(smoothed(np.array(totals), bases, noise), noise**-2), slopes


def smoothed(places: np.ndarray, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Measured values, each drawn to the line between its neighbours as far as it is uncertain.

    The most likely values, if measurements scatter by `noise` and a value lies beside its
    neighbours' line by 2 % of it, both normally (Whittaker 1923, for places that are not
    equidistant).

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
    """Seconds of the first pass and of a later one, of one width, from the medians per depth."""
    chosen = [sample for sample in samples if sample.params.top_k == top_k]
    depths = sorted({sample.params.depth for sample in chosen})
    if len(depths) < 2:
        raise ValueError(f"samples must hold two depths for top_k={top_k}, got {depths}")
    medians = [np.median([s.draft_seconds for s in chosen if s.params.depth == d]) for d in depths]
    # Relative errors count: a deep tree's pass is no more exact than a shallow one's.
    weights = 1.0 / np.array(medians)
    columns = np.stack((np.ones(len(depths)), np.array(depths, dtype=float)), axis=1)
    (first, later), *_ = np.linalg.lstsq(
        columns * weights[:, None], np.array(medians) * weights, rcond=None
    )
    return max(float(first), 0.0), max(float(later), 0.0)


def _with_draft_slope(table: CostTable, samples: Sequence[CycleSample]) -> CostTable:
    """Give what is left of the draft's time after the fit to the context."""
    contexts = np.array([sample.context_length for sample in samples], dtype=float)
    left = []
    for sample in samples:
        tree = sample.params
        predicted = table.draft_seconds(tree.depth, tree.top_k, 0)
        left.append((sample.draft_seconds - predicted) / (1 + tree.depth))
    _, slope = _median_line(contexts, np.array(left))
    slope = max(slope, 0.0)
    # The passes were fitted at the median context, so that much of the slope is in them already.
    inside = slope * float(np.median(contexts))
    return replace(
        table,
        draft_slope=slope,
        first_pass=tuple(max(seconds - inside, 0.0) for seconds in table.first_pass),
        later_pass=tuple(max(seconds - inside, 0.0) for seconds in table.later_pass),
    )


def _median_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope by Theil and Sen: the median of the slopes of all pairs."""
    first, second = np.triu_indices(len(x), k=1)
    # Pairs that are close together say nothing about a slope.
    apart = np.abs(x[second] - x[first]) > 0.1 * (np.ptp(x) if len(x) else 0.0)
    rise, run = (y[second] - y[first])[apart], (x[second] - x[first])[apart]
    slope = float(np.median(rise / run)) if len(run) else 0.0
    return float(np.median(y - slope * x)), slope


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The non-decreasing sequence closest to `values` in weighted least squares (pool adjacent
    violators, Ayer et al. 1955)."""
    blocks: list[list[float]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            late, early = blocks.pop(), blocks.pop()
            weight = early[1] + late[1]
            mean = (early[0] * early[1] + late[0] * late[1]) / weight
            blocks.append([mean, weight, early[2] + late[2]])
    return np.concatenate([np.full(int(count), mean) for mean, _, count in blocks])


def _fit_error(table: CostTable, samples: Sequence[CycleSample]) -> CostError:
    ratios: dict[TreeParams, list[float]] = {}
    measured = predicted = 0.0
    for sample in samples:
        seconds = sample.draft_seconds + sample.verify_seconds
        expected = float(table.seconds(sample.params, sample.context_length))
        ratios.setdefault(sample.params, []).append(seconds / expected)
        measured += seconds
        predicted += expected
    errors = [abs(float(np.median(values)) - 1.0) for values in ratios.values()]
    return CostError(
        median=float(np.median(errors)), worst=max(errors), total=predicted / measured - 1.0
    )
