"""`OnlineCost` against NumPy, on a simulated clock, on disk, and with bad input."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from eaglerl.cost import CostTable, OnlineCost
from eaglerl.eagle3.policy import NO_DRAFT, StepResult, TreeParams

from ..closeness import check_close
from ..simulated_clock import FLAT, ONE_THREAD, STEEP, STEP, Clock

KNOTS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 17, 20, 24, 32])
COUNT = len(KNOTS)
#: Weights of the knots for 0 to 32 rows; the knot of one row is the speed's.
BETWEEN = np.stack([np.interp(range(33), KNOTS, np.eye(COUNT)[knot]) for knot in range(COUNT)], 1)
BETWEEN[:, 0] = 0
#: Tables whose rows cost more with the context.
TABLES = [
    replace(table, verify_slope=tuple(2e-4 * base for base in table.verify_base))
    for table in (STEEP, STEP, FLAT)
]


def result_of(
    rows: int, depth: int, verify: float, draft: float, context: int = 100, width: int = 4
) -> StepResult:
    params = TreeParams(min(rows, 1 + width), depth, width) if draft else NO_DRAFT
    return StepResult(
        (7,), params, 0, draft, verify, torch.zeros(3), context + 1, rows=rows
    )  # fmt: skip


@dataclass
class Machine:
    """Cycles of all kinds on a clock."""

    clock: Clock
    seed: int = 0

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def run(self, cost: OnlineCost, cycles: int, factor: float = 1.0, rows: int = 16) -> None:
        """Run cycles of 1 to `rows` rows whose times are `factor` times as long."""
        for _ in range(cycles):
            chosen, depth = int(self.draw.integers(1, rows + 1)), int(self.draw.integers(0, 4))
            context = int(self.draw.integers(20, 400))
            verify = self.clock.measure_verification(chosen, context)
            draft = self.clock.measure(self.clock.draft_seconds(depth, context))
            cost.observe(result_of(chosen, depth, factor * verify, factor * draft, context))
            self.clock.cycle += 1


class Reference:
    """The filter with whole matrices."""

    def __init__(self) -> None:
        steps = np.log(KNOTS[1:])
        self.mean = np.concatenate(
            ([0], np.log(1 + 0.07 * (KNOTS[1:] - 1)), np.log([3e-4, 0.15, 0.06]))
        )
        self.covariance = np.eye(len(self.mean))
        self.covariance[0, 0] = 0.25
        self.covariance[1:COUNT, 1:COUNT] = 0.35**2 * np.minimum.outer(steps, steps)
        self.first, self.surprises = True, np.zeros((0, 2))
        self.cycle, self.changed, self.sums = 0, 0, np.zeros(2)
        self.verified, self.in_a_row = np.zeros(COUNT), np.zeros(COUNT)

    def growth(self, rows: int) -> np.ndarray:
        return np.concatenate((BETWEEN[rows], np.zeros(len(self.mean) - COUNT)))

    def observe(self, rows: int, context: int, verify: float, depth: int, draft: float) -> None:
        self.covariance += np.diag([1e-4] + [9e-8] * (len(self.mean) - 1))
        weights, growth = self.growth(rows), math.exp(self.mean[COUNT]) * context
        expected = weights @ self.mean + math.log1p(growth)
        surprise = math.log(verify) - expected - self.mean[0]
        if not self.first and self.cycle <= 3 and surprise < -1.386:
            self.__init__()  # type: ignore[misc]
            return self.observe(rows, context, verify, depth, draft)
        if self.first:
            self.mean[0], self.first = math.log(verify) - expected, False
        weights[0], weights[COUNT] = 1, growth / (1 + growth)
        off = [self._learn(weights, math.log(verify) - expected - self.mean[0])]
        self._detect_change(rows, off[0])
        if draft:
            passes = np.exp(self.mean[COUNT + 1 :]) * (1, depth)
            weights = np.zeros(len(self.mean))
            weights[0], weights[COUNT + 1 :] = 1, passes / passes.sum()
            off.append(
                self._learn(weights, math.log(draft) - math.log(passes.sum()) - self.mean[0])
            )
        together = off[0] if len(set(off)) == 1 else 0
        self.surprises = np.vstack((self.surprises, (off[0], together)))[-4:]
        changed = np.abs(self.surprises.sum(0)) == 4
        if changed[0]:
            self.covariance[0, 0] += 0.5 * changed[1]
            self._widen_rows()
            self.surprises = np.zeros((0, 2))

    def _widen_rows(self) -> None:
        steps = np.log(KNOTS[1:])
        self.covariance[1:COUNT, 1:COUNT] += 0.01 * np.minimum.outer(steps, steps)

    def _detect_change(self, rows: int, off: int) -> None:
        self.cycle += 1
        self.sums = np.maximum(self.sums + np.array([1, -1]) * self.deviations - 0.7, 0)
        if self.sums.max() > 6:
            self.sums, self.changed = np.zeros(2), self.cycle
        knot = int(np.abs(KNOTS - rows).argmin())
        if off == 0:
            self.verified[knot], self.in_a_row[knot] = self.cycle, 0
            return
        before = self.in_a_row[knot]
        self.in_a_row[knot] = before + off if before * off > 0 else off
        if abs(self.in_a_row[knot]) == 4:
            self.in_a_row[knot] = 0
            self._widen_rows()

    def trial_deviation(self, deviation: np.ndarray) -> np.ndarray:
        nearest = np.abs(KNOTS - np.arange(1, 33)[:, None]).argmin(axis=1)
        outdated = self.verified[nearest] < max(self.changed, self.cycle - 2000)
        return np.where(outdated, np.maximum(deviation, 0.15), deviation)

    def _learn(self, weights: np.ndarray, surprise: float) -> int:
        """Return the sign of what was off by more than three standard deviations, or 0."""
        noise = 0.05**2 + (0.25 * max(surprise - 0.15, 0)) ** 2
        variance = weights @ self.covariance @ weights + noise
        most = 3 * math.sqrt(variance)
        self.deviations = float(np.clip(surprise / math.sqrt(variance), -3, 3))
        gain = self.covariance @ weights / variance * min(1.0, most / max(abs(surprise), 1e-300))
        self.mean = self.mean + gain * surprise
        self.covariance = self.covariance - np.outer(gain, weights @ self.covariance)
        return int(np.sign(surprise)) if abs(surprise) > most else 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_belief_equals_that_in_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cost, reference = OnlineCost(max_rows=32), Reference()
    growths = np.stack([reference.growth(row) for row in range(1, 33)])
    slow = 1.0
    for _ in range(60):
        if draw.random() < 0.05:
            slow *= draw.choice([0.2, 5.0])
        rows, depth, context = (int(draw.integers(*ends)) for ends in ((1, 33), (0, 6), (0, 2000)))
        verify, draft = (slow * math.exp(draw.normal(-4, 0.3)) for _ in range(2))
        if draw.random() < 0.2:
            draft = 0.0
        cost.observe(result_of(rows, depth, verify, draft, context))
        reference.observe(rows, context, verify, depth, draft)
        mean, spread = cost._native.belief()
        check_close(mean, reference.mean, 1e-7, 1e-9)
        check_close(spread, np.sqrt(np.diag(reference.covariance)), 1e-6)
        # Beside the last row count, whose own cost is certain.
        weights = growths - reference.growth(rows)
        variance = (weights @ reference.covariance * weights).sum(axis=1)
        deviation = np.sqrt(np.maximum(variance, 0))
        check_close(cost._native.deviation(), deviation, 1e-5, 1e-8)
        check_close(
            cost._native.trial_deviation(), reference.trial_deviation(deviation), 1e-5, 1e-8
        )
        known = 1 / (variance[KNOTS - 1] + 0.003**2)
        ascending = isotonic_regression([0, *reference.mean[1:COUNT]], weights=known).x
        expected = np.exp(np.interp(np.arange(1, 33), KNOTS, ascending))
        check_close(cost._native.verify(), expected, 1e-6)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.machine)
def test_costs_are_found_from_noisy_cycles(table: CostTable) -> None:
    cost = OnlineCost(max_rows=32)
    Machine(Clock(table)).run(cost, 1000)
    found, rows = cost.table(), np.arange(1, 17)
    ratios = found.verify_seconds(rows, 200) / table.verify_seconds(rows, 200)
    # The noise of each of 16 row counts is 5 % / sqrt(60) = 0.65 %.
    assert np.abs(ratios / np.median(ratios) - 1).max() < 0.04
    assert np.median(ratios) == pytest.approx(1, abs=0.05)
    for depth in (0, 3):
        true = table.draft_seconds(depth, 4, 200)
        assert found.draft_seconds(depth, 4, 200) / true == pytest.approx(1, abs=0.1)


def test_what_slows_all_of_a_cycle_moves_the_speed_alone() -> None:
    cost = OnlineCost(max_rows=32)
    machine = Machine(Clock(STEEP, noise=0.0, stalls=0.0))
    machine.run(cost, 1000)
    before, speed = cost._native.verify(), cost.speed
    machine.run(cost, 30, factor=1.8)
    assert cost.speed / speed == pytest.approx(1.8, rel=0.01)
    np.testing.assert_allclose(cost._native.verify()[:16], before[:16], rtol=0.01)


@pytest.mark.parametrize("times", [10, 500], ids=["stalled", "suspended"])
def test_a_stall_bans_no_row_count(times: int) -> None:
    cost = OnlineCost(max_rows=32)
    Machine(Clock(STEEP, stalls=0.0)).run(cost, 500)
    before = cost._native.verify()
    verify = STEEP.verify_seconds(8, 100)
    cost.observe(result_of(8, 1, times * verify, STEEP.draft_seconds(1, 4, 100)))
    np.testing.assert_allclose(cost._native.verify()[:16], before[:16], rtol=0.03)


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("known", [5, 20])
def test_a_stall_of_what_was_never_measured_is_forgotten_within_50_cycles(
    known: int, rows: int
) -> None:
    cost, spared = OnlineCost(max_rows=32), OnlineCost(max_rows=32)
    clock = Clock(STEEP, stalls=0.0)
    for each, times in ((cost, 10), (spared, 1)):
        # Before it, only half as many rows were verified.
        Machine(replace(clock), seed=1).run(each, known, rows=max(1, rows // 2))
        verify = STEEP.verify_seconds(rows, 100)
        each.observe(result_of(rows, 1, times * verify, STEEP.draft_seconds(1, 4, 100)))
        Machine(replace(clock, seed=1), seed=2).run(each, 50)
    ratios = cost._native.verify()[:16] / spared._native.verify()[:16]
    assert np.abs(ratios / np.median(ratios) - 1).max() < 0.1


def test_a_changed_shape_is_found_within_200_cycles() -> None:
    cost = OnlineCost(max_rows=32)
    Machine(Clock(STEEP)).run(cost, 2000)
    Machine(Clock(ONE_THREAD, seed=1), seed=1).run(cost, 200)
    rows = np.arange(1, 17)
    ratios = cost.table().verify_seconds(rows, 100) / ONE_THREAD.verify_seconds(rows, 100)
    assert np.abs(ratios / np.median(ratios) - 1).max() < 0.06


def test_a_file_keeps_what_was_learned_a_little_less_certain(tmp_path: Path) -> None:
    cost = OnlineCost((2, 4), max_rows=48)
    machine = Machine(Clock(STEEP))
    machine.run(cost, 300)
    cost.to_json(tmp_path / "cost.json")
    read = OnlineCost.from_json(tmp_path / "cost.json")
    assert (read.top_ks, read.max_rows, read.cycles) == ((2, 4), 48, 300)
    assert read.table() == cost.table()
    old, new = cost._native.belief()[1], read._native.belief()[1]
    least = np.full(len(old), 0.15)
    knots = cost._native.knots()
    # Three quarters of the beginning's random walk.
    least[: len(knots)] = np.maximum(0.15, 0.75 * 0.35 * np.sqrt(np.log(knots)))
    np.testing.assert_allclose(new[1:], np.maximum(old, least)[1:], rtol=1e-9)
    # Another speed is learned within few cycles.
    machine.run(read, 20, factor=3.0)
    assert read.speed / cost.speed == pytest.approx(3, rel=0.15)


def test_a_table_fills_it_at_once() -> None:
    cost = OnlineCost((2, 4), max_rows=64)
    unknown = cost.table().draft_passes(2)
    cost.fill(STEEP)
    found = cost.table()
    for rows in (1, 2, 4, 8, 16, 32):
        assert found.verify_seconds(rows, 0) == pytest.approx(STEEP.verify_seconds(rows, 0))
    assert found.draft_passes(4)[:2] == pytest.approx(STEEP.draft_passes(4)[:2])
    # What the table lacks keeps its ratio to the speed.
    assert found.draft_passes(2)[0] / found.verify_seconds(1, 0) == pytest.approx(unknown[0])


def test_cycles_without_times_or_with_more_rows_teach_nothing() -> None:
    cost = OnlineCost(max_rows=8)
    cost.observe(result_of(2, 0, 0.0, 0.0))
    cost.observe(result_of(9, 0, 0.01, 0.0))
    assert cost.cycles == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_ks": ()}, "top_ks must ascend from at least 1, got \\[\\]"),
        ({"top_ks": (4, 2)}, "top_ks must ascend"),
        ({"top_ks": (0, 2)}, "top_ks must ascend"),
        ({"max_rows": 0}, "max_rows must be in 1"),
    ],
)
def test_wrong_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineCost(**arguments)


def test_an_unknown_width_is_refused_before_anything_changes() -> None:
    cost = OnlineCost((4,))
    with pytest.raises(ValueError, match="top_k must be one of \\[4\\], got 2"):
        cost.observe(result_of(3, 1, 0.01, 0.001, width=2))
    assert cost.cycles == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", []),
        ("mean", [1e400]),
        ("spread", [0.0]),
        ("top_ks", [4, 4]),
        ("cycles", -1),
        ("cycles", 1 << 62),
        ("max_rows", 1 << 40),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "cost.json"
    OnlineCost().to_json(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}).replace("Infinity", "1e400"))
    with pytest.raises(ValueError, match=r"cost\.json"):
        OnlineCost.from_json(path)


@pytest.mark.parametrize("stalled", [(10, 10), (10, 1), (300, 300)])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.machine)
def test_a_stall_in_the_first_cycle_is_not_taken_for_the_speed(
    table: CostTable, stalled: tuple[int, int]
) -> None:
    verify, draft = table.verify_seconds(8, 100), table.draft_seconds(1, 4, 100)
    found, expected = OnlineCost(max_rows=32), OnlineCost(max_rows=32)
    found.observe(result_of(8, 1, stalled[0] * verify, stalled[1] * draft))
    for cost in [found, expected] * 10:
        cost.observe(result_of(8, 1, verify, draft))
    np.testing.assert_array_equal(found._native.belief(), expected._native.belief())
