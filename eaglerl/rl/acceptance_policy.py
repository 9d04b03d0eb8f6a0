"""The policy that predicts what is accepted and weighs it against what it costs."""

from __future__ import annotations

import numpy as np

from eaglerl.eagle3.params import (
    CycleState,
    DraftPlan,
    DraftProgress,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.rl.acceptance_model import AcceptanceModel, Plan, Survival
from eaglerl.rl.candidates import INITIAL_SUCCESS, Candidates, next_success
from eaglerl.rl.cost import CostTable

# Tokens that the rate of the training counts for beside those that are decoded.
_PRIOR_TOKENS = 200.0


class AcceptancePolicy:
    """Drafts while it pays, and verifies the candidates that pay, of the head and of the lookup.

    What is accepted is predicted by an `AcceptanceModel`, which knows nothing of the machine; what
    it costs is read from the cost table of the machine. lambda, what a second is worth, is the
    running ratio of all tokens to all seconds.

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
            ValueError: the cost table lacks the model's width, or its rows.
        """
        cost.draft_seconds(0, model.top_k, 0)
        cost.verify_seconds(model.max_rows, 0)
        self.model = model
        self.cost = cost
        pool = model.top_k + model.max_depth * model.top_k**2
        limit = TreeParams(min(model.max_rows, pool + 1), model.max_depth, model.top_k)
        self._plan = DraftPlan(limit, model.chain_length)
        self._tokens = _PRIOR_TOKENS
        self._seconds = _PRIOR_TOKENS / model.rate
        self.reset()

    @property
    def rate(self) -> float:
        """lambda, in tokens per second."""
        return self._tokens / self._seconds

    def reset(self) -> None:
        """Forget the sequence's lookups; lambda goes on."""
        self._success = INITIAL_SUCCESS
        self._lookups = 0
        self._judged: tuple[DraftProgress, Candidates, Survival, Plan] | None = None

    def choose(self, state: CycleState) -> DraftPlan:
        """The largest tree and the longest chain that the policy may end with."""
        self._judged = None
        return self._plan

    def observe(self, result: StepResult) -> None:
        """Count the cycle for lambda, and its lookup for the success of lookups."""
        self._tokens += len(result.token_ids)
        self._seconds += result.seconds
        lookup = result.lookup
        if lookup.match_length:
            came_true = lookup.token_ids[0] == result.token_ids[0]
            self._success = next_success(self._success, came_true=came_true)
            self._lookups += 1

    def goes_on(self, progress: DraftProgress) -> bool:
        """Whether another round promises more than it costs."""
        _, candidates, survival, plan = self._judge(progress)
        return bool(self.model.goes_on(candidates, survival, plan)[0])

    def select(self, progress: DraftProgress) -> Selection:
        """The most probable candidates, as many as pay."""
        _, _, survival, plan = self._judge(progress)
        chosen = plan.order[0, : plan.rows[0] - 1]
        size = survival.pool.shape[1]
        outside = chosen[chosen >= size]
        chain = int(outside.max()) - size + 1 if len(outside) else 0
        return Selection(chosen[chosen < size], chain)

    def rows(self, progress: DraftProgress) -> int:
        """Rows that `select` verifies."""
        return self.select(progress).rows(progress)

    def _judge(self, progress: DraftProgress) -> tuple[DraftProgress, Candidates, Survival, Plan]:
        if self._judged is None or self._judged[0] is not progress:
            nodes = progress.lookup_nodes
            if nodes is None:
                nodes = np.full(progress.depth + 1, -1)
            candidates = Candidates(
                top_k=progress.top_k,
                depth=progress.depth,
                scores=progress.scores[None],
                context_length=np.array([progress.context_length]),
                match_length=np.array([progress.lookup.match_length]),
                chain_nodes=nodes[None],
                success=np.array([self._success]),
                lookups=np.array([self._lookups]),
            )
            survival = self.model.survival(candidates)
            # Near the end of a text the chain is shorter than the model's.
            survival.chain[:, len(progress.lookup.token_ids) :] = 0.0
            plan = self.model.plan(candidates, survival, self.cost, self.rate)
            self._judged = (progress, candidates, survival, plan)
        return self._judged
