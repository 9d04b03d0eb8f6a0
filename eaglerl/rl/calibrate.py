"""Measuring the cost table of a machine with live cycles."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.packed_draft import PackedDraft
from eaglerl.eagle3.params import NO_DRAFT, TreeParams
from eaglerl.eagle3.verify import GreedyVerifier
from eaglerl.rl.cost import CostError, CostTable

TOTAL_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
TOP_KS = (1, 2, 4, 8)
DEPTHS = (0, 1, 2, 4, 7)

# Cycles at the start of a run, while caches and buffers warm up.
_WARM_UP = 12


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


def calibration_trees(
    total_tokens: Sequence[int], top_ks: Sequence[int], depths: Sequence[int]
) -> list[TreeParams]:
    """Trees that together hold every T, and every pair of D and K, several times over.

    Raises:
        ValueError: a T that no pair of D and K can fill.
    """
    trees = [NO_DRAFT] * 3 if 1 in total_tokens else []
    pairs = [(depth, top_k) for top_k in top_ks for depth in depths]
    for total in total_tokens:
        fitting = [(d, k) for d, k in pairs if total - 1 <= k + d * k**2]
        if not fitting:
            raise ValueError(f"total_tokens={total} is more than any of the trees can hold")
        if total > 1:
            trees += [TreeParams(total, *fitting[i * len(fitting) // 4]) for i in range(4)]
    for depth, top_k in pairs:
        pool = top_k + depth * top_k**2
        totals = [total for total in total_tokens if 1 < total <= pool + 1]
        trees += [TreeParams(totals[i * len(totals) // 2], depth, top_k) for i in range(2)]
    return trees


def calibrate(
    decoder: SpeculativeDecoder,
    prompt_ids: Sequence[int],
    *,
    machine: str,
    total_tokens: Sequence[int] = TOTAL_TOKENS,
    top_ks: Sequence[int] = TOP_KS,
    depths: Sequence[int] = DEPTHS,
    passes: int = 8,
    longest_context: int = 512,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> CostTable:
    """Measure cycles of all kinds in live decoding and fit the table.

    The kinds take turns in an order that is drawn anew in every pass, so that a machine that speeds
    up or slows down does so for all of them.

    Args:
        decoder: target, head and the precision of the draft's products.
        prompt_ids: where the decoded text begins; a sequence that reaches `longest_context` begins
            again.
        machine: a description of the machine, kept with the table.
        total_tokens: T to measure, ascending from 1.
        top_ks: K to measure, ascending.
        depths: D to measure.
        passes: how often every kind is measured.
        longest_context: longest context to measure at.
        seed: of the order.
        progress: called with the fraction done.

    Returns:
        The table, its error included.

    Raises:
        ValueError: an argument out of its range, or a T that no tree can fill.
    """
    if passes < 3:
        raise ValueError(f"passes must be at least 3, got {passes}")
    if not len(prompt_ids) < longest_context <= decoder.target.max_positions - 64:
        raise ValueError(
            f"longest_context must lie between the prompt's {len(prompt_ids)} tokens and "
            f"{decoder.target.max_positions - 64}, got {longest_context}"
        )
    trees = calibration_trees(total_tokens, top_ks, depths)
    draw = random.Random(seed)
    plan = [tree for _ in range(passes) for tree in draw.sample(trees, len(trees))]
    warm_up = [draw.choice(trees) for _ in range(_WARM_UP)]
    samples = _measure(decoder, prompt_ids, [*warm_up, *plan], longest_context, progress)
    draft = decoder.draft
    return fit_cost_table(
        samples[_WARM_UP:],
        machine=machine,
        draft_dtype=draft.dtype if isinstance(draft, PackedDraft) else "float32",
    )


def _measure(
    decoder: SpeculativeDecoder,
    prompt_ids: Sequence[int],
    trees: Sequence[TreeParams],
    longest_context: int,
    progress: Callable[[float], None] | None,
) -> list[CycleSample]:
    """One cycle with each of the trees, in their order."""
    samples: list[CycleSample] = []
    session = None
    for tree in trees:
        if session is None or len(session.token_ids) >= longest_context:
            session = decoder.new_session(GreedyVerifier(), longest_context + 128)
            session.prefill(list(prompt_ids))
            # The first draft pass of a sequence reads the whole prompt.
            session.step(TreeParams(2, 0, 1))
        context = len(session.token_ids)
        result = session.step(tree)
        samples.append(CycleSample(tree, context, result.draft_seconds, result.verify_seconds))
        if progress is not None:
            progress(len(samples) / len(trees))
    return samples


def fit_cost_table(samples: Sequence[CycleSample], *, machine: str, draft_dtype: str) -> CostTable:
    """Fit the table to measured cycles, by medians, so that single disturbances do not count.

    Args:
        samples: several of every T and of every pair of D and K; two D at least for every K.
        machine: kept with the table.
        draft_dtype: kept with the table.

    Returns:
        The table. Verification is monotone in T and in the context.

    Raises:
        ValueError: samples from which no table follows.
    """
    totals = sorted({sample.params.total_tokens for sample in samples})
    drafted = [sample for sample in samples if sample.params.total_tokens > 1]
    top_ks = sorted({sample.params.top_k for sample in drafted})
    if not totals or totals[0] != 1 or not top_ks:
        raise ValueError("samples must hold cycles that draft and cycles that do not")
    lines, weights = [], []
    for total in totals:
        chosen = [sample for sample in samples if sample.params.total_tokens == total]
        lines.append(
            _median_line(
                np.array([sample.context_length for sample in chosen], dtype=float),
                np.array([sample.verify_seconds for sample in chosen]),
            )
        )
        weights.append(len(chosen))
    slopes = isotonic(np.array([max(slope, 0.0) for _, slope in lines]), np.array(weights))
    bases = isotonic(
        np.array(
            [
                np.median([s.verify_seconds - slope * s.context_length for s in samples
                           if s.params.total_tokens == total])
                for total, slope in zip(totals, slopes, strict=True)
            ]
        ),
        np.array(weights),
    )  # fmt: skip
    first, later = zip(*(_fit_passes(drafted, top_k) for top_k in top_ks), strict=True)
    table = CostTable(
        machine=machine,
        draft_dtype=draft_dtype,
        total_tokens=tuple(totals),
        verify_base=tuple(float(base) for base in np.maximum(bases, 0.0)),
        verify_slope=tuple(float(slope) for slope in slopes),
        top_ks=tuple(top_ks),
        first_pass=first,
        later_pass=later,
        samples=len(samples),
    )
    table = _with_draft_slope(table, drafted)
    return replace(table, error=_fit_error(table, samples))


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
