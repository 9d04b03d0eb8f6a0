"""Fitting an acceptance model to traces: full information, no exploration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.rl.acceptance_model import (
    STOP_INPUTS,
    AcceptanceModel,
    Plan,
    Survival,
    accepted_lengths,
    stop_features,
)
from eaglerl.rl.candidates import Candidates, chain_features, pool_features, trace_candidates
from eaglerl.rl.cost import CostTable
from eaglerl.rl.small_net import SmallNet, fit_net
from eaglerl.rl.traces import Trace

_RIDGE = 100.0


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
    seed: int = 0

    def __post_init__(self) -> None:
        minima = {"top_k": 1, "max_rows": 2, "hidden": 1, "steps": 1, "rounds": 1}
        for name, minimum in (minima | {"max_depth": 0, "chain_length": 0}).items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class _Truth:
    """What came true at every position of the traces.

    Attributes:
        path: (N, D + 1) index in the pool of the true node of each level; -1 for none.
        chain_accepted: (N,) leading tokens of the looked-up chain.
        remaining: (N,) tokens to the end of the trace.
        lengths: positions of each trace.
    """

    path: np.ndarray
    chain_accepted: np.ndarray
    remaining: np.ndarray
    lengths: list[int]

    @classmethod
    def of(cls, traces: Sequence[Trace], top_k: int, depth: int) -> _Truth:
        column = traces[0].top_ks.index(top_k)
        return cls(
            np.concatenate([t.path[:, column, : depth + 1] for t in traces]).astype(np.int64),
            np.concatenate([t.lookup_accepted for t in traces]).astype(np.int64),
            np.concatenate([t.remaining for t in traces]),
            [len(trace) for trace in traces],
        )

    def seconds(self, tokens: np.ndarray, seconds: np.ndarray) -> float:
        """Time to decode all traces with a choice per position."""
        total, start = 0.0, 0
        for length in self.lengths:
            position = start
            while position < start + length:
                total += float(seconds[position])
                position += int(tokens[position])
            start += length
        return total


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
        ValueError: no traces, or a width or depth that they or the cost table do not know.
    """
    options = options or AcceptanceOptions()
    traces = list(traces)
    if not traces:
        raise ValueError("traces must hold at least one trace")
    whole = trace_candidates(traces, options.top_k, options.max_depth)
    cost.draft_seconds(0, options.top_k, 0)
    truth = _Truth.of(traces, options.top_k, options.max_depth)
    model = AcceptanceModel(
        top_k=options.top_k,
        max_depth=options.max_depth,
        max_rows=options.max_rows,
        chain_length=options.chain_length,
        pool_net=_fit_pool_net(whole, truth, options),
        chain_net=_fit_chain_net(whole, truth, options) if options.chain_length else None,
        stop_weights=np.zeros((options.max_depth, STOP_INPUTS), dtype=np.float32),
        rate=1.0 / float(cost.verify_seconds(1, 0)),
    )
    judged = [whole.at_depth(depth) for depth in range(options.max_depth + 1)]
    survivals = [model.survival(candidates) for candidates in judged]
    for _ in range(options.rounds):
        model = _fit_stopping(model, judged, survivals, truth, cost)
    return model


def _fit_pool_net(whole: Candidates, truth: _Truth, options: AcceptanceOptions) -> SmallNet:
    labels = np.zeros(whole.scores.shape, dtype=np.float32)
    rows, levels = np.nonzero(truth.path >= 0)
    labels[rows, truth.path[rows, levels]] = 1.0
    features = pool_features(whole, whole.parents())
    return fit_net(
        features.reshape(-1, features.shape[-1]),
        labels.reshape(-1),
        hidden=options.hidden,
        steps=options.steps,
        seed=options.seed,
    )


def _fit_chain_net(whole: Candidates, truth: _Truth, options: AcceptanceOptions) -> SmallNet | None:
    """Each level given the one before, after every number of rounds; None without any lookup."""
    matched = whole.match_length > 0
    if not matched.any():
        return None
    levels = np.arange(options.chain_length)
    came_true = truth.chain_accepted[:, None] > levels
    reached = matched[:, None] & (truth.chain_accepted[:, None] >= levels)
    examples, labels = [], []
    for depth in range(options.max_depth + 1):
        candidates = whole.at_depth(depth)
        # Levels in the pool are judged there.
        asked = reached & (levels >= candidates.chain_levels()[:, None])
        examples.append(chain_features(candidates, options.chain_length)[asked])
        labels.append(came_true[asked])
    return fit_net(
        np.concatenate(examples),
        np.concatenate(labels),
        hidden=options.hidden,
        steps=options.steps,
        seed=options.seed + 1,
    )


def _fit_stopping(
    model: AcceptanceModel,
    judged: Sequence[Candidates],
    survivals: Sequence[Survival],
    truth: _Truth,
    cost: CostTable,
) -> AcceptanceModel:
    """One round: the rule for the present lambda, and the lambda that it reaches."""
    plans: list[Plan] = []
    tokens, drafted = [], []
    for depth, (candidates, survival) in enumerate(zip(judged, survivals, strict=True)):
        plan = model.plan(candidates, survival, cost, model.rate)
        length = accepted_lengths(
            plan,
            survival.pool.shape[1],
            truth.path,
            candidates.chain_nodes,
            truth.chain_accepted,
            model.chain_length,
        )
        plans.append(plan)
        tokens.append(np.minimum(length, truth.remaining))
        drafted.append(cost.draft_seconds(depth, model.top_k, candidates.context_length))
    rewards = [
        count - model.rate * (plan.seconds + draft)
        for count, plan, draft in zip(tokens, plans, drafted, strict=True)
    ]
    weights = model.stop_weights.copy()
    gained = rewards[-1]
    stop = np.full(len(gained), model.max_depth)
    for depth in range(model.max_depth - 1, -1, -1):
        features = stop_features(judged[depth], survivals[depth], plans[depth])
        weights[depth] = _ridge(features, gained - rewards[depth])
        on = features @ weights[depth] > 0
        gained = np.where(on, gained, rewards[depth])
        stop = np.where(on, stop, depth)
    chosen = np.choose(stop, tokens)
    seconds = np.choose(stop, [p.seconds + d for p, d in zip(plans, drafted, strict=True)])
    rate = sum(truth.lengths) / truth.seconds(chosen, seconds)
    return replace(model, stop_weights=weights, rate=rate)


def _ridge(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights of the least squares with a penalty on all of the scaled columns but the first."""
    scale = np.maximum(features.std(axis=0), 1e-3)
    scale[0] = 1.0
    scaled = features / scale
    penalty = np.full(features.shape[1], _RIDGE)
    penalty[0] = 1e-3
    solved = np.linalg.solve(scaled.T @ scaled + np.diag(penalty), scaled.T @ target)
    return (solved / scale).astype(np.float32)
