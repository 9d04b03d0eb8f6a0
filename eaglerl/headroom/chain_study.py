"""What adapting is worth on logged steps with chains of drafted tokens.

The steps of a request are taken to be exchangeable: another rule would begin its steps at other
positions, and is taken to find there what the logged steps found. docs/engines.md says how far off
that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from eaglerl.headroom.acceptance import SurvivalModel, seen_survival
from eaglerl.headroom.chain_choice import (
    Choice,
    Chooser,
    Groups,
    best_rate,
    best_with_lookups,
    choose_by_knowledge,
    choose_by_survival,
    or_looked_up,
)
from eaglerl.headroom.cost_curve import StepCost
from eaglerl.headroom.result import Headroom, Way, bounds_of, folds_of, tuned_seconds
from eaglerl.headroom.step_log import Steps

Progress = Callable[[str, float], None]

#: Lengths of a match from which a rule looks up, and how many tokens it then verifies.
_MATCHES, _LOOKED_UP = (2, 3, 5, 8), (3, 6, 12)
# A rate is a mean: 20,000 steps tell it to a few in a thousand.
_STEPS_FOR_RATE = 20_000
# A share of censored steps above this is worth a warning with bounds.
_LITTLE_CUT = 0.02


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How steps are studied.

    Attributes:
        batch: requests that share a step.
        levels: longest chain; None for the longest that was judged.
        folds: parts that the requests are divided into: a policy is fitted on all but one.
        seed: of the division, and of which steps share a batch.

    Raises:
        ValueError: a number is out of range.
    """

    batch: int = 1
    levels: int | None = None
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.folds < 2 or (self.levels is not None and self.levels < 1):
            raise ValueError(
                f"batch and levels must be at least 1 and folds at least 2, got {self}"
            )


def study_steps(
    steps: Steps,
    cost: StepCost,
    options: ChainOptions = ChainOptions(),
    *,
    source: str = "steps",
    progress: Progress = lambda stage, fraction: None,
) -> Headroom:
    """Compute what adapting is worth on logged steps.

    Args:
        steps: what the engine logged.
        cost: what its steps cost.
        options: how they are studied.
        source: where the steps come from, in words.
        progress: called with the current stage and the fraction done.

    Raises:
        ValueError: no step judged a drafted token, longer chains are asked for than were judged,
            there are fewer than two requests, or the costs do not cover the steps.
    """
    return _Study(steps, cost, options, source, progress).result()


class _Study:
    def __init__(
        self, steps: Steps, cost: StepCost, options: ChainOptions, source: str, progress: Progress
    ) -> None:
        if not steps.levels:
            raise ValueError("steps must hold a drafted token that the target judged, got none")
        self._levels = steps.levels if options.levels is None else options.levels
        if self._levels > steps.levels:
            raise ValueError(
                f"chains must be at most {steps.levels} tokens long, as the longest that was "
                f"judged, got {self._levels}: what a longer one yields is not in the log"
            )
        self._steps, self._cost, self._options = steps, cost, options
        self._source, self._progress = source, progress
        self._count = len(steps.requests)
        self._fold = folds_of(self._count, options.folds, options.seed)
        self._seen = seen_survival(steps, self._levels)
        self._draw = np.random.default_rng(options.seed)
        # Lookups alone are a question of one request: in a batch the others draft anyway.
        self._looks_up = options.batch == 1 and bool(steps.looked_up.any())

    def result(self) -> Headroom:
        """Compute all."""
        self._progress("constants", 0.0)
        seconds, names = self._constants(self._seen)
        constants, tuned, best, per_request = bounds_of(seconds, names, self._fold)
        others = [self._lookup_rule(seconds)] if self._looks_up else []
        policies, oracles = [], []
        for looks_up in (False, True) if self._looks_up else (False,):
            with_lookup = " and prompt lookup" if looks_up else ""
            self._progress(f"policy of chains{with_lookup}", 0.3 + 0.35 * looks_up)
            policies.append(
                Way(f"calibrated policy of chains{with_lookup}", "policy", self._policy(looks_up))
            )
            self._progress(f"oracle of chains{with_lookup}", 0.5 + 0.35 * looks_up)
            oracles.append(Way(f"oracle of chains{with_lookup}", "bound", self._oracle(looks_up)))
        return Headroom(
            source=self._source,
            costs=self._cost.name,
            batch=self._options.batch,
            tokens=self._steps.tokens,
            constants=constants,
            tuned=tuned,
            best=best,
            per_request=per_request,
            policies=policies,
            oracles=oracles,
            others=others,
            notes=self._notes(names),
        )

    def _constants(self, seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Return the (R, K + 1) seconds of chains of 0 to K tokens, as far as costs cover them."""
        batch, context = self._options.batch, self._steps.context
        most = min(self._levels, self._cost.most_rows(batch) // batch - 1)
        columns, names = [], []
        for level in range(max(most, 0) + 1):
            tokens = 1.0 + seen[:, :level].sum(axis=1)
            columns.append(self._of_requests(tokens, self._chain_seconds(level, context)))
            names.append(f"chain of {level}" if level else "plain decoding")
        return np.stack(columns, axis=1), names

    def _chain_seconds(self, level: int, context: np.ndarray) -> np.ndarray:
        batch = self._options.batch
        rows, levels = np.array(batch * (1 + level)), np.array(level)
        whole = self._cost.verify(rows, batch, context) + self._cost.draft(levels, batch, context)
        return whole / batch

    def _of_requests(
        self, tokens: np.ndarray, seconds: np.ndarray, step: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the (R,) seconds of each request's logged tokens, from what its steps would give.

        Args:
            tokens: (S,) tokens of steps under a rule.
            seconds: (S,) seconds of the same.
            step: (S,) their indices; None for all in order.
        """
        request = self._steps.request if step is None else self._steps.request[step]
        spent, found = (
            np.bincount(request, values, minlength=self._count) for values in (seconds, tokens)
        )
        with np.errstate(invalid="ignore"):
            return self._steps.tokens * spent / found

    def _lookup_rule(self, chains: np.ndarray) -> Way:
        """Return the best rule of other requests: a chain, or looked-up tokens from a match on."""
        steps, columns = self._steps, [chains]
        for least, most in product(_MATCHES, _LOOKED_UP):
            looks = (steps.match >= least) & (steps.looked_up > 0)
            rows = 1 + np.minimum(steps.looked_up, most)
            rows = np.minimum(rows, self._cost.most_rows(1))
            found = 1.0 + np.minimum(steps.lookup_accepted, rows - 1)
            spent = self._cost.verify(np.where(looks, rows, 1), 1, steps.context)
            for level in range(chains.shape[1]):
                tokens = np.where(looks, found, 1.0 + self._seen[:, :level].sum(axis=1))
                seconds = np.where(looks, spent, self._chain_seconds(level, steps.context))
                visited = steps.visited(np.arange(len(steps)), tokens)
                columns.append(self._of_requests(tokens * visited, seconds * visited)[:, None])
        seconds = tuned_seconds(np.hstack(columns), self._fold)
        return Way("rule of chain and lookup, tuned on other requests", "constant", seconds)

    def _policy(self, looks_up: bool) -> np.ndarray:
        """Return the (R,) seconds of the policy, fitted on the other folds."""
        total = np.zeros(self._count)
        for each in np.unique(self._fold):
            held_out = self._steps.of_requests(self._fold == each)
            model = SurvivalModel.fit(self._steps, ~held_out, self._levels)
            choose = self._chooser(model, looks_up)
            learned = self._groups(self._some(np.flatnonzero(~held_out)))
            rate = best_rate(learned, choose, self._score)
            total += self._scored(choose, self._groups(np.flatnonzero(held_out)), rate)
        return total

    def _some(self, step: np.ndarray) -> np.ndarray:
        """Return the steps of as many requests as tell the rate well enough."""
        if len(step) <= _STEPS_FOR_RATE:
            return step
        every = np.unique(self._steps.request[step])
        count = max(1, int(len(every) * _STEPS_FOR_RATE / len(step)))
        return step[np.isin(self._steps.request[step], self._draw.permutation(every)[:count])]

    def _chooser(self, model: SurvivalModel, looks_up: bool) -> Chooser:
        survival = model.survival(self._steps.log_probs[:, : self._levels], self._levels)
        lookup = model.lookup_survival(self._steps) if looks_up else None

        def choose(groups: Groups, rate: float) -> Choice:
            choice = choose_by_survival(groups, survival, model.prospects, rate)
            return choice if lookup is None else or_looked_up(choice, groups, lookup, rate)

        return choose

    def _oracle(self, looks_up: bool) -> np.ndarray:
        """Return the (R,) seconds of the best choice in every step, known in advance."""
        steps, every = self._steps, np.arange(len(self._steps))
        looked_up = np.arange(1, 1 + int(steps.looked_up.max(initial=0)))
        following = steps.following(
            every, 1 + np.broadcast_to(looked_up, (len(steps), len(looked_up)))
        )
        following[looked_up > steps.lookup_accepted[:, None]] = len(steps) + 1

        def choose(groups: Groups, rate: float) -> Choice:
            choice = choose_by_knowledge(groups, steps.accepted, rate)
            return best_with_lookups(choice, groups, following, rate) if looks_up else choice

        groups = self._groups(every)
        return self._scored(choose, groups, best_rate(groups, choose, self._score))

    def _scored(self, choose: Chooser, groups: Groups, rate: float) -> np.ndarray:
        """Return the (R,) seconds of a chooser at a rate; 0 for requests without a step here."""
        tokens, seconds = self._score(groups, choose(groups, rate))
        each = np.repeat(seconds / groups.batch, groups.batch)
        found = self._of_requests(tokens.reshape(-1), each, groups.step.reshape(-1))
        return np.nan_to_num(found, nan=0.0)

    def _score(self, groups: Groups, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """See `Scorer`."""
        seen = np.pad(np.cumsum(self._seen, axis=1), ((0, 0), (1, 0)))
        tokens = 1.0 + seen[groups.step, choice.verified]
        if not choice.looked_up.any():
            return tokens, choice.seconds
        tokens[:, 0] += np.minimum(self._steps.lookup_accepted[groups.step[:, 0]], choice.looked_up)
        visited = self._steps.visited(groups.step[:, 0], tokens[:, 0])
        return tokens * visited[:, None], choice.seconds * visited

    def _groups(self, step: np.ndarray) -> Groups:
        """Return steps as groups: in order one by one, or drawn into batches."""
        batch = self._options.batch
        if batch > 1:
            # The last batch is filled up with steps that were drawn already.
            count = -(-len(step) // batch) * batch
            step = np.resize(self._draw.permutation(step), count)
        extra = int(self._steps.looked_up.max(initial=0)) if self._looks_up else 0
        return Groups.of(
            step.reshape(-1, batch), self._steps.context, self._cost, self._levels, extra
        )

    def _notes(self, names: Sequence[str]) -> list[str]:
        steps = self._steps
        notes = [
            "Steps of a request are taken to be exchangeable: another rule would begin its steps "
            "at other positions"
        ]
        if len(names) <= self._levels:
            notes.append(
                f"Chains of more than {len(names) - 1} tokens are left out of the constants: the "
                "costs have no such steps"
            )
        if steps.cut_short:
            notes.append(self._censoring())
        unknown = (steps.lookup_judged < steps.looked_up).mean()
        if self._looks_up and unknown > _LITTLE_CUT:
            notes.append(
                f"In {100 * unknown:.0f} % of the steps the looked-up tokens are right as far as "
                "text was emitted; they are counted as no longer, so lookups are underestimated"
            )
        if self._options.batch > 1:
            notes.append(
                "Steps of different requests share a batch at random, and all of them draft as "
                "many tokens"
            )
        return [*notes, *self._cost.notes]

    def _censoring(self) -> str:
        share = f"{100 * self._steps.cut_short:.1f} % of the steps tell of fewer tokens than others"
        if self._steps.cut_short <= _LITTLE_CUT:
            return f"{share} and accepted all of them; what lies beyond is estimated"
        speeds = []
        for beyond in ("none", "all"):
            seen = seen_survival(self._steps, self._levels, beyond=beyond)
            best = self._constants(seen)[0].sum(axis=0).min()
            speeds.append(self._steps.tokens.sum() / best)
        return (
            f"{share} and accepted all of them. What lies beyond is estimated from the other steps "
            "(Kaplan-Meier), which is too much where drafts were cut because they were doubtful: "
            f"the best constant has between {speeds[0]:.1f} and {speeds[1]:.1f} tokens/s. Policy "
            "and oracle draft no further than the log"
        )
