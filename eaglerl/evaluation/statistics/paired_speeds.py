"""Speeds of two modes, paired by question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eaglerl.evaluation.results.records import Record
from eaglerl.ratio_intervals import Interval, ratio_interval


def paired_ratio(records: Sequence[Record], reference: Sequence[Record]) -> Interval | None:
    """Return tokens per second of one mode over another's, with its 95 % interval.

    Args:
        records: of the mode.
        reference: of the other mode.

    Returns:
        None if the two have no question in common.
    """
    sums = paired_sums(records, reference)
    return ratio_interval(sums) if len(sums) else None


def paired_sums(records: Sequence[Record], reference: Sequence[Record]) -> np.ndarray:
    """Return the decoding tokens and seconds of both modes per question.

    Prefills are left out. Repeats that both modes decoded are summed, so that a question is one
    unit however often it was decoded.

    Args:
        records: of the mode.
        reference: of the other mode.

    Returns:
        (n, 4) float64: tokens and seconds of the mode, then of the reference, in the order of the
        questions' names.
    """
    mine = {(record.question, record.repeat): record for record in records}
    others = {(record.question, record.repeat): record for record in reference}
    sums: dict[str, np.ndarray] = {}
    for key in sorted(mine.keys() & others.keys()):
        one, other = mine[key], others[key]
        row = (one.decode_tokens, one.decode_seconds, other.decode_tokens, other.decode_seconds)
        sums[key[0]] = sums.get(key[0], np.zeros(4)) + row
    return np.array([sums[name] for name in sorted(sums)]).reshape(-1, 4)
