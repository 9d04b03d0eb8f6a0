"""Fitting an acceptance model to traces: full information, no exploration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.fitting.scored_positions import Judged, TracePositions, judge_positions
from eaglerl.policies.acceptance_model import (
    STOP_INPUTS,
    AcceptanceModel,
    plan_of_ranked,
    stop_features,
)
from eaglerl.policies.candidates import chain_features, pool_features
from eaglerl.policies.small_net import SmallNet, fit_net
from eaglerl.traces.trace_set import Trace

_NO_ORDER = np.empty((0, 0), dtype=np.int64)


@dataclass(frozen=True)
class AcceptanceOptions:
    """How a model is fitted.

    Attributes:
        top_k: K of the trees.
        max_depth: most rounds after the first.
        max_rows: most rows to verify.
        chain_length: looked-up tokens that may be verified; 0 for no lookups.
        hidden: width of the nets' hidden layers.
        steps: steps of a net's fit.
        rounds: how often lambda and the stopping rule are fitted to each other.
        ridge: penalty of the stopping rule's weights.
        seed: of the nets.

    Raises:
        ValueError: a value out of its range.
    """

    top_k: int = 4
    max_depth: int = 5
    max_rows: int = 32
    chain_length: int = 12
    hidden: int = 24
    steps: int = 1200
    rounds: int = 4
    ridge: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        minima = {"top_k": 1, "max_rows": 2, "hidden": 1, "steps": 1, "rounds": 1}
        for name, minimum in (minima | {"max_depth": 0, "chain_length": 0, "seed": 0}).items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")
        if not 0 < self.ridge < float("inf"):
            raise ValueError(f"ridge must be positive, got {self.ridge!r}")


def fit_acceptance(
    traces: Sequence[Trace], cost: CostTable, options: AcceptanceOptions | None = None
) -> AcceptanceModel:
    """Fit a model to all positions of some traces.

    The nets learn which candidates came true. The stopping rule is fitted backwards from the last
    round: what going on gave, with the rule for the rounds after, less what stopping gave, by ridge
    regression. lambda is then what the whole policy reaches, and the rule is fitted to it again.

    Args:
        traces: recorded continuations.
        cost: time of the cycles.
        options: how to fit.

    Returns:
        The model.

    Raises:
        ValueError: no traces, or a width, depth or chain that they or the cost table do not know.
    """
    options = options or AcceptanceOptions()
    positions = read_positions(list(traces), options)
    cost.draft_seconds(0, options.top_k, 0)
    model = new_model(
        options, cost, fit_pool_net(positions, options), fit_chain_net(positions, options)
    )
    return fit_stopping(model, judge_positions(model, positions), positions, cost, options)


def read_positions(traces: Sequence[Trace], options: AcceptanceOptions) -> TracePositions:
    """The positions that a model is fitted to; see `TracePositions.of`."""
    return TracePositions.of(traces, options.top_k, options.max_depth, options.chain_length)


def new_model(
    options: AcceptanceOptions, cost: CostTable, pool_net: SmallNet, chain_net: SmallNet | None
) -> AcceptanceModel:
    """A model with nets, but without a stopping rule, and with the lambda of plain decoding."""
    return AcceptanceModel(
        top_k=options.top_k,
        max_depth=options.max_depth,
        max_rows=options.max_rows,
        chain_length=options.chain_length,
        pool_net=pool_net,
        chain_net=chain_net,
        stop_weights=np.zeros((options.max_depth, STOP_INPUTS), dtype=np.float32),
        rate=1.0 / float(cost.verify_seconds(1, 0)),
    )


def fit_pool_net(
    positions: TracePositions,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> SmallNet:
    """The net that judges the draft's candidates; `report` as in `fit_net`."""
    labels = pool_labels(positions)
    whole = positions.candidates
    examples: np.ndarray | None = None
    for chunk in positions.chunks():
        part = whole.take(chunk)
        features = pool_features(part, part.parents())
        if examples is None:
            examples = np.empty((*labels.shape, features.shape[-1]), dtype=np.float32)
        examples[chunk] = features
    return fit_net(
        examples.reshape(labels.size, -1),
        labels.reshape(-1),
        hidden=options.hidden,
        steps=options.steps,
        seed=options.seed,
        report=report,
    )


def pool_labels(positions: TracePositions) -> np.ndarray:
    """(N, K + D K^2) float32: 1 for the draft's candidates that came true."""
    labels = np.zeros(positions.candidates.scores.shape, dtype=np.float32)
    rows, levels = np.nonzero(positions.path >= 0)
    labels[rows, positions.path[rows, levels]] = 1.0
    return labels


def fit_chain_net(
    positions: TracePositions,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> SmallNet | None:
    """Each level given the one before, after every number of rounds; None without any lookup."""
    whole = positions.candidates
    matched = whole.match_length > 0
    if not matched.any():
        return None
    levels = np.arange(options.chain_length)
    came_true = positions.chain_accepted[:, None] > levels
    reached = matched[:, None] & (positions.chain_accepted[:, None] >= levels)
    examples, labels = [], []
    for chunk in positions.chunks():
        part = whole.take(chunk)
        for depth in range(options.max_depth + 1):
            candidates = part.at_depth(depth)
            # Levels in the pool are judged there.
            asked = reached[chunk] & (levels >= candidates.chain_levels()[:, None])
            examples.append(chain_features(candidates, options.chain_length)[asked])
            labels.append(came_true[chunk][asked])
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
    judged: Sequence[Judged],
    positions: TracePositions,
    cost: CostTable,
    options: AcceptanceOptions,
    report: Callable[[int, float], None] | None = None,
) -> AcceptanceModel:
    """The stopping rule and lambda, fitted to each other in turn.

    Args:
        model: its nets count, and its lambda to begin with.
        judged: the positions as the nets judge them.
        positions: the same with what came true.
        cost: time of the cycles.
        options: `rounds` and `ridge` count.
        report: is told rounds done and the tokens per second that were reached.
    """
    drafted = [
        cost.draft_seconds(depth, model.top_k, positions.candidates.context_length)
        for depth in range(model.max_depth + 1)
    ]
    for number in range(1, options.rounds + 1):
        model = _fit_round(model, judged, positions, cost, drafted, options.ridge)
        if report is not None:
            report(number, model.rate)
    return model


def _fit_round(
    model: AcceptanceModel,
    judged: Sequence[Judged],
    positions: TracePositions,
    cost: CostTable,
    drafted: Sequence[np.ndarray],
    ridge: float,
) -> AcceptanceModel:
    """The rule for the present lambda, and the lambda that it reaches."""
    weights = model.stop_weights.copy()
    gained = tokens = seconds = np.empty(0)
    for depth in range(model.max_depth, -1, -1):
        found = judged[depth]
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
        weights[depth] = _ridge(features, gained - reward, ridge)
        on = features @ weights[depth] > 0
        gained = np.where(on, gained, reward)
        tokens = np.where(on, tokens, stop_tokens)
        seconds = np.where(on, seconds, stop_seconds)
    rate = len(positions) / positions.seconds(tokens, seconds)
    return replace(model, stop_weights=weights, rate=rate)


def _ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of the least squares with a penalty on all of the scaled columns but the first."""
    scale = np.maximum(features.std(axis=0), 1e-3)
    scale[0] = 1.0
    scaled = features / scale
    penalties = np.full(features.shape[1], penalty)
    penalties[0] = 1e-3
    solved = np.linalg.solve(scaled.T @ scaled + np.diag(penalties), scaled.T @ target)
    return (solved / scale).astype(np.float32)
