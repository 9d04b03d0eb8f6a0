"""How far drafted tokens are accepted: as far as it was seen, and as a policy would expect it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eaglerl.headroom.step_log import Steps

# The belief that `OnlinePolicy` begins with (csrc/acceptance/online_acceptance.cpp): survivals are
# the draft's own probabilities. Weights of 1, the logit of the cumulative probability, and the
# level, with their standard deviations.
_PRIOR = np.array([0.0, 1.0, 0.0])
_SPREAD = np.array([0.5, 0.2, 0.3])
# Looked-up tokens: 1, log(1 + match), first level, log(1 + level), and log(1 + match) times it.
_LOOKUP_PRIOR, _LOOKUP_SPREAD = np.zeros(5), np.ones(5)
_ROUNDS = 50
_MOST_LOGIT = 30.0
# Kinds of step by their survival, and ways in which each kind may go on.
_KINDS, _WAYS = 4, 8


def seen_survival(steps: Steps, levels: int, *, beyond: str = "estimate") -> np.ndarray:
    """Return how many tokens of each level a chain of that many levels would have had accepted.

    Where the target rejected a token it is known that all later ones are lost. Where it accepted
    all that it judged, later levels are unknown: they are censored. They get the product of the
    levels' hazards as Kaplan and Meier (1958) estimate them from the steps that were not cut
    short, which is unbiased only if being cut short says nothing about the tokens beyond.

    Args:
        steps: the steps.
        levels: K.
        beyond: what is assumed of censored levels: "estimate", "none" (all rejected) or "all"
            (accepted).

    Returns:
        (S, K) float64 in 0..1, not ascending along K.
    """
    level = np.arange(1, levels + 1)
    survival = (steps.accepted[:, None] >= level).astype(np.float64)
    censored = (steps.accepted == steps.judged) & (steps.judged < levels)
    if beyond == "none" or not censored.any():
        return survival
    passed = np.ones(levels) if beyond == "all" else hazards(steps, levels)
    # Product of the passed shares from each level's successor on: from a to j it is c[j] / c[a].
    rows = np.flatnonzero(censored)
    for row, known in zip(rows, steps.judged[rows], strict=True):
        survival[row, known:] = np.cumprod(passed[known:])
    return survival


def hazards(steps: Steps, levels: int) -> np.ndarray:
    """Return the share of the drafts that pass each level among those judged there, (K,) float64.

    A level that no step reached passes nothing.
    """
    passed = np.zeros(levels)
    for level in range(1, levels + 1):
        at_risk = (steps.judged >= level) & (steps.accepted >= level - 1)
        if at_risk.any():
            passed[level - 1] = (steps.accepted[at_risk] >= level).mean()
    return passed


@dataclass(frozen=True, eq=False)
class SurvivalModel:
    """Logistic regressions of survival, in the form that `OnlinePolicy` learns.

    Attributes:
        nodes: weights of 1, the logit of the cumulative probability, and the level.
        lookups: weights of what is known of a looked-up token whose predecessors are right.
        prospects: how survival goes on from level to level.
    """

    nodes: np.ndarray
    lookups: np.ndarray
    prospects: Prospects

    @classmethod
    def fit(cls, steps: Steps, chosen: np.ndarray, levels: int) -> SurvivalModel:
        """Fit it by the largest posterior probability.

        Args:
            steps: the steps.
            chosen: (S,) bool, which of them to learn from.
            levels: K.
        """
        inputs = node_inputs(steps.log_probs[chosen][:, :levels])
        level = np.arange(1, inputs.shape[1] + 1)
        judged = level <= steps.judged[chosen][:, None]
        labels = steps.accepted[chosen][:, None] >= level
        nodes = _fit(inputs[judged], labels[judged], _PRIOR, _SPREAD)
        inputs, known, labels = _lookup_labels(steps, chosen)
        lookups = _fit(inputs[known], labels[known], _LOOKUP_PRIOR, _LOOKUP_SPREAD)
        survival = _survival(nodes, steps.log_probs[chosen][:, :levels], levels)
        return cls(nodes, lookups, Prospects.of(survival, steps.drafted[chosen]))

    def survival(self, log_probs: np.ndarray, levels: int) -> np.ndarray:
        """Return the expected survival at each level, 0 beyond the drafted ones.

        Args:
            log_probs: (S, <= K) conditional log-probabilities, NaN beyond the drafted ones.
            levels: K.

        Returns:
            (S, K) float64, not ascending along K.
        """
        return _survival(self.nodes, log_probs, levels)

    def lookup_survival(self, steps: Steps) -> np.ndarray:
        """Return the expected survival of looked-up tokens, (S, most looked up) float64."""
        inputs, _, _ = _lookup_labels(steps, np.ones(len(steps), dtype=bool))
        level = np.arange(inputs.shape[1])
        offered = level < steps.looked_up[:, None]
        return np.where(offered, np.cumprod(_logistic(inputs @ self.lookups), axis=1), 0.0)


def _survival(weights: np.ndarray, log_probs: np.ndarray, levels: int) -> np.ndarray:
    found = np.minimum.accumulate(_logistic(node_inputs(log_probs) @ weights), axis=1)
    found = np.where(np.isnan(log_probs), 0.0, found)
    return np.pad(found, ((0, 0), (0, levels - found.shape[1])))


def node_inputs(log_probs: np.ndarray) -> np.ndarray:
    """Return (S, K, 3): 1, the logit of the cumulative probability, and the level from 0."""
    total = np.cumsum(np.nan_to_num(log_probs, nan=0.0), axis=1)
    # log(p / (1 - p)), where p may round to 1.
    logit = total - np.log(-np.expm1(np.minimum(total, -1e-9)))
    level = np.broadcast_to(np.arange(log_probs.shape[1], dtype=np.float64), total.shape)
    return np.stack((np.ones_like(total), np.clip(logit, -_MOST_LOGIT, _MOST_LOGIT), level), axis=2)


def _lookup_labels(steps: Steps, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs (S, M, 5) of looked-up tokens, which have labels (S, M), and the labels."""
    most = int(steps.looked_up.max(initial=0))
    level = np.arange(most)
    match = np.log1p(steps.match[chosen].astype(np.float64))[:, None]
    log_level = np.log1p(level.astype(np.float64))[None]
    shape = (len(match), most)
    inputs = np.stack(
        [
            np.broadcast_to(each, shape)
            for each in (np.ones((1, 1)), match, (level == 0)[None] * 1.0, log_level,
                         match * log_level)
        ],
        axis=2,
    )  # fmt: skip
    right = steps.lookup_accepted[chosen][:, None]
    # A token after a wrong one has no label: its predecessors are not accepted.
    known = (level < steps.lookup_judged[chosen][:, None]) & (level <= right)
    return inputs, known, level < right


def _logistic(logit: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -_MOST_LOGIT, _MOST_LOGIT)))


def _fit(x: np.ndarray, labels: np.ndarray, prior: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return the weights of a logistic regression under a Gaussian belief, by Newton's method.

    Args:
        x: (n, d) inputs; none leave the belief as it is.
        labels: (n,) bool.
        prior: (d,) believed weights.
        spread: (d,) their standard deviations.
    """
    weights, precision = prior.copy(), np.diag(spread**-2.0)
    for _ in range(_ROUNDS):
        found = _logistic(x @ weights)
        gradient = x.T @ (labels - found) - precision @ (weights - prior)
        curvature = (x * (found * (1.0 - found))[:, None]).T @ x + precision
        step = np.linalg.solve(curvature, gradient)
        # A full step may overshoot where all labels agree; the prior bounds the way.
        weights = weights + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return weights


@dataclass(frozen=True, eq=False)
class Prospects:
    """What may follow a drafted token: how survival went on from a level in other steps.

    A mean would hide that a further token tells which drafts are good: only these are verified.

    Attributes:
        edges: for each level from 0, (n - 1,) survivals that divide its steps into n kinds.
        ratios: for each level, (n, Q, levels left) survivals over that at the level.
    """

    edges: Sequence[np.ndarray]
    ratios: Sequence[np.ndarray]

    @classmethod
    def of(cls, survival: np.ndarray, drafted: np.ndarray) -> Prospects:
        """Take them from steps.

        Args:
            survival: (S, K) expected survivals.
            drafted: (S,) drafted tokens.
        """
        levels = survival.shape[1]
        padded = np.concatenate((np.ones((len(survival), 1)), survival), axis=1)
        edges, ratios = [], []
        for level in range(levels):
            # What no step drafted is not worth drafting.
            there = padded[drafted > level]
            there = there[np.argsort(there[:, level], kind="stable")]
            kinds = np.array_split(there, _KINDS if level and len(there) >= _KINDS else 1)
            edges.append(np.array([kind[0, level] for kind in kinds[1:]]))
            ratios.append(np.stack([_typical(kind, level) for kind in kinds]))
        return cls(edges, ratios)

    def after(self, level: int, survival: np.ndarray) -> np.ndarray:
        """Return Q ways in which survivals (G, B) at a level may go on, (G, Q, left, B).

        In each way, neighbouring requests take different ones.
        """
        kind = np.searchsorted(self.edges[level], survival, side="right")
        ways = np.arange(_WAYS)[None, :, None]
        which = (ways + np.arange(survival.shape[1])) % _WAYS
        found = self.ratios[level][kind[:, None], which]
        return np.moveaxis(found, 3, 2) * survival[:, None, None]


def _typical(steps: np.ndarray, level: int) -> np.ndarray:
    """Return how `_WAYS` of the steps (n, K + 1) went on, (Q, levels left), evenly chosen."""
    if not len(steps):
        return np.zeros((_WAYS, steps.shape[1] - level - 1))
    ratio = steps[:, level + 1 :] / np.maximum(steps[:, level : level + 1], 1e-12)
    order = np.argsort(ratio[:, 0], kind="stable")
    return ratio[order[((np.arange(_WAYS) + 0.5) * len(steps) / _WAYS).astype(np.int64)]]
