"""Studies of traces: bounds are exact, and the order of ways holds."""

import dataclasses

import numpy as np
import pytest

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.headroom.chain_study import ChainOptions, study_steps
from eaglerl.headroom.cost_curve import TableCost
from eaglerl.headroom.trace_steps import steps_of_traces
from eaglerl.headroom.tree_study import study_trees
from eaglerl.traces.oracle import bounds

from ..traces.planted import ACTIONS, COST, planted_traces
from ..traces.tiny import made_up_trace
from .logs import always, chain_traces, either


def test_constants_and_oracle_are_the_exact_bounds() -> None:
    traces = planted_traces(6)
    study = study_trees(traces, COST, actions=ACTIONS)
    exact = bounds(traces, ACTIONS, COST)
    assert study.best.seconds.sum() == pytest.approx(exact.constant)
    assert study.per_request.seconds.sum() == pytest.approx(exact.per_prompt)
    assert study.oracles[0].seconds.sum() == pytest.approx(exact.oracle)
    assert study.constants[0].seconds.sum() == pytest.approx(exact.plain)
    assert study.best.name.endswith(str(ACTIONS[exact.constant_action]))
    assert study.tokens.sum() == exact.tokens


def test_the_order_of_ways_holds_on_traces() -> None:
    study = study_trees(chain_traces(either(0.3, 0.95), 12), COST, folds=4)
    trees, with_lookup = study.policies
    assert study.oracles[0].seconds.sum() <= trees.seconds.sum()
    assert study.oracles[1].seconds.sum() <= study.oracles[0].seconds.sum()
    assert trees.seconds.sum() <= study.best.seconds.sum() / 0.97
    assert study.gain(trees, study.tuned).low > 1.02
    assert with_lookup.name == "auto, trees and prompt lookup"
    assert study.best.seconds.sum() <= study.tuned.seconds.sum()


def test_a_table_that_is_not_monotone_makes_the_best_tree_jump() -> None:
    traces = planted_traces(6)
    moe = dataclasses.replace(
        COST, total_tokens=(1, 2, 3, 5, 9), verify_base=(1.0, 1.9, 2.2, 1.4, 3.0),
        verify_slope=(0.0,) * 5, first_pass=(0.05, 0.05), later_pass=(0.05, 0.05),
    )  # fmt: skip
    study = study_trees(traces, moe, actions=ACTIONS)
    speeds = {way.name: study.speed(way).ratio for way in study.constants}
    assert study.best_name == f"tree {TreeParams(5, 3, 1)}"
    assert speeds[f"tree {TreeParams(2, 0, 1)}"] < speeds["plain decoding"]


def test_actions_that_traces_lack_are_left_out() -> None:
    wide = ActionSpace([*ACTIONS, TreeParams(9, 2, 8)])
    assert len(study_trees(planted_traces(3), COST, actions=wide).constants) == len(ACTIONS)


def test_traces_become_the_log_of_an_engine_with_chains() -> None:
    trace = made_up_trace(40, top_ks=(1, 2), max_depth=2)
    steps = steps_of_traces([trace])
    lengths = trace.accepted_lengths([TreeParams(4, 2, 1)])[:, 0]
    assert steps.requests == (trace.prompt_id,)
    assert steps.tokens.tolist() == [40.0]
    inside = steps.drafted == 3
    np.testing.assert_array_equal(steps.accepted[inside], lengths[steps.position - 1][inside] - 1)
    assert (np.diff(steps.position) == 1 + steps.accepted[:-1]).all()
    totals = np.cumsum(steps.log_probs, axis=1)
    found = trace.scores[1][steps.position - 1]
    np.testing.assert_allclose(totals[inside], found[inside], atol=2e-2)
    with pytest.raises(ValueError, match="not in the trace"):
        steps_of_traces([trace], 5)


def test_exchangeable_steps_come_near_an_exact_replay() -> None:
    # Acceptance in runs of 12 positions, which differ as much as they can: 0, 1 or 4 tokens.
    traces = planted_traces(10, positions=240)
    cost = dataclasses.replace(COST, total_tokens=(1, 8, 64))
    exact = study_trees(traces, cost, actions=_chains(4))
    logged = study_steps(steps_of_traces(traces, 4), TableCost(cost), ChainOptions(levels=4))
    found, true = (
        np.array([study.speed(way).ratio for way in study.constants]) for study in (logged, exact)
    )
    # The longest chain is what was logged. Shorter ones begin in the middle of runs, too.
    assert found[4] == pytest.approx(true[4], rel=0.005)
    assert (np.abs(found / true - 1.0) < 0.05).all()


def test_the_policy_keeps_up_where_all_positions_are_alike() -> None:
    for probability in (0.2, 0.8):
        study = study_trees(chain_traces(always(probability), 24), COST, folds=2)
        assert study.gain(study.policies[0], study.best).ratio > 0.97


def _chains(most: int) -> ActionSpace:
    return ActionSpace([TreeParams(1), *(TreeParams(n + 1, n - 1, 1) for n in range(1, most + 1))])


def test_costs_without_the_traces_width_are_refused() -> None:
    table = CostTable("made up", "", (1, 16), (1.0, 2.0), (0.0, 0.0), (32,), (0.1,), (0.1,))
    with pytest.raises(ValueError, match="top_k"):
        study_trees(planted_traces(3), table, actions=ActionSpace([TreeParams(2, 0, 1)]))
