"""Decode many traces side by side with the policy of an acceptance model, in batches.

Every trace has a new policy of its own. `simulate` with such policies gives the same cycles, up to
the rounding of the nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.fitting.scored_positions import TracePositions
from eaglerl.policies.acceptance_model import (
    AcceptanceModel,
    Survival,
    needed_rows,
    plan_of_ranked,
    rank_candidates,
)
from eaglerl.policies.acceptance_policy import PRIOR_TOKENS
from eaglerl.policies.candidates import INITIAL_SUCCESS, Candidates, next_success
from eaglerl.traces.trace_set import Trace


@dataclass(frozen=True, eq=False)
class BatchOutcome:
    """The result of decoding n traces.

    Attributes:
        tokens: (n,) emitted tokens.
        seconds: (n,) duration by the cost table.
        cycles: (n,) number of cycles.
    """

    tokens: np.ndarray
    seconds: np.ndarray
    cycles: np.ndarray

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all traces over their seconds."""
        return float(self.tokens.sum() / self.seconds.sum())


@dataclass(eq=False)
class _Sequences:
    """The state of every trace's policy, (n,) each."""

    position: np.ndarray
    success: np.ndarray
    lookups: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray


def batch_simulate(
    model: AcceptanceModel, traces: Sequence[Trace], cost: CostTable
) -> BatchOutcome:
    """Decode traces with the policy of a model.

    The policy's own time is not counted.

    Args:
        model: a fitted model.
        traces: the traces to decode.
        cost: duration of the cycles.

    Raises:
        ValueError: there are no traces, or they or the cost table lack the model's width, depth or
            looked-up tokens.
    """
    positions = TracePositions.of(traces, model.top_k, model.max_depth, model.lookup_tokens)
    count = len(positions.lengths)
    starts, lengths = positions.starts, np.array(positions.lengths)
    state = _Sequences(
        np.zeros(count, dtype=np.int64),
        np.full(count, INITIAL_SUCCESS),
        np.zeros(count),
        np.full(count, PRIOR_TOKENS),
        np.full(count, PRIOR_TOKENS / model.rate),
    )
    total, cycles = np.zeros(count), np.zeros(count, dtype=np.int64)
    while len(active := np.flatnonzero(state.position < lengths)):
        rows = starts[active] + state.position[active]
        candidates = replace(
            positions.candidates.take(rows),
            success=state.success[active],
            lookups=state.lookups[active],
        )
        rate = state.tokens[active] / state.seconds[active]
        length, seconds = _cycles(model, candidates, positions, rows, cost, rate)
        total[active] += seconds
        cycles[active] += 1
        # The policy's rate counts all tokens of a cycle, those past the trace's end included.
        state.tokens[active] += length
        state.seconds[active] += seconds
        state.position[active] += np.minimum(length, positions.remaining[rows])
        looked = candidates.match_length > 0
        accepted = positions.lookup_accepted[rows] > 0
        later = next_success(candidates.success, accepted=accepted)
        state.success[active] = np.where(looked, later, candidates.success)
        state.lookups[active] += looked
    return BatchOutcome(lengths, total, cycles)


def _cycles(
    model: AcceptanceModel,
    candidates: Candidates,
    positions: TracePositions,
    rows: np.ndarray,
    cost: CostTable,
    rate: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return acceptance lengths and seconds of one cycle of each sequence."""
    length, seconds = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    survivals = model.survivals(candidates)
    drafting = np.arange(len(rows))
    for depth, whole in enumerate(survivals):
        early = candidates.at_depth(depth).take(drafting)
        survival = Survival(whole.pool[drafting], whole.lookup[drafting])
        order, expected = rank_candidates(survival, model.max_rows)
        plan = plan_of_ranked(order, expected, early.context_length, cost, rate[drafting])
        stops = ~model.should_continue(early, survival, plan)
        needed = needed_rows(
            order[stops],
            survival.pool.shape[1],
            positions.path[rows[drafting[stops]]],
            early.lookup_nodes[stops],
            positions.lookup_accepted[rows[drafting[stops]]],
            model.lookup_tokens,
        )
        done = drafting[stops]
        length[done] = 1 + (needed <= plan.rows[stops, None]).sum(axis=1)
        draft = cost.draft_seconds(depth, model.top_k, early.context_length[stops])
        seconds[done] = plan.seconds[stops] + draft
        drafting = drafting[~stops]
    return length, seconds
