"""The bounds, against brute force and against each other."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.traces.oracle import (
    TraceTable,
    bounds,
    constant_seconds,
    follow,
    known_actions,
    myopic_seconds,
    oracle_actions,
    select_actions,
    trace_tables,
)

from .tiny import made_up_trace

ACTIONS = ActionSpace(
    [NO_DRAFT, TreeParams(2, 0, 1), TreeParams(3, 1, 1), TreeParams(4, 2, 2), TreeParams(9, 2, 2)]
)
COST = CostTable(
    machine="made up",
    draft_dtype="float32",
    total_tokens=(1, 4, 16),
    verify_base=(1.0, 1.1, 1.9),
    verify_slope=(0.001, 0.001, 0.002),
    top_ks=(1, 2),
    first_pass=(0.1, 0.12),
    later_pass=(0.08, 0.09),
)


@st.composite
def tables(draw: st.DrawFn, positions: int = 7, actions: int = 4) -> TraceTable:
    count = draw(st.integers(1, positions))
    chosen = draw(st.integers(1, actions))
    lengths = st.lists(st.integers(1, 4), min_size=chosen, max_size=chosen)
    times = st.lists(st.floats(0.01, 10.0), min_size=chosen, max_size=chosen)
    tokens = np.array(draw(st.lists(lengths, min_size=count, max_size=count)))
    seconds = np.array(draw(st.lists(times, min_size=count, max_size=count)))
    remaining = np.arange(count, 0, -1)[:, None]
    return TraceTable("made up", np.minimum(tokens, remaining), seconds)


def brute_force(table: TraceTable) -> float:
    """Least time over all sequences of actions."""
    count = table.tokens.shape[1]

    @cache
    def least(position: int) -> float:
        if position == len(table):
            return 0.0
        return min(
            table.seconds[position, a] + least(position + int(table.tokens[position, a]))
            for a in range(count)
        )

    return least(0)


@settings(max_examples=60, deadline=None)
@given(tables(positions=5, actions=3))
def test_the_oracle_is_the_best_of_all_sequences(table: TraceTable) -> None:
    count = table.tokens.shape[1]
    every = []
    for choice in product(range(count), repeat=len(table)):
        every.append(follow(table, np.array(choice))[1])
    value, choice = oracle_actions(table)
    assert value[0] == pytest.approx(min(every))
    assert follow(table, choice)[1] == pytest.approx(value[0])
    assert brute_force(table) == pytest.approx(value[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4))
def test_bounds_are_in_order(given_tables: list[TraceTable]) -> None:
    count = min(table.tokens.shape[1] for table in given_tables)
    same = [
        TraceTable(f"domain {index % 2}", table.tokens[:, :count], table.seconds[:, :count])
        for index, table in enumerate(given_tables)
    ]
    constants = np.stack([constant_seconds(table) for table in same])
    oracle = sum(oracle_actions(table)[0][0] for table in same)
    best = constants.sum(axis=0).min()
    per_prompt = constants.min(axis=1).sum()
    # Sums of the same terms in another order.
    slack = 1e-9 * best
    assert oracle <= per_prompt + slack
    assert per_prompt <= best + slack
    assert (best <= constants.sum(axis=0) + slack).all()
    myopic, rate = myopic_seconds(same)
    assert oracle <= myopic + slack
    assert myopic <= best + slack
    assert rate == pytest.approx(sum(map(len, same)) / myopic)


@settings(max_examples=60, deadline=None)
@given(tables())
def test_a_constant_is_followed(table: TraceTable) -> None:
    expected = [follow(table, np.full(len(table), a))[1] for a in range(table.tokens.shape[1])]
    assert constant_seconds(table) == pytest.approx(np.array(expected))


def test_tables_never_emit_more_than_is_left() -> None:
    trace = made_up_trace(9, seed=2)
    table = TraceTable.of(trace, ACTIONS, COST)
    lengths = trace.accepted_lengths(ACTIONS)
    for position in range(9):
        expected = np.minimum(lengths[position], 9 - position)
        np.testing.assert_array_equal(table.tokens[position], expected)
    assert table.seconds[3, 1] == COST.seconds(ACTIONS[1], len(trace.prompt_ids) + 1 + 3)


def test_bounds_of_traces() -> None:
    traces = [made_up_trace(30, seed=s, domain=f"domain {s % 2}") for s in range(6)]
    result = bounds(traces, ACTIONS, COST)
    tables_ = trace_tables(traces, ACTIONS, COST)
    constants = np.stack([constant_seconds(table) for table in tables_])
    assert result.tokens == 180
    assert result.plain == pytest.approx(constants[:, 0].sum())
    assert result.constant == pytest.approx(constants.sum(axis=0)[result.constant_action])
    domains = [constants[d::2].sum(axis=0).min() for d in (0, 1)]
    assert result.per_domain == pytest.approx(sum(domains))
    assert result.oracle <= result.per_prompt <= result.per_domain <= result.constant
    assert result.headroom == pytest.approx(result.constant / result.oracle - 1)
    assert result.captured(result.constant) == pytest.approx(0)
    assert result.captured(result.oracle) == pytest.approx(1)
    assert np.isnan(bounds(traces, ActionSpace(ACTIONS[1:]), COST).plain)


def test_selection_adds_the_action_that_helps_most() -> None:
    traces = [made_up_trace(25, seed=s) for s in range(3)]
    chosen = select_actions(ACTIONS, traces, COST, 3)

    def seconds(indices: list[int]) -> float:
        few = ActionSpace(ACTIONS[i] for i in indices)
        return sum(oracle_actions(t)[0][0] for t in trace_tables(traces, few, COST))

    constants = [seconds([i]) for i in range(5)]
    assert chosen[0] == int(np.argmin(constants))
    for step in (1, 2):
        others = [i for i in range(5) if i not in chosen[:step]]
        best = min(others, key=lambda i: seconds([*chosen[:step], i]))
        assert chosen[step] == best
    space = ACTIONS.subset(select_actions(ACTIONS, traces, COST, 3))
    assert list(space) == [ACTIONS[i] for i in sorted(chosen)]
    assert ACTIONS.subset(select_actions(ACTIONS, traces, COST, 5)) == ACTIONS


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least one trace"):
        bounds([], ACTIONS, COST)
    with pytest.raises(ValueError, match=r"count must lie in 1..5, got 6"):
        select_actions(ACTIONS, [made_up_trace(3)], COST, 6)


def test_actions_missing_from_traces_or_cost_table_are_left_out() -> None:
    traces = [made_up_trace(5, seed=seed) for seed in range(2)]
    missing = [TreeParams(9, 1, 4), TreeParams(9, 3, 2), TreeParams(17, 4, 2)]
    assert known_actions(ActionSpace([*ACTIONS, *missing]), traces, COST) == ACTIONS
    with pytest.raises(ValueError, match=r"have top_k in \[1, 2\], depth up to 2 and 16 rows"):
        known_actions(ActionSpace(missing[:1]), traces, COST)
