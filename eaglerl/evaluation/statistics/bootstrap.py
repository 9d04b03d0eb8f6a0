"""Ratios of speeds, paired by question, with intervals from a bootstrap over the questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eaglerl.evaluation.results.records import Record

#: How often the questions are drawn anew.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A ratio and its 95 % interval.

    Attributes:
        ratio: over all questions.
        low: 2.5 % quantile of the resampled ratios.
        high: 97.5 % quantile.
        questions: how many it is of.
    """

    ratio: float
    low: float
    high: float
    questions: int


def paired_ratio(
    records: Iterable[Record],
    reference: Iterable[Record],
    *,
    all_in: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Tokens per second of one mode over another's, with an interval from a bootstrap of questions.

    Repeats are summed: a question's tokens and seconds are those of all repeats that both modes
    decoded. So a question is one unit, however often it was decoded.

    Args:
        records: of the mode.
        reference: of the other.
        all_in: count the prefills, too.
        resamples: how often the questions are drawn anew.
        seed: of the draws.

    Returns:
        None where the two have no question in common.
    """
    mine = {(record.question, record.repeat): record for record in records}
    others = {(record.question, record.repeat): record for record in reference}
    sums: dict[str, np.ndarray] = {}
    for key in mine.keys() & others.keys():
        row = np.array([*_amounts(mine[key], all_in), *_amounts(others[key], all_in)])
        sums[key[0]] = sums.get(key[0], 0.0) + row
    if not sums:
        return None
    # The draws must not depend on the order in which the questions were decoded.
    return bootstrap_ratio(np.stack([sums[name] for name in sorted(sums)]), resamples, seed)


def bootstrap_ratio(sums: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A ratio of two ratios of sums, and its interval by the percentile bootstrap over the rows.

    Args:
        sums: (n, 4) per question the tokens and seconds of a mode, and those of its reference.
        resamples: how often n rows are drawn with replacement.
        seed: of the draws.
    """
    ratios = _ratio(_resampled(len(sums), resamples, seed) @ sums)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(_ratio(sums.sum(axis=0))), float(low), float(high), len(sums))


@lru_cache(maxsize=8)
def _resampled(count: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, count) how often each row was drawn; many ratios share the same draws."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(float)


def _amounts(record: Record, all_in: bool) -> tuple[float, float]:
    if all_in:
        return record.new_tokens, record.seconds
    return record.decode_tokens, record.decode_seconds


def _ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 4) tokens, seconds, tokens, seconds to (...) the ratio of their ratios."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1] / (sums[..., 2] / sums[..., 3])
