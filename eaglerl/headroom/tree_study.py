"""What adapting is worth on recorded traces, where every tree is replayed exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams, TreePolicy
from eaglerl.evaluation.report.predictions import largest_draft
from eaglerl.evaluation.report.trace_study import wider_oracle
from eaglerl.headroom.result import Headroom, Way, bounds_of, folds_of
from eaglerl.policies.auto_policy import AutoPolicy
from eaglerl.policies.lookup_rule import best_lookup_rule
from eaglerl.traces.oracle import constant_seconds, known_actions, oracle_actions, trace_tables
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_set import Trace

Progress = Callable[[str, float], None]


def study_trees(
    traces: Sequence[Trace],
    cost: CostTable,
    *,
    actions: ActionSpace | None = None,
    folds: int = 5,
    seed: int = 0,
    source: str = "traces",
    progress: Progress = lambda stage, fraction: None,
) -> Headroom:
    """Compute what adapting is worth on traces.

    Constants and oracles are exact by the cost table. The policy is `AutoPolicy`, which learned on
    the traces of the other folds. It knows the costs, and learns on while it decodes, as it does
    live: every decision uses only what came before it.

    Args:
        traces: at least two.
        cost: what a cycle costs.
        actions: the trees to choose from; None for a fine grid. Those that traces or costs lack
            are left out.
        folds: parts that the traces are divided into.
        seed: of the division.
        source: where the traces come from, in words.
        progress: called with the current stage and the fraction done.

    Raises:
        ValueError: there are fewer than two traces or folds, or the traces and the cost table have
            no tree in common.
    """
    fold = folds_of(len(traces), folds, seed)
    space = known_actions(actions or ActionSpace.cpu_grid(), traces, cost).with_no_draft()
    progress("constant trees", 0.0)
    tables = trace_tables(traces, space, cost)
    names = ["plain decoding" if tree == NO_DRAFT else f"tree {tree}" for tree in space]
    seconds = np.stack([constant_seconds(table) for table in tables])
    constants, tuned, best, per_request = bounds_of(seconds, names, fold)
    progress("oracle of trees", 0.1)
    oracles = [Way("oracle of trees", "bound", np.array([oracle_actions(t)[0][0] for t in tables]))]
    looks_up = bool(min(trace.lookup_tokens for trace in traces))
    others = []
    if looks_up:
        progress("oracle of trees and prompt lookup", 0.15)
        wider = np.array([wider_oracle(trace, space, cost) for trace in traces])
        oracles.append(Way("oracle of trees and prompt lookup", "bound", wider))
        progress("rule of tree and lookup", 0.3)
        others = [_lookup_rule(traces, cost, seconds, space, fold)]
    policies = []
    for lookups in (False, True) if looks_up else (False,):
        words = " and prompt lookup" if lookups else ""
        progress(f"policy of trees{words}", 0.5 + 0.25 * lookups)
        policies.append(
            Way(f"auto, trees{words}", "policy", _policy_seconds(traces, cost, fold, lookups))
        )
    return Headroom(
        source=source,
        costs=cost.machine,
        batch=1,
        tokens=np.array([float(len(trace)) for trace in traces]),
        constants=constants,
        tuned=tuned,
        best=best,
        per_request=per_request,
        policies=policies,
        oracles=oracles,
        others=others,
        notes=[
            "Every tree is replayed exactly at every position. The policy's own time is not counted"
        ],
    )


def _policy_seconds(
    traces: Sequence[Trace], cost: CostTable, fold: np.ndarray, lookups: bool
) -> np.ndarray:
    """Return the (R,) seconds of the automatic policy, which learned on the other folds."""
    limit = largest_draft(traces, cost)
    tokens = min(12, *(trace.lookup_tokens for trace in traces)) if lookups else 0
    seconds = np.empty(len(traces))
    for each in np.unique(fold):
        known = OnlineCost((limit.top_k,), max(64, limit.total_tokens))
        known.fill(cost)
        policy = AutoPolicy(known, limit=limit, lookup_tokens=tokens)
        _decode(policy, [traces[at] for at in np.flatnonzero(fold != each).tolist()], cost)
        here = np.flatnonzero(fold == each)
        seconds[here] = _decode(policy, [traces[at] for at in here.tolist()], cost)
    return seconds


def _decode(
    policy: TreeParams | TreePolicy, traces: Sequence[Trace], cost: CostTable
) -> np.ndarray:
    return np.array([outcome.seconds for outcome in simulate(policy, traces, cost)])


def _lookup_rule(
    traces: Sequence[Trace],
    cost: CostTable,
    constants: np.ndarray,
    space: ActionSpace,
    fold: np.ndarray,
) -> Way:
    """Return the fixed rule of a tree and prompt lookup that is best on the other folds."""
    seconds = np.empty(len(traces))
    for each in np.unique(fold):
        others = np.flatnonzero(fold != each)
        tree = space[int(constants[others].sum(axis=0).argmin())]
        rule = best_lookup_rule([traces[at] for at in others.tolist()], cost, [tree])
        here = np.flatnonzero(fold == each)
        seconds[here] = _decode(rule, [traces[at] for at in here.tolist()], cost)
    return Way("rule of tree and lookup, tuned on other requests", "constant", seconds)
