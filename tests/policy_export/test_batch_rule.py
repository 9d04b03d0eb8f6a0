"""The batch-level rule on made-up servers, and beside the numbers of the core."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl.actions import ActionSpace
from eaglerl.cost import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.headroom.cost_curve import TableCost
from eaglerl.policies import best_constant
from eaglerl.policy_export.sglang_policy import (
    Acceptance,
    Costs,
    StepRule,
    simulate,
    worthwhile_tiers,
)
from eaglerl.policy_export.step_costs import StepCosts
from eaglerl.traces import simulate as simulate_traces

from ..traces.tiny import made_up_trace
from .server_model import geometric, like_a_cpu, like_a_gpu, like_experts

TIERS = (0, 1, 3, 5, 7)
#: Share of the best constant tier that is reached within 1,500 batches, all learning included.
REACHED = 0.95
SURVIVALS = (0.7, 0.49, 0.343)


def best_rate(seconds: Callable[[int, int], float], batch: int, survivals: list[float]) -> float:
    return max(batch * (1 + sum(survivals[:k])) / seconds(batch, k) for k in TIERS)


class Noisy(StepRule):
    """A rule whose clock is noisy; a tenth of the steps wait for a prefill."""

    def __init__(self) -> None:
        super().__init__(7, SURVIVALS, None, 3)
        self.clock = random.Random(1)

    def observe(self, batch: int, steps: int, counts: Sequence[int], seconds: float | None) -> None:
        if seconds is not None:
            seconds *= self.clock.lognormvariate(0, 0.05)
            seconds *= 1.0 if self.clock.random() > 0.1 else self.clock.uniform(2, 6)
        super().observe(batch, steps, counts, seconds)


def play(
    rule: StepRule,
    seconds: Callable[[int, int], float],
    batch: int,
    first: float,
    batches: int,
    seed: int = 0,
) -> float:
    """Return the share of the best constant tier's tokens per second."""
    survivals, draw = geometric(first), random.Random(seed)
    reached = simulate(rule, TIERS, survivals, seconds, batch=batch, batches=batches, draw=draw)
    return reached / best_rate(seconds, batch, survivals)


@pytest.mark.parametrize("seconds", [like_a_gpu, like_experts, like_a_cpu])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_best_constant_tier_is_reached(
    seconds: Callable[[int, int], float], batch: int
) -> None:
    for first in (0.9, 0.5, 0.05):
        rule = Noisy()
        assert play(rule, seconds, batch, first, 1500) > REACHED


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(("before", "after"), [(0.9, 0.05), (0.05, 0.9), (0.9, 0.4), (0.2, 0.8)])
def test_a_change_of_text_is_followed(batch: int, before: float, after: float) -> None:
    """Within 400 batches, of one request after the other as well."""
    shares = []
    for seed in range(2):
        rule = StepRule(7, SURVIVALS, None, 3)
        play(rule, like_a_gpu, batch, before, 1000, seed=seed)
        play(rule, like_a_gpu, batch, after, 400, seed=seed)
        shares.append(play(rule, like_a_gpu, batch, after, 600, seed=seed + 7))
    assert sum(shares) / 2 > REACHED


@pytest.mark.parametrize("seconds", [like_a_gpu, like_experts, like_a_cpu])
def test_batch_sizes_that_change_all_the_time(seconds: Callable[[int, int], float]) -> None:
    """Each size has costs of its own to learn, all share what is known of the text."""
    draw, clock = random.Random(5), random.Random(6)
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64]
    rule, survivals = StepRule(7, SURVIVALS, None, 3), geometric(0.75)
    at, tokens, best = 0, 0.0, 0.0
    for _ in range(3000):
        at = min(max(at + draw.choice((-1, 0, 0, 0, 1)), 0), len(sizes) - 1)
        batch = sizes[at]
        steps = rule.choose(batch, TIERS)
        counts = [_accepted(draw, survivals, steps) for _ in range(batch)]
        taken = seconds(batch, steps)
        rule.observe(batch, steps, counts, taken * clock.lognormvariate(0, 0.05))
        tokens += batch * (1 + sum(survivals[:steps]))
        best += taken * best_rate(seconds, batch, survivals)
    assert tokens / best > REACHED


def _accepted(draw: random.Random, survivals: list[float], steps: int) -> int:
    survived = draw.random()
    return sum(survived < survival for survival in survivals[:steps])


def test_nothing_is_drafted_where_nothing_pays() -> None:
    rule = StepRule(7, SURVIVALS, None, 3)
    play(rule, like_a_cpu, 64, 0.5, 600)
    drafted = []
    for _ in range(500):
        drafted.append(rule.choose(64, TIERS) > 0)
        rule.observe(64, 0, [0] * 64, like_a_cpu(64, 0))
    # What remains are trials.
    assert sum(drafted) <= 0.15 * len(drafted)
    assert play(rule, like_a_cpu, 64, 0.5, 500) > 0.985


def test_a_known_table_needs_no_clock() -> None:
    """As on several ranks: times are never told, and ranks that are told the same agree."""
    sizes = (1, 8, 64)
    table = {
        "batch_sizes": list(sizes),
        "steps": list(TIERS),
        "seconds": [[like_a_gpu(size, k) for k in TIERS] for size in sizes],
    }
    ranks = [StepRule(7, SURVIVALS, table, 3) for _ in range(2)]
    draw = random.Random(3)
    for size in sizes:
        chosen = []
        for _ in range(300):
            first, second = (rank.choose(size, TIERS) for rank in ranks)
            assert first == second
            counts = [sum(draw.random() < 0.6 for _ in range(first)) for _ in range(size)]
            for rank in ranks:
                rank.observe(size, first, counts, None)
            chosen.append(first)
        assert len(set(chosen)) > 1


@settings(max_examples=50, deadline=None)
@given(
    ratios=st.lists(st.floats(0.05, 1.0), min_size=7, max_size=7),
    seconds=st.lists(st.floats(0.001, 0.1), min_size=5, max_size=5),
)
def test_what_is_chosen_gains_most_beside_its_seconds(
    ratios: list[float], seconds: list[float]
) -> None:
    """Tokens - rate * seconds, at the rate that is reached; a level more or less gains nothing."""
    survivals = [math.prod(ratios[: k + 1]) for k in range(7)]
    table = {"batch_sizes": [1], "steps": list(TIERS), "seconds": [seconds]}
    rule = StepRule(7, survivals, table, first=99)
    chosen = rule.choose(1, TIERS)
    tokens = rule.acceptance.tokens()
    rate = tokens[chosen] / seconds[TIERS.index(chosen)]
    values = [tokens[k] - rate * t for k, t in zip(TIERS, seconds, strict=True)]
    assert max(values) == pytest.approx(0.0, abs=1e-9)
    # Before anything is learned, expectations are those of the given survivals.
    assert tokens == pytest.approx([1 + sum(survivals[:k]) for k in range(8)], rel=1e-9)


def chain_costs() -> CostTable:
    return CostTable(
        machine="made up",
        draft_dtype="int8",
        total_tokens=(1, 2, 4, 8, 64),
        verify_base=(0.020, 0.0204, 0.0212, 0.024, 0.080),
        verify_slope=(1e-6, 1e-6, 2e-6, 2e-6, 9e-6),
        top_ks=(1, 2, 4, 8),
        first_pass=(0.002, 0.0022, 0.0024, 0.003),
        later_pass=(0.001, 0.0011, 0.0013, 0.0016),
        draft_slope=1e-7,
    )


def test_costs_of_chains_are_those_of_the_cost_table() -> None:
    cost = chain_costs()
    costs = StepCosts.from_cost(TableCost(cost), 300)
    assert costs.batch_sizes == (1, 2, 4, 8, 16, 32)
    assert costs.steps == tuple(range(8))
    for steps in range(8):
        tree = TreeParams(1) if steps == 0 else TreeParams(steps + 1, steps - 1, 1)
        assert costs.seconds[0][steps] == pytest.approx(cost.seconds(tree, 300), rel=1e-12)
    # A batch of 8 that drafts 3 tokens verifies 32 rows after 3 passes.
    expected = cost.verify_seconds(32, 300) + cost.draft_seconds(2, 1, 300)
    assert costs.seconds[3][3] == pytest.approx(expected, rel=1e-12)


def test_on_traces_it_agrees_with_the_best_constant() -> None:
    """Expected tokens and rates from counts are those that the core finds by decoding traces."""
    cost = chain_costs()
    traces = [made_up_trace(400, seed=seed, top_ks=(1,), max_depth=3) for seed in range(6)]
    table = StepCosts.from_cost(TableCost(cost), 300)
    trees = [TreeParams(1), *(TreeParams(k + 1, k - 1, 1) for k in (1, 2, 3, 4))]
    lengths = [trace.accepted_lengths([trees[4]])[:, 0] - 1 for trace in traces]
    # The newest 128 requests count, so the mean over all of them is compared.
    acceptance, seen = Acceptance((0.5,), 4), []
    for length in lengths:
        for start in range(0, 400, 8):
            acceptance.observe(4, [int(n) for n in length[start : start + 8]])
            seen.append(acceptance.tokens())
    expected = np.mean(seen, axis=0)
    costs = Costs({"batch_sizes": [1], "steps": list(table.steps), "seconds": [table.seconds[0]]})
    rates = []
    for steps, tree in enumerate(trees):
        rates.append(float(expected[steps]) / costs.listed(1, steps))
        outcomes = simulate_traces(tree, traces, cost)
        tokens = sum(outcome.tokens for outcome in outcomes)
        found = tokens / sum(outcome.seconds for outcome in outcomes)
        assert rates[-1] == pytest.approx(found, rel=0.03)
    best = best_constant(traces, ActionSpace(trees), cost).params
    assert trees[rates.index(max(rates))] == best


def test_tiers_that_no_acceptance_makes_the_best_are_left_out() -> None:
    costs = {
        "batch_sizes": [1, 32],
        "steps": [0, 1, 2, 3],
        "seconds": [[1.0, 1.2, 1.9, 2.0], [1.0, 2.1, 3.3, 4.5]],
    }
    found = worthwhile_tiers(costs)
    assert found == {"1": {"candidate_steps": [0, 1, 3]}, "32": {"candidate_steps": [0]}}
    draw = random.Random(0)
    for _ in range(300):
        survivals = sorted((draw.random() for _ in range(3)), reverse=True)
        for size, row in zip(costs["batch_sizes"], costs["seconds"], strict=True):
            rates = [(1 + sum(survivals[:k])) / row[k] for k in range(4)]
            assert rates.index(max(rates)) in found[str(size)]["candidate_steps"]


def test_costs_between_and_beyond_those_of_the_table() -> None:
    costs = Costs({"batch_sizes": [2, 4], "steps": [0, 2], "seconds": [[1.0, 2.0], [1.2, 3.0]]})
    assert costs.listed(2, 1) == pytest.approx(1.5)
    assert costs.listed(3, 2) == pytest.approx(2.5)
    assert costs.listed(1, 0) == pytest.approx(1.0)
    assert costs.listed(6, 2) == pytest.approx(4.0)
    assert costs.listed(4, 4) == pytest.approx(4.8)
    assert costs.seconds(2, (0, 2)) == pytest.approx({0: 1.0, 2: 2.0})
    for _ in range(20):
        costs.observe(4, 2, 6.0)
    # Twice as slow as listed, and so is all else as long as nothing else is known of it.
    assert costs.seconds(4, (0, 2)) == pytest.approx({0: 2.4, 2: 6.0})
    assert costs.seconds(2, (0, 2)) == pytest.approx({0: 2.0, 2: 4.0})
    for _ in range(20):
        costs.observe(2, 0, 1.0)
    found = costs.seconds(2, (0, 2))
    assert found[0] == pytest.approx(1.0, rel=0.02)
    # 6 rows are closer to the 12 that were slow than to the 2 that were not.
    assert 3.0 < found[2] < 4.0


def test_what_is_measured_of_as_many_rows_counts_most() -> None:
    costs = Costs(None)
    for batch, steps in ((8, 0), (8, 7), (64, 0), (1, 0)):
        for _ in range(15):
            costs.observe(batch, steps, like_a_cpu(batch, steps))
    # 64 rows of 16 requests, which the first guess takes to be four times as fast.
    found = costs.seconds(16, (3,))[3]
    assert found == pytest.approx(like_a_cpu(16, 3), rel=0.25)


def test_a_few_stalls_are_no_price() -> None:
    costs = Costs(None)
    for _ in range(15):
        costs.observe(1, 0, 1.0)
        costs.observe(1, 1, 1.1)
    costs.observe(1, 3, 9.0)
    assert costs.seconds(1, (3,))[3] < 2.5
    for seconds in (9.0, 1.3, 1.3, 1.3, 1.3, 9.0, 1.3):
        costs.observe(1, 3, seconds)
    assert costs.seconds(1, (3,))[3] == pytest.approx(1.3, rel=0.05)


@pytest.mark.parametrize("counts", [[], [-1, 0], [0, 4]])
def test_results_that_cannot_be_are_passed_over(counts: list[int]) -> None:
    rule = StepRule(7, SURVIVALS, None, 3)
    before = rule.acceptance.tokens()
    rule.observe(1, 3, counts, 0.01)
    assert rule.acceptance.tokens() == before
