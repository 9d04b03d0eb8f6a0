"""The gain and the calibration of an acceptance policy on held-out prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.fitting.fit_acceptance import pool_labels
from eaglerl.fitting.scored_positions import ScoredPositions, TracePositions
from eaglerl.policies.acceptance_model import AcceptanceModel, plan_of_ranked
from eaglerl.policies.baselines import best_constant_tree
from eaglerl.ratio_intervals import ratio_interval
from eaglerl.traces.oracle import constant_seconds, trace_tables
from eaglerl.traces.trace_set import Trace

#: Number of equally wide bins of the calibration table.
BINS = 10


def assign_folds(traces: Sequence[Trace], folds: int) -> np.ndarray:
    """Assign every trace to a fold, all traces of a prompt to the same one.

    Prompts are dealt to the folds in the order of their hashes.

    Returns:
        (n,) fold of each trace.

    Raises:
        ValueError: there are fewer than 2 folds, or fewer prompts than folds.
    """
    ids = {trace.prompt_id for trace in traces}
    if not 2 <= folds <= len(ids):
        remedy = "record more prompts" if len(ids) < 2 else "record more, or take fewer (--folds)"
        raise ValueError(
            f"folds must lie in 2..{len(ids)}, the number of prompts, got {folds}: {remedy}"
        )
    # Hashed again, because training and test prompts may have been split by the ids' own digits.
    order = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())
    place = {name: index % folds for index, name in enumerate(order)}
    return np.array([place[trace.prompt_id] for trace in traces])


def constant_seconds_held_out(
    training: Sequence[Trace], held_out: Sequence[Trace], actions: ActionSpace, cost: CostTable
) -> np.ndarray:
    """Return the (n,) seconds of held-out traces with the constant tree tuned on the others."""
    tables = trace_tables(held_out, [best_constant_tree(training, actions, cost)], cost)
    return np.array([constant_seconds(table)[0] for table in tables])


@dataclass(frozen=True)
class Gain:
    """A relative gain in tokens per second: 0.03 for 3 %.

    Attributes:
        gain: ratio of the total times, less 1.
        low: lower end of the 95 % interval; None with one prompt.
        high: upper end; None with one prompt.
    """

    gain: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{100 * self.gain:+.1f} %"
        return f"{100 * self.gain:+.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def gain_over(seconds: np.ndarray, reference: np.ndarray) -> Gain:
    """Return the gain in speed on the same tokens, with its 95 % interval over prompts.

    The interval is over prompts, since cycles of one text are not independent. The fits are not
    repeated, so it covers the choice of the test prompts and not the variance of training.

    Args:
        seconds: (n,) time of every prompt.
        reference: (n,) time of the same prompts in the comparison's baseline.
    """
    # Both decode the same tokens, which cancel in the ratio: any positive number will do.
    tokens = np.ones_like(seconds)
    found = ratio_interval(np.column_stack((tokens, seconds, tokens, reference)))
    if found.questions < 2:
        return Gain(found.ratio - 1.0, None, None)
    return Gain(found.ratio - 1.0, found.low - 1.0, found.high - 1.0)


def reliability(
    model: AcceptanceModel, scored: Sequence[ScoredPositions], positions: TracePositions
) -> np.ndarray:
    """Count how often candidates were accepted, by predicted probability.

    Args:
        model: a model that was not fitted to the positions.
        scored: the positions as scored by its nets.
        positions: the same positions with what was accepted.

    Returns:
        (2, BINS, 3) float64, for the draft's candidates and for looked-up tokens: number of
        candidates, sum of their probabilities, number accepted.
    """
    table = np.zeros((2, BINS, 3))
    labels = pool_labels(positions)
    for chunk in positions.chunks():
        _count(table[0], scored[-1].survival.pool[chunk].ravel(), labels[chunk].ravel())
    if not model.lookup_tokens:
        return table
    levels = np.arange(model.lookup_tokens)
    accepted = positions.lookup_accepted[:, None] > levels
    for found in scored:
        outside = levels >= found.candidates.lookup_levels()[:, None]
        asked = outside & (found.candidates.match_length > 0)[:, None]
        _count(table[1], found.survival.lookup[asked], accepted[asked])
    return table


def expected_lengths(
    model: AcceptanceModel,
    scored: Sequence[ScoredPositions],
    positions: TracePositions,
    cost: CostTable,
) -> np.ndarray:
    """Compare expected with actual acceptance lengths after every number of rounds.

    Returns:
        (D + 1, 3) float64: number of positions, sum of expected lengths, sum of actual lengths.
    """
    rows = []
    for found in scored:
        context = found.candidates.context_length
        plan = plan_of_ranked(np.empty((0, 0)), found.length, context, cost, model.rate)
        length = 1 + (found.needed <= plan.rows[:, None]).sum(axis=1)
        rows.append((len(positions), plan.expected.sum(), length.sum()))
    return np.array(rows, dtype=np.float64)


def _count(table: np.ndarray, predicted: np.ndarray, accepted: np.ndarray) -> None:
    place = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    for column, weights in enumerate((None, predicted, accepted)):
        table[:, column] += np.bincount(place, weights=weights, minlength=BINS)


def reliability_rows(table: np.ndarray) -> list[dict[str, float | int | None]]:
    """Return a (BINS, 3) table of one source as JSON values, with None for empty bins."""
    rows = []
    for index, (count, predicted, found) in enumerate(table.tolist()):
        rows.append(
            {
                "from": index / BINS,
                "to": (index + 1) / BINS,
                "candidates": int(count),
                "predicted": predicted / count if count else None,
                "found": found / count if count else None,
            }
        )
    return rows
