"""Paired tests of several modes against one, corrected for multiple testing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from eaglerl.evaluation.results.records import Record
from eaglerl.evaluation.statistics.paired_speeds import paired_sums


@dataclass(frozen=True)
class PairedTest:
    """A test of one mode against the reference.

    Attributes:
        p_value: of the test alone.
        corrected: after Holm's correction over all tests of the family.
        questions: pairs.
    """

    p_value: float
    corrected: float
    questions: int

    @property
    def stands(self) -> bool:
        """Whether the difference is significant at 5 % after the correction."""
        return self.corrected < 0.05


def paired_tests(
    by_mode: Mapping[str, Sequence[Record]], reference: str, modes: Sequence[str]
) -> dict[str, PairedTest]:
    """Test each mode against the reference by Wilcoxon's signed-rank test, with Holm's correction.

    A pair is a question: the logarithm of its decoding tokens per second, repeats summed, against
    the reference's. Two-sided. Holm (1979) keeps the probability of any false positive at the
    level of a single test, whatever the dependence between them.

    Args:
        by_mode: records of every mode.
        reference: the mode that the others are tested against.
        modes: the family.

    Returns:
        By mode, those that have a question in common with the reference.
    """
    differences = {
        mode: log_ratios(by_mode[mode], by_mode[reference]) for mode in modes if mode != reference
    }
    differences = {mode: values for mode, values in differences.items() if len(values)}
    alone = [signed_rank(values) for values in differences.values()]
    return {
        mode: PairedTest(p_value, corrected, len(differences[mode]))
        for mode, p_value, corrected in zip(differences, alone, holm(alone), strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's step-down correction, in the order given."""
    if not len(p_values):
        return []
    return [float(value) for value in multipletests(p_values, method="holm")[1]]


def signed_rank(differences: np.ndarray) -> float:
    """Return the p-value of Wilcoxon's signed-rank test that differences (n,) are symmetric."""
    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences).pvalue)


def log_ratios(records: Sequence[Record], reference: Sequence[Record]) -> np.ndarray:
    """Return (n,) per question the log of a mode's tokens per second over another's.

    Questions that only one of them decoded, or without tokens after the prefill, are left out.
    """
    sums = paired_sums(records, reference)
    known = sums[(sums > 0).all(axis=1)]
    # Products first: equal speeds must give exactly 0, because a rounding error would get a rank.
    return np.log(known[:, 0] * known[:, 3] / (known[:, 2] * known[:, 1]))
