"""The policy that weighs predicted acceptance against cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.policies.acceptance_cycle import CycleScorer
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.policies.candidates import INITIAL_SUCCESS, next_success

#: The rate of the training counts as much as this many decoded tokens.
PRIOR_TOKENS = 200.0


@dataclass(slots=True)
class _Total:
    """Tokens and seconds by the cost table of all cycles of a policy and its forks."""

    tokens: float
    seconds: float


class AcceptancePolicy:
    """A policy that drafts, and verifies candidates of head and lookup, while it is worth the cost.

    An `AcceptanceModel`, which is independent of the machine, predicts what is accepted; the cost
    table of the machine says how long it takes. The rate, in tokens per second, converts one into
    the other: it is the running ratio of all tokens to all seconds by the same table. The decisions
    therefore stay optimal on a busy machine that is slower than the table by a constant factor.

    Attributes:
        model: predicts survivals.
        cost: cost table of this machine.
    """

    def __init__(self, model: AcceptanceModel, cost: CostTable) -> None:
        """Set up.

        Args:
            model: a fitted model.
            cost: duration of the cycles on this machine.

        Raises:
            ValueError: the cost table lacks the model's width or its rows, or the model is
                malformed; see `CycleScorer`.
            TypeError: see `CycleScorer`.
        """
        self._first_pass, self._later_pass, self._draft_slope = cost.draft_passes(model.top_k)
        self.model = model
        self.cost = cost
        self._scorer = CycleScorer(model, cost)
        pool = model.top_k + model.max_depth * model.top_k**2
        limit = TreeParams(min(model.max_rows, pool + 1), model.max_depth, model.top_k)
        self._plan = DraftPlan(limit, model.lookup_tokens)
        base, slope = cost.verify_lines(model.max_rows)
        self._verify = list(zip(base.tolist(), slope.tolist(), strict=True))
        self._total = _Total(PRIOR_TOKENS, PRIOR_TOKENS / model.rate)
        self.reset()

    def fork(self) -> AcceptancePolicy:
        """Return the same policy for another concurrent sequence; the two share the rate."""
        other = copy.copy(self)
        other._scorer = CycleScorer(self.model, self.cost)
        other.reset()
        return other

    @property
    def rate(self) -> float:
        """Tokens per second of all cycles so far, by the cost table."""
        return self._total.tokens / self._total.seconds

    def reset(self) -> None:
        """Forget the lookups of the sequence before; the rate stays."""
        self._success = INITIAL_SUCCESS
        self._lookups = 0
        self._seen: DraftProgress | None = None

    def choose(self, state: CycleState) -> DraftPlan:
        """Return the largest tree and the most looked-up tokens that the policy may end with."""
        self._seen = None
        return self._plan

    def observe(self, result: StepResult) -> None:
        """Update the rate, and the running success of lookups."""
        self._total.tokens += len(result.token_ids)
        self._total.seconds += self._table_seconds(result)
        lookup = result.lookup
        if lookup.match_length:
            accepted = lookup.token_ids[0] == result.token_ids[0]
            self._success = next_success(self._success, accepted=accepted)
            self._lookups += 1

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return whether another round promises more than it costs."""
        if self._seen is not progress:
            self._look_at(progress)
        return self._scorer.should_continue()

    def select(self, progress: DraftProgress) -> Selection:
        """Return the most probable candidates, as many as are worth verifying."""
        if self._seen is not progress:
            self._look_at(progress)
        return self._scorer.select()

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the number of rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _table_seconds(self, result: StepResult) -> float:
        """Return the seconds of a cycle with a draft, by the cost table."""
        # In plain floats: after a forward pass NumPy's code is out of the processor's caches, and
        # asking the table took a third of the policy's time.
        context, rows = result.context_length - len(result.token_ids), result.rows
        depth = result.params.depth
        if rows <= len(self._verify):
            base, slope = self._verify[rows - 1]
            verify = base + slope * context
        else:
            verify = float(self.cost.verify_seconds(rows, context))
        passes = self._first_pass + depth * self._later_pass
        return verify + passes + self._draft_slope * (1 + depth) * context

    def _look_at(self, progress: DraftProgress) -> None:
        # A pass that is not deeper than the last one belongs to a new cycle.
        if self._seen is None or progress.depth <= self._seen.depth:
            self._scorer.begin(self._success, self._lookups)
        self._scorer.score(progress, self._total.tokens / self._total.seconds)
        self._seen = progress
