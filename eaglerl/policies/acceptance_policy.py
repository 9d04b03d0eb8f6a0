"""The policy that predicts what is accepted and weighs it against what it costs."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.policies.acceptance_cycle import CycleJudge
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.policies.candidates import INITIAL_SUCCESS, next_success

#: Tokens that the rate of the training counts for beside those that are decoded.
PRIOR_TOKENS = 200.0


@dataclass(slots=True)
class _Total:
    """Tokens and table seconds of all cycles, of a policy and its forks."""

    tokens: float
    seconds: float


class AcceptancePolicy:
    """Drafts while it pays, and verifies the candidates that pay, of the head and of the lookup.

    What is accepted is predicted by an `AcceptanceModel`, which knows nothing of the machine; what
    it costs is read from the cost table of the machine. lambda, what a second is worth, is the
    running ratio of all tokens to all seconds, by the same table: on a machine that is busy, and
    slower than the table by a factor, the decisions stay those that are best.

    Attributes:
        model: judges candidates.
        cost: of this machine.
    """

    def __init__(self, model: AcceptanceModel, cost: CostTable) -> None:
        """Set up.

        Args:
            model: a fitted model.
            cost: time of the cycles on this machine.

        Raises:
            ValueError: the cost table lacks the model's width, or its rows; see `CycleJudge` for
                what the model must be.
            TypeError: see `CycleJudge`.
        """
        first, later, longer = (
            float(cost.draft_seconds(depth, model.top_k, context))
            for depth, context in ((0, 0), (1, 0), (0, 1))
        )
        self.model = model
        self.cost = cost
        self._judge = CycleJudge(model, cost)
        pool = model.top_k + model.max_depth * model.top_k**2
        limit = TreeParams(min(model.max_rows, pool + 1), model.max_depth, model.top_k)
        self._plan = DraftPlan(limit, model.chain_length)
        rows = np.arange(1, model.max_rows + 1)
        base = cost.verify_seconds(rows, 0)
        self._verify = list(
            zip(base.tolist(), (cost.verify_seconds(rows, 1) - base).tolist(), strict=True)
        )
        self._first_pass, self._later_pass = first, later - first
        self._draft_slope = longer - first
        self._total = _Total(PRIOR_TOKENS, PRIOR_TOKENS / model.rate)
        self.reset()

    def fork(self) -> AcceptancePolicy:
        """The same policy for a sequence beside the one at work; lambda is of both together."""
        other = copy.copy(self)
        other._judge = CycleJudge(self.model, self.cost)
        other.reset()
        return other

    @property
    def rate(self) -> float:
        """lambda, in tokens per second of the cost table."""
        return self._total.tokens / self._total.seconds

    def reset(self) -> None:
        """Forget the sequence's lookups; lambda goes on."""
        self._success = INITIAL_SUCCESS
        self._lookups = 0
        self._seen: DraftProgress | None = None

    def choose(self, state: CycleState) -> DraftPlan:
        """The largest tree and the longest chain that the policy may end with."""
        self._seen = None
        return self._plan

    def observe(self, result: StepResult) -> None:
        """Count the cycle for lambda, and its lookup for the success of lookups."""
        self._total.tokens += len(result.token_ids)
        self._total.seconds += self._table_seconds(result)
        lookup = result.lookup
        if lookup.match_length:
            came_true = lookup.token_ids[0] == result.token_ids[0]
            self._success = next_success(self._success, came_true=came_true)
            self._lookups += 1

    def should_continue(self, progress: DraftProgress) -> bool:
        """Whether another round promises more than it costs."""
        if self._seen is not progress:
            self._look_at(progress)
        return self._judge.should_continue()

    def select(self, progress: DraftProgress) -> Selection:
        """The most probable candidates, as many as pay."""
        if self._seen is not progress:
            self._look_at(progress)
        return self._judge.select()

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    def _table_seconds(self, result: StepResult) -> float:
        """A cycle's seconds by the cost table; the head drafts in every one of them."""
        # In plain floats: after a forward pass NumPy's code has left the caches, and asking the
        # table took a third of the policy's time.
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
        if self._seen is None or progress.depth <= self._seen.depth:
            self._judge.begin(self._success, self._lookups)
        self._judge.judge(progress, self._total.tokens / self._total.seconds)
        self._seen = progress
