"""What a policy and an oracle choose in every step: how much to draft, and how much to verify."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from eaglerl.headroom.acceptance import Prospects
from eaglerl.headroom.cost_curve import StepCost

# Where the rate no longer grows (Dinkelbach 1967).
_TOLERANCE, _MOST_ROUNDS = 1e-6, 30
# What lies ahead of so many steps is held in memory at once.
_STEPS_AT_ONCE = 20_000


@dataclass(frozen=True, eq=False)
class Groups:
    """Steps that are taken together, G groups of B requests each, and what they cost.

    Attributes:
        step: (G, B) int64, indices of the steps.
        verify: (G, n + 1) float64, seconds of verifying 0 to n rows beside the roots.
        draft: (G, K + 1) float64, seconds of drafting 0 to K tokens for each request.
    """

    step: np.ndarray
    verify: np.ndarray
    draft: np.ndarray

    @classmethod
    def of(
        cls, step: np.ndarray, context: np.ndarray, cost: StepCost, levels: int, extra: int = 0
    ) -> Groups:
        """Make groups and look up their costs.

        Args:
            step: (G, B) indices of the steps.
            context: (S,) context of every step; that of a group is the mean.
            cost: costs of steps.
            levels: K.
            extra: rows beside the roots that a group may verify at least, where the costs allow.

        Raises:
            ValueError: the costs do not cover the steps of one row for each request.
        """
        batch = step.shape[1]
        mean = context[step].mean(axis=1)[:, None]
        most = min(max(batch * levels, extra), cost.most_rows(batch) - batch)
        rows = batch + np.arange(max(most, 0) + 1)[None]
        return cls(
            step,
            np.broadcast_to(cost.verify(rows, batch, mean), (len(step), rows.shape[1])),
            np.broadcast_to(
                cost.draft(np.arange(levels + 1)[None], batch, mean), (len(step), levels + 1)
            ),
        )

    def at(self, places: np.ndarray) -> Groups:
        """Return some of the groups."""
        return Groups(self.step[places], self.verify[places], self.draft[places])

    @property
    def batch(self) -> int:
        """B."""
        return self.step.shape[1]


@dataclass(frozen=True, eq=False)
class Choice:
    """What was chosen in G groups.

    Attributes:
        verified: (G, B) int64, drafted tokens verified for each request.
        seconds: (G,) float64.
        value: (G,) float64, expected tokens less the rate times the seconds.
        looked_up: (G,) int64, looked-up tokens verified instead of a draft; 0 for none.
    """

    verified: np.ndarray
    seconds: np.ndarray
    value: np.ndarray
    looked_up: np.ndarray

    @classmethod
    def without_lookup(cls, verified: np.ndarray, seconds: np.ndarray, value: np.ndarray) -> Choice:
        """Make a choice of groups that look up nothing."""
        return cls(verified, seconds, value, np.zeros(len(seconds), dtype=np.int64))


class Chooser(Protocol):
    """What chooses at a rate."""

    def __call__(self, groups: Groups, rate: float) -> Choice:
        """Return what is best at a rate of tokens per second."""


def choose_by_survival(
    groups: Groups, survival: np.ndarray, prospects: Prospects, rate: float
) -> Choice:
    """Draft while it is expected to pay, then verify what is worth its rows.

    After each level the policy knows the survivals of what is drafted, and of later levels how
    survival went on in other steps. It looks ahead over all levels that are left, since costs need
    not be convex: the fourth token may be worth it where the second is not. All requests of a group
    draft as many tokens; rows go to the best tokens of all.

    Args:
        groups: the steps.
        survival: (S, K) expected survivals, which it sees level by level.
        prospects: what it expects of the levels that it does not see yet.
        rate: tokens per second that seconds are worth.
    """
    pieces = max(1, -(-groups.step.size // _STEPS_AT_ONCE))
    found = [
        _choose_by_survival(groups.at(places), survival, prospects, rate)
        for places in np.array_split(np.arange(len(groups.step)), pieces)
        if len(places)
    ]
    return Choice(
        *(np.concatenate([getattr(one, field.name) for one in found]) for field in fields(Choice))
    )


def _choose_by_survival(
    groups: Groups, survival: np.ndarray, prospects: Prospects, rate: float
) -> Choice:
    count, batch, levels = len(groups.step), groups.batch, survival.shape[1]
    own = survival[groups.step].transpose(0, 2, 1)  # (G, K, B): a tie goes to the earlier level
    verified = np.zeros((count, batch), dtype=np.int64)
    seconds, value = np.zeros(count), np.zeros(count)
    active = np.arange(count)
    for level in range(levels + 1):
        if not len(active):
            break
        here, known = groups.at(active), own[active, :level]
        now, rows = _best_rows(known.reshape(len(active), level * batch), here, rate)
        stops = np.ones(len(active), dtype=bool)
        if level < levels:
            last = own[active, level - 1] if level else np.ones((len(active), batch))
            stops = _going_on(known, prospects.after(level, last), here, rate) <= now
        done = active[stops]
        verified[done] = _spread(known[stops], rows[stops])
        spent = groups.draft[done, level]
        seconds[done] = spent + groups.verify[done, rows[stops]]
        value[done] = now[stops] - rate * spent
        active = active[~stops]
    return Choice.without_lookup(verified, seconds, value)


def _going_on(known: np.ndarray, coming: np.ndarray, groups: Groups, rate: float) -> np.ndarray:
    """Return what further levels are expected to be worth, as many as are best, (G,).

    Args:
        known: (G, k, B) survivals of what is drafted.
        coming: (G, Q, left, B) equally probable ones of what is not.
        groups: with costs.
        rate: tokens per second.
    """
    count, ways, left, batch = coming.shape
    level = known.shape[1]
    # By the most levels drafted, from one more than those known on.
    values = np.empty((count, left))
    shape = (count, ways, level, batch)
    both = np.concatenate((np.broadcast_to(known[:, None], shape), coming), axis=2)
    for more in range(1, left + 1) if batch > 1 else (left,):
        pool = both[:, :, : level + more].reshape(count, ways, batch * (level + more))
        if batch > 1:
            pool = -np.sort(-pool, axis=2)
        pool = pool[..., : groups.verify.shape[1] - 1]
        length = np.pad(np.cumsum(pool, axis=2), ((0, 0), (0, 0), (1, 0)))
        value = groups.batch + length - rate * groups.verify[:, None, : pool.shape[2] + 1]
        if batch > 1:
            values[:, more - 1] = value.max(axis=2).mean(axis=1)
    if batch == 1:
        # The survivals of one request descend, so that one sum serves all numbers of levels.
        running = np.maximum.accumulate(value, axis=2).mean(axis=1)
        last = running.shape[1] - 1
        values = running[:, np.minimum(level + 1 + np.arange(left), last)]
    passes = groups.draft[:, level + 1 :] - groups.draft[:, level : level + 1]
    return (values - rate * passes).max(axis=1)


def choose_by_knowledge(groups: Groups, accepted: np.ndarray, rate: float) -> Choice:
    """Choose with the knowledge of what will be accepted: the oracle's choice at a rate.

    Args:
        groups: the steps.
        accepted: (S,) int64 drafted tokens that are accepted, as far as they were judged.
        rate: tokens per second.
    """
    own = accepted[groups.step]
    levels = groups.draft.shape[1] - 1
    right = np.arange(1, levels + 1)[None, :, None] <= own[:, None]
    best: Choice | None = None
    for level in range(levels + 1):
        known = right[:, :level] * 1.0
        value, rows = _best_rows(known.reshape(len(own), -1), groups, rate)
        value = value - rate * groups.draft[:, level]
        seconds = groups.draft[:, level] + groups.verify[np.arange(len(own)), rows]
        found = Choice.without_lookup(_spread(known, rows), seconds, value)
        best = found if best is None else _better(best, found)
    assert best is not None  # there is a level 0
    return best


def or_looked_up(choice: Choice, groups: Groups, lookup: np.ndarray, rate: float) -> Choice:
    """Verify looked-up tokens without a draft where that is expected to be worth more.

    Args:
        choice: what is best otherwise.
        groups: steps of one request each.
        lookup: (S, M) expected survivals of looked-up tokens.
        rate: tokens per second.
    """
    own = lookup[groups.step[:, 0]][:, : groups.verify.shape[1] - 1]
    value, rows = _best_rows(own, groups, rate)
    seconds = groups.verify[np.arange(len(own)), rows]
    found = Choice(np.zeros_like(choice.verified), seconds, value, rows)
    return _better(choice, found)


def best_with_lookups(choice: Choice, groups: Groups, following: np.ndarray, rate: float) -> Choice:
    """Choose between a draft and looked-up tokens that are all right, knowing all later steps.

    By dynamic programming from the end: V(i) = max of the draft's value + V(i + 1), and over m of
    1 + m - rate * seconds(1 + m) + V(the step after 1 + m tokens).

    Args:
        choice: the best draft of every step.
        groups: steps of one request each, in order.
        following: (G, M) int64, the place that follows 1 + m looked-up tokens, m from 1; G + 1 and
            more where fewer are right.
        rate: tokens per second.
    """
    count, most = following.shape
    most = min(most, groups.verify.shape[1] - 1)
    own = 1.0 + np.arange(1, most + 1) - rate * groups.verify[:, 1 : most + 1]
    own[following[:, :most] > count] = -np.inf
    options = np.concatenate((choice.value[:, None], own), axis=1)
    after = np.concatenate((1 + np.arange(count)[:, None], following[:, :most]), axis=1)
    after = np.minimum(after, count)
    value, best = np.zeros(count + 1), np.zeros(count, dtype=np.int64)
    for at in range(count - 1, -1, -1):
        total = options[at] + value[after[at]]
        best[at] = total.argmax()
        value[at] = total[best[at]]
    looks = best > 0
    return Choice(
        np.where(looks[:, None], 0, choice.verified),
        np.where(looks, groups.verify[np.arange(count), best], choice.seconds),
        options[np.arange(count), best],
        best,
    )


def _better(one: Choice, other: Choice) -> Choice:
    """Return group by group the choice of the larger value, the first if they are equal."""
    wins = other.value > one.value
    return Choice(
        np.where(wins[:, None], other.verified, one.verified),
        np.where(wins, other.seconds, one.seconds),
        np.where(wins, other.value, one.value),
        np.where(wins, other.looked_up, one.looked_up),
    )


def _best_rows(pool: np.ndarray, groups: Groups, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest expected tokens - rate * seconds of verifying, and the rows for it.

    Args:
        pool: (G, n) survivals of the candidates.
        groups: with costs of verifying.
        rate: tokens per second.

    Returns:
        (G,) float64 values, and (G,) int64 rows beside the roots.
    """
    most = min(pool.shape[1], groups.verify.shape[1] - 1)
    best = -np.sort(-pool, axis=1)[:, :most]
    length = np.concatenate((np.zeros((len(pool), 1)), np.cumsum(best, axis=1)), axis=1)
    value = groups.batch + length - rate * groups.verify[:, : most + 1]
    rows = value.argmax(axis=1)
    return value[np.arange(len(pool)), rows], rows


def _spread(known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return how many of the best `rows` (G,) of survivals (G, k, B) each request has, (G, B)."""
    count, levels, batch = known.shape
    order = np.argsort(-known.reshape(count, levels * batch), axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable")
    return (place < rows[:, None]).reshape(count, levels, batch).sum(axis=1)


class Scorer(Protocol):
    """What comes of choices."""

    def __call__(self, groups: Groups, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Return the (G, B) tokens and the (G,) seconds, 0 for groups that are passed over."""


def best_rate(groups: Groups, choose: Chooser, score: Scorer) -> float:
    """Return the largest tokens per second that a chooser reaches with the rate it is given.

    Args:
        groups: the steps to choose in.
        choose: what chooses.
        score: what comes of the choices.
    """
    rate = groups.step.size / float(groups.verify[:, 0].sum())
    for _ in range(_MOST_ROUNDS):
        tokens, seconds = score(groups, choose(groups, rate))
        found = float(tokens.sum() / seconds.sum())
        if found <= rate * (1.0 + _TOLERANCE):
            break
        rate = found
    return rate
