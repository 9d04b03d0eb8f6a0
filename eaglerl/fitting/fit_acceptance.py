"""Fit an acceptance model to traces. They hold the outcome of every tree, so nothing is explored.

The nets learn which candidates are accepted. The stopping rule is fitted backwards from the last
round by ridge regression: the value of another round, with the rules for the rounds after it, less
the value of stopping. The rate is the tokens per second that the whole policy then reaches; the
rule is fitted again for that rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from eaglerl._renamed import renamed_fields
from eaglerl.cost.cost_table import CostTable
from eaglerl.fitting.scored_positions import ScoredPositions, TracePositions
from eaglerl.policies.acceptance_model import (
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
    plan_of_ranked,
    stop_features,
)
from eaglerl.policies.candidates import lookup_features, pool_features
from eaglerl.policies.small_net import SmallNet, fit_net
from eaglerl.traces.trace_set import Trace

# `plan_of_ranked` returns the order that it is given, which the fit does not use.
_NO_ORDER = np.empty((0, 0), dtype=np.int64)


@renamed_fields(chain_length="lookup_tokens")
@dataclass(frozen=True)
class AcceptanceOptions:
    """Sizes of an acceptance model, and options of its fit.

    Attributes:
        top_k: K of the trees.
        max_depth: most rounds after the first.
        max_rows: most rows to verify.
        lookup_tokens: most looked-up tokens to verify; 0 for no lookups.
        hidden: width of the nets' hidden layers.
        steps: optimizer steps per net.
        rounds: number of times that the stopping rule and the rate are fitted to each other.
        ridge: penalty of the stopping rule's weights.
        seed: seed of the nets.

    Raises:
        ValueError: a value is out of range.
    """

    top_k: int = 4
    max_depth: int = 5
    max_rows: int = 32
    lookup_tokens: int = 12
    hidden: int = 24
    steps: int = 1200
    rounds: int = 4
    ridge: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        minima = {"top_k": 1, "max_rows": 2, "hidden": 1, "steps": 1, "rounds": 1}
        for name, minimum in (minima | {"max_depth": 0, "lookup_tokens": 0, "seed": 0}).items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge must be positive, got {self.ridge!r}")

    def to_dict(self) -> dict[str, int | float]:
        """Return the options under the names that they have in files."""
        names = {"lookup_tokens": "chain_length"}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def read_positions(traces: Sequence[Trace], options: AcceptanceOptions) -> TracePositions:
    """Read the positions that a model is fitted to; see `TracePositions.of`."""
    return TracePositions.of(traces, options.top_k, options.max_depth, options.lookup_tokens)


def new_model(
    options: AcceptanceOptions, cost: CostTable, pool_net: SmallNet, lookup_net: SmallNet | None
) -> AcceptanceModel:
    """Make a model of fitted nets, without a stopping rule and with the rate of plain decoding."""
    return AcceptanceModel(
        top_k=options.top_k,
        max_depth=options.max_depth,
        max_rows=options.max_rows,
        lookup_tokens=options.lookup_tokens,
        pool_net=pool_net,
        lookup_net=lookup_net,
        stop_weights=np.zeros((options.max_depth, STOP_INPUTS), dtype=np.float32),
        rate=1.0 / float(cost.verify_seconds(1, 0)),
    )


def fit_pool_net(
    positions: TracePositions,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> SmallNet:
    """Fit the net for the draft's candidates; `report` as in `fit_net`.

    Raises:
        ValueError: there are no positions.
    """
    labels = pool_labels(positions)
    # Filled chunk by chunk: joining the chunks would hold the millions of examples twice.
    examples = np.empty((*labels.shape, POOL_INPUTS), dtype=np.float32)
    for chunk in positions.chunks():
        part = positions.candidates.take(chunk)
        examples[chunk] = pool_features(part, part.parents())
    return fit_net(
        examples.reshape(labels.size, -1),
        labels.reshape(-1),
        hidden=options.hidden,
        steps=options.steps,
        seed=options.seed,
        report=report,
    )


def pool_labels(positions: TracePositions) -> np.ndarray:
    """Return (N, K + D K^2) float32 labels: 1 for the draft's candidates that were accepted."""
    labels = np.zeros(positions.candidates.scores.shape, dtype=np.float32)
    rows, levels = np.nonzero(positions.path >= 0)
    labels[rows, positions.path[rows, levels]] = 1.0
    return labels


def fit_lookup_net(
    positions: TracePositions,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> SmallNet | None:
    """Fit the net for looked-up tokens; None without any lookup.

    The examples are, after every number of rounds, the levels whose predecessor was accepted and
    whose token the draft has not proposed by then.
    """
    whole = positions.candidates
    matched = whole.match_length > 0
    if not matched.any():
        return None
    levels = np.arange(options.lookup_tokens)
    accepted = positions.lookup_accepted[:, None] > levels
    reached = matched[:, None] & (positions.lookup_accepted[:, None] >= levels)
    examples, labels = [], []
    for chunk in positions.chunks():
        part = whole.take(chunk)
        for depth in range(options.max_depth + 1):
            candidates = part.at_depth(depth)
            # Levels in the pool are scored as the draft's candidates.
            asked = reached[chunk] & (levels >= candidates.lookup_levels()[:, None])
            examples.append(lookup_features(candidates, options.lookup_tokens)[asked])
            labels.append(accepted[chunk][asked])
    return fit_net(
        np.concatenate(examples),
        np.concatenate(labels),
        hidden=options.hidden,
        steps=options.steps,
        seed=options.seed + 1,
        report=report,
    )


def fit_stopping(
    model: AcceptanceModel,
    scored: Sequence[ScoredPositions],
    positions: TracePositions,
    cost: CostTable,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> AcceptanceModel:
    """Fit the stopping rule and the rate to each other in turn.

    Args:
        model: the fitted nets, and the rate to begin with.
        scored: the positions as scored by the nets.
        positions: the same positions with what was accepted.
        cost: duration of the cycles.
        options: `rounds` and `ridge`.
        report: called with the rounds done and the tokens per second reached.
    """
    drafted = [
        cost.draft_seconds(depth, model.top_k, positions.candidates.context_length)
        for depth in range(model.max_depth + 1)
    ]
    for number in range(1, options.rounds + 1):
        model = _fit_round(model, scored, positions, cost, drafted, options.ridge)
        if report is not None:
            report(number, model.rate)
    return model


def _fit_round(
    model: AcceptanceModel,
    scored: Sequence[ScoredPositions],
    positions: TracePositions,
    cost: CostTable,
    drafted: Sequence[np.ndarray],
    ridge: float,
) -> AcceptanceModel:
    """Fit the rule for the current rate, and measure the rate that it reaches.

    One step of Dinkelbach's method (1967) for the ratio of tokens to seconds: a rule that is
    optimal for tokens - rate * seconds reaches a rate no lower than the one it was made for.
    """
    weights = model.stop_weights.copy()
    # Reward, tokens and seconds of another round, at every position.
    gained = tokens = seconds = np.empty(0)
    for depth in range(model.max_depth, -1, -1):
        found = scored[depth]
        context = found.candidates.context_length
        plan = plan_of_ranked(_NO_ORDER, found.length, context, cost, model.rate)
        length = 1 + (found.needed <= plan.rows[:, None]).sum(axis=1)
        stop_tokens = np.minimum(length, positions.remaining)
        stop_seconds = plan.seconds + drafted[depth]
        reward = stop_tokens - model.rate * stop_seconds
        if depth == model.max_depth:
            gained, tokens, seconds = reward, stop_tokens, stop_seconds
            continue
        features = stop_features(found.candidates, found.survival, plan)
        # The label: the gain of another round over stopping, with the rules of later rounds.
        weights[depth] = _ridge(features, gained - reward, ridge)
        on = features @ weights[depth] > 0
        gained = np.where(on, gained, reward)
        tokens = np.where(on, tokens, stop_tokens)
        seconds = np.where(on, seconds, stop_seconds)
    rate = len(positions) / positions.seconds(tokens, seconds)
    return replace(model, stop_weights=weights, rate=rate)


def _ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Return ridge-regression weights, float32, for columns scaled to unit deviation.

    The first column, the constant, is left almost free; 1e-3 keeps the matrix regular.
    """
    # At least 1e-3, so that a constant column does not divide by 0.
    scale = np.maximum(features.std(axis=0), 1e-3)
    scale[0] = 1.0
    scaled = features / scale
    penalties = np.full(features.shape[1], penalty)
    penalties[0] = 1e-3
    solved = np.linalg.solve(scaled.T @ scaled + np.diag(penalties), scaled.T @ target)
    return (solved / scale).astype(np.float32)
