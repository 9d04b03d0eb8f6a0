"""How often what a policy predicted has come true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Number of equally wide ranges of the predicted probability.
BINS = 10


@dataclass(frozen=True)
class Bin:
    """Candidates with about the same predicted probability.

    Attributes:
        count: number of candidates.
        predicted: mean probability; NaN without candidates.
        found: share that was accepted; NaN without candidates.
    """

    count: int
    predicted: float
    found: float


def bin_outcomes(predicted: np.ndarray, found: np.ndarray) -> list[Bin]:
    """Group candidates by predicted probability into `BINS` ranges.

    Args:
        predicted: (n,) probabilities.
        found: (n,) bool, whether each candidate was accepted.
    """
    place = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    bins = []
    for each in range(BINS):
        here = place == each
        if here.any():
            bins.append(Bin(int(here.sum()), float(predicted[here].mean()), found[here].mean()))
        else:
            bins.append(Bin(0, math.nan, math.nan))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean |found - predicted|, weighted by candidates; NaN without candidates."""
    count = sum(one.count for one in bins)
    off = sum(one.count * abs(one.found - one.predicted) for one in bins if one.count)
    return off / count if count else math.nan
