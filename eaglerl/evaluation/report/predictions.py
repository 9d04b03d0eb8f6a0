"""What the policy that learns while decoding predicts on traces, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from eaglerl.evaluation.report.calibration import Bin, bin_outcomes
from eaglerl.policies.auto_policy import AutoPolicy
from eaglerl.traces.simulation import simulate, total
from eaglerl.traces.trace_set import Trace

# The largest tree of the policy while decoding; traces may hold smaller ones only.
_ROWS, _DEPTH, _WIDTH = 32, 5, 4
_LOOKUP_TOKENS = 12


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a policy predicted in the cycles that drafted, and what came of it.

    Attributes:
        expected: (cycles,) acceptance lengths that it expected of what it verified.
        found: (cycles,) acceptance lengths.
        tables: verified candidates by predicted probability of acceptance, for those of the draft
            and for looked-up tokens that the draft did not propose; without empty tables.
    """

    expected: np.ndarray
    found: np.ndarray
    tables: Mapping[str, Sequence[Bin]]


class PredictingPolicy(AutoPolicy):
    """An automatic policy that records what it predicts, and what comes of it.

    Attributes:
        expected: expected acceptance length of each cycle that drafted.
        found: acceptance length of each such cycle.
        chances: predicted survival of every verified candidate.
        accepted: whether it was accepted.
        from_lookup: whether it is a looked-up token that the draft did not propose.
    """

    def __init__(self, **arguments: Any) -> None:
        """See `AutoPolicy`."""
        self.expected: list[float] = []
        self.found: list[int] = []
        self.chances: list[float] = []
        self.accepted: list[bool] = []
        self.from_lookup: list[bool] = []
        self._predicted: tuple[np.ndarray, int] | None = None
        super().__init__(**arguments)

    def choose(self, state: CycleState) -> DraftPlan:
        """See `AutoPolicy`."""
        self._predicted = None
        return super().choose(state)

    def select(self, progress: DraftProgress) -> Selection:
        """Select as the policy does, and keep the survivals of the tree's rows, in their order."""
        selection = super().select(progress)
        pool, looked_up = self._cycle.survival()
        nodes = progress.lookup_nodes
        # Leading looked-up tokens that the draft proposed too have no rows of their own.
        shared = 0 if nodes is None else int(np.logical_and.accumulate(nodes >= 0).sum())
        drafted = pool[np.sort(selection.nodes)]
        own = looked_up[shared : selection.lookup_tokens]
        self._predicted = np.concatenate((drafted, own)), len(drafted)
        return selection

    def observe(self, result: StepResult) -> None:
        """Record a cycle that drafted."""
        if self._predicted is not None:
            chances, drafted = self._predicted
            accepted = np.zeros(len(chances), dtype=bool)
            accepted[np.array(result.accepted_rows, dtype=np.int64) - 1] = True
            self.expected.append(1.0 + float(chances.sum()))
            self.found.append(result.accepted + 1)
            self.chances += chances.tolist()
            self.accepted += accepted.tolist()
            self.from_lookup += [row >= drafted for row in range(len(chances))]
        super().observe(result)


def largest_draft(traces: Sequence[Trace], cost: CostTable) -> TreeParams:
    """Return the largest tree that the automatic policy may draft on traces.

    Args:
        traces: at least one; all of the widths and depth of the first.
        cost: cost table with the rows that may be verified.
    """
    first = traces[0]
    width = max((k for k in first.top_ks if k <= _WIDTH), default=first.top_ks[0])
    depth = min(_DEPTH, first.max_depth)
    rows = min(_ROWS, cost.total_tokens[-1], 1 + width + depth * width**2)
    return TreeParams(rows, depth, width)


def predict_on_traces(
    traces: Sequence[Trace], cost: CostTable, *, lookups: bool
) -> tuple[float, Prediction | None]:
    """Decode traces with the automatic policy, which begins with nothing.

    Args:
        traces: the traces to decode.
        cost: duration of the cycles, which the policy learns.
        lookups: whether it uses prompt lookup.

    Returns:
        The seconds of all traces by the cost table, and what it predicted; None if no cycle
        drafted.

    Raises:
        ValueError: the traces or the cost table lack its trees.
    """
    limit = largest_draft(traces, cost)
    tokens = min(_LOOKUP_TOKENS, traces[0].lookup_tokens) if lookups else 0
    policy = PredictingPolicy(limit=limit, lookup_tokens=tokens)
    seconds = total(simulate(policy, traces, cost)).seconds
    if not policy.expected:
        return seconds, None
    chances, accepted = np.array(policy.chances), np.array(policy.accepted)
    from_lookup = np.array(policy.from_lookup)
    tables = {
        name: bin_outcomes(chances[which], accepted[which])
        for name, which in (("of the draft", ~from_lookup), ("looked up", from_lookup))
        if which.any()
    }
    return seconds, Prediction(np.array(policy.expected), np.array(policy.found), tables)
