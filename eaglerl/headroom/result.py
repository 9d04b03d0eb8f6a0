"""What a study of headroom found: ways to decide, their speeds, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eaglerl.ratio_intervals import Interval, ratio_interval

Kind = Literal["constant", "policy", "bound"]

#: A gain below this is not worth a policy's trouble.
LEAST_GAIN = 1.03
#: Fewest requests with which a verdict is given.
FEWEST_REQUESTS = 5


@dataclass(frozen=True, eq=False)
class Way:
    """A way to decide how much to draft and verify, with what came of it.

    Attributes:
        name: in words.
        kind: a constant, a policy that sees no future, or a bound that does.
        seconds: (R,) float64 seconds of each request's tokens.
    """

    name: str
    kind: Kind
    seconds: np.ndarray


@dataclass(frozen=True, eq=False)
class Headroom:
    """What adapting is worth on some requests, by some costs.

    Attributes:
        source: where the requests come from, in words.
        costs: where the costs come from, in words.
        batch: requests that share a step.
        tokens: (R,) float64 tokens of each request.
        constants: all constants of the space.
        tuned: the constant that is best on other requests.
        best: the best constant in hindsight.
        per_request: the best constant of every request.
        policies: calibrated policies, fitted on other requests; the plainest first.
        oracles: bounds; the plainest first, one for each policy.
        others: further ways.
        notes: sentences on what was assumed.
    """

    source: str
    costs: str
    batch: int
    tokens: np.ndarray
    constants: Sequence[Way]
    tuned: Way
    best: Way
    per_request: Way
    policies: Sequence[Way]
    oracles: Sequence[Way]
    others: Sequence[Way] = ()
    notes: Sequence[str] = ()

    @property
    def ways(self) -> list[Way]:
        """The ways that a table shows, slowest kind first."""
        plain = [way for way in self.constants[:1] if way.name != self.best_name]
        return [*plain, self.tuned, self.best, *self.others, self.per_request, *self.policies,
                *self.oracles]  # fmt: skip

    @property
    def policy(self) -> Way:
        """The policy with the most room to choose."""
        return self.policies[-1]

    @property
    def oracle(self) -> Way:
        """The bound of that policy."""
        return self.oracles[-1]

    def speed(self, way: Way) -> Interval:
        """Return tokens per second of all requests of a step, with the 95 % interval."""
        ones = np.ones_like(self.tokens)
        return ratio_interval(np.stack((self.tokens, way.seconds, ones, ones), axis=1))

    def gain(self, way: Way, over: Way) -> Interval:
        """Return the speed of a way over another's, with the 95 % interval over requests."""
        columns = (self.tokens, way.seconds, self.tokens, over.seconds)
        return ratio_interval(np.stack(columns, axis=1))

    def captured(self, way: Way) -> float | None:
        """Return the share of the oracle's gain over the tuned constant that a way reaches."""
        own, tuned, oracle = (each.seconds.sum() for each in (way, self.tuned, self.oracle))
        if oracle >= tuned:
            return None
        return float((1 / own - 1 / tuned) / (1 / oracle - 1 / tuned))

    @property
    def best_name(self) -> str:
        """The name of the best constant in hindsight."""
        return min(self.constants, key=lambda way: float(way.seconds.sum())).name

    @property
    def verdict(self) -> str:
        """A sentence on whether a policy is worth having."""
        found, bound = self.gain(self.policy, self.tuned), self.gain(self.oracle, self.best)
        words = f"{_percent(found)} over the best constant of other requests"
        if len(self.tokens) < FEWEST_REQUESTS:
            return (
                f"Too few requests to decide: {len(self.tokens)}, where at least "
                f"{FEWEST_REQUESTS} are needed. On these, a calibrated policy gives {words}."
            )
        if bound.ratio < LEAST_GAIN:
            return (
                f"Do not adapt: an oracle that knows what will be accepted gives "
                f"{_percent(bound)} over the best constant, {self.best_name}. Take that."
            )
        if found.low > LEAST_GAIN:
            return f"Adapt: a calibrated policy gives {words}."
        if found.high < 1.0:
            return f"Do not adapt: a calibrated policy gives {words}. Take {self.best_name}."
        if found.low > 1.0:
            return f"Adapting gives little: a calibrated policy gives {words}."
        return (
            f"No gain was shown: a calibrated policy gives {words}. Take {self.best_name}, or "
            "give more requests."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            "source": self.source,
            "costs": self.costs,
            "batch": self.batch,
            "requests": len(self.tokens),
            "tokens": float(self.tokens.sum()),
            "verdict": self.verdict,
            "best_constant": self.best_name,
            "ways": [self._described(way) for way in self.ways],
            "constants": [self._described(way) for way in self.constants],
            "notes": list(self.notes),
        }

    def _described(self, way: Way) -> dict[str, Any]:
        return {
            "name": way.name,
            "kind": way.kind,
            "tokens_per_second": _values(self.speed(way)),
            "over_tuned_constant": _values(self.gain(way, self.tuned)),
            "over_best_constant": _values(self.gain(way, self.best)),
            "captured": self.captured(way),
        }


def _values(interval: Interval) -> dict[str, float | None]:
    """Return an interval as JSON values, which have no NaN."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in (
            ("value", interval.ratio), ("low", interval.low), ("high", interval.high),
        )
    }  # fmt: skip


def _percent(interval: Interval) -> str:
    low, middle, high = (
        f"{100 * (value - 1):+.1f}".replace("-", "\N{MINUS SIGN}")
        for value in (interval.low, interval.ratio, interval.high)
    )
    if not math.isfinite(interval.low):
        return f"{middle} %"
    return f"{middle} % [{low}, {high}]"


def folds_of(count: int, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each request, (count,) int64, folds of about equal size.

    Raises:
        ValueError: there are fewer than two requests or folds.
    """
    if count < 2 or folds < 2:
        raise ValueError(
            f"there must be at least 2 requests and 2 folds, since a policy is fitted on other "
            f"requests than it is scored on, got {count} and {folds}"
        )
    order = np.random.default_rng(seed).permutation(count)
    fold = np.empty(count, dtype=np.int64)
    fold[order] = np.arange(count) % min(folds, count)
    return fold


def tuned_seconds(constants: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the (R,) seconds with the constant that is best on the requests of other folds.

    Args:
        constants: (R, A) seconds of each request with each constant.
        fold: (R,) fold of each request.
    """
    own = np.empty(len(constants))
    for each in np.unique(fold):
        here = fold == each
        own[here] = constants[here, constants[~here].sum(axis=0).argmin()]
    return own


def bounds_of(
    constants: np.ndarray, names: Sequence[str], fold: np.ndarray
) -> tuple[list[Way], Way, Way, Way]:
    """Return the constants, the tuned one, the best in hindsight and that of every request.

    Args:
        constants: (R, A) seconds of each request with each constant.
        names: of the constants.
        fold: (R,) fold of each request.
    """
    ways = [Way(name, "constant", constants[:, at]) for at, name in enumerate(names)]
    best = int(constants.sum(axis=0).argmin())
    return (
        ways,
        Way("best constant of other requests", "constant", tuned_seconds(constants, fold)),
        Way(f"best constant in hindsight, {names[best]}", "constant", constants[:, best]),
        Way("best constant of every request", "bound", constants.min(axis=1)),
    )
