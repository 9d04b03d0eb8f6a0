"""Parts of the report against calculations by hand, plain loops, and the model itself."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import eaglerl.evaluation.report as report
from eaglerl.eagle3.policy import ConstantPolicy, TreeParams
from eaglerl.evaluation.report.blocks import Paragraph
from eaglerl.evaluation.report.calibration import BINS, Bin, bin_outcomes, calibration_error
from eaglerl.evaluation.report.evidence import Evidence
from eaglerl.evaluation.report.figures import embeddable
from eaglerl.evaluation.report.multiple_tests import holm, log_ratios, paired_tests, signed_rank
from eaglerl.evaluation.report.policy_plots import size_bins
from eaglerl.evaluation.report.predictions import PredictingPolicy, predict_on_traces
from eaglerl.evaluation.report.speed_plots import Point, pareto_front
from eaglerl.evaluation.report.trace_sections import bounds_chapter
from eaglerl.evaluation.report.trace_study import (
    CachedDecisions,
    TraceStudy,
    tuned_seconds,
    wider_oracle,
)
from eaglerl.evaluation.report.words import verdict, with_interval
from eaglerl.fingerprints import split_of
from eaglerl.ratio_intervals import Interval
from eaglerl.traces.oracle import TraceTable, bounds, constant_seconds, oracle_actions
from eaglerl.traces.simulation import simulate, total

from ...traces.test_oracle import ACTIONS, COST
from ...traces.tiny import made_up_trace, with_repetitive_text
from ..made_up import made_up_record, write_comparison


def test_holm_by_hand() -> None:
    # Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, and none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_signed_ranks_by_enumeration() -> None:
    differences = np.array([0.9, -0.1, 0.5, 0.3, -0.2, 0.8, 0.7])
    ranks = np.argsort(np.argsort(abs(differences))) + 1
    found = ranks[differences > 0].sum()
    middle = ranks.sum() / 2
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))]
    expected = np.mean([abs(value - middle) >= abs(found - middle) for value in sums])
    assert signed_rank(differences) == pytest.approx(expected)
    assert signed_rank(np.zeros(4)) == 1.0


def test_paired_tests_pair_by_question() -> None:
    by_mode = {
        mode: [
            made_up_record(mode, "a", number, repeat, slowness + step * number)
            for number in range(6)
            for repeat in range(2)
        ]
        for mode, slowness, step in (("tuned", 1, 0), ("twice", 0.5, 0.01), ("same", 1, 0))
    }
    assert log_ratios(by_mode["twice"], by_mode["tuned"]) == pytest.approx(
        [-math.log(0.5 + 0.01 * number) for number in range(6)]
    )
    found = paired_tests(by_mode, "tuned", ["tuned", "twice", "same"])
    assert found.keys() == {"twice", "same"}
    # Six questions, all on one side: 2 of 2**6 signs are as extreme.
    assert found["twice"].p_value == pytest.approx(2 / 2**6)
    assert found["twice"].corrected == pytest.approx(4 / 2**6)
    assert found["same"].corrected == 1.0


def test_verdicts() -> None:
    assert verdict(Interval(1.1, 1.01, 1.2, 20)) == "won"
    assert verdict(Interval(0.9, 0.8, 0.99, 20)) == "lost"
    assert verdict(Interval(1.1, 0.99, 1.2, 20)) == "even"
    # One question has an interval of no width, which says nothing.
    assert verdict(Interval(1.1, 1.1, 1.1, 1)) == "even"
    assert with_interval(Interval(1.123, 0.98, 1.2, 20)) == "+12.3 % [\N{MINUS SIGN}2.0, +20.0]"


def test_a_failed_reference_is_none(tmp_path: Path) -> None:
    modes = {
        label: (label, lambda n, s=slowness: s) for label, slowness in (("plain", 2), ("tuned", 1))
    }
    write_comparison(tmp_path / "whole", modes, domains=("a",))
    assert Evidence.read(tmp_path / "whole").reference == "tuned"
    write_comparison(tmp_path / "broken", modes, domains=("a",), broken="tuned")
    evidence = Evidence.read(tmp_path / "broken")
    assert evidence.reference == "plain"
    assert [mode.mode for mode in evidence.failed] == ["tuned"]


def test_pareto_front_by_every_pair() -> None:
    draw = np.random.default_rng(0)
    points = [Point(str(i), *draw.integers(1, 6, 2).tolist(), "tree") for i in range(30)]
    front = pareto_front(points)
    for point in points:
        beaten = any(
            (o.milliseconds < point.milliseconds and o.acceptance >= point.acceptance)
            or (o.milliseconds <= point.milliseconds and o.acceptance > point.acceptance)
            for o in points
        )
        assert (point in front) != beaten


@pytest.mark.parametrize("largest", [3, 60])
def test_every_size_is_in_one_bin(largest: int) -> None:
    sizes = np.random.default_rng(0).integers(1, largest, 500)
    bins = size_bins(sizes)
    assert len(bins) <= 12
    for size in np.unique(sizes):
        assert sum(low <= size <= high for low, high in bins) == 1


def test_calibration_error_by_hand() -> None:
    bins = [Bin(30, 0.2, 0.3), Bin(0, math.nan, math.nan), Bin(10, 0.9, 0.7)]
    assert calibration_error(bins) == pytest.approx((30 * 0.1 + 10 * 0.2) / 40)
    chances = np.array([0.31, 0.39, 1.0, 0.95, 0.0])
    found = bin_outcomes(chances, np.array([True, False, True, True, False]))
    assert len(found) == BINS
    assert [one.count for one in found] == [1, 0, 0, 2, 0, 0, 0, 0, 0, 2]
    assert (found[3].predicted, found[3].found) == pytest.approx((0.35, 0.5))
    assert (found[9].predicted, found[9].found) == pytest.approx((0.975, 1.0))


def test_captured_share_by_hand() -> None:
    traces = [made_up_trace(12, seed=seed) for seed in range(2)]
    found = bounds(traces, ACTIONS, COST)
    # Of the way from a speed of 3/24 to one of 6/24, 4/24 is a third.
    study = TraceStudy(2, found, ACTIONS[0], 8.0, 4.0)
    assert study.captured(6.0, 4.0) == pytest.approx(1 / 3)
    assert study.captured(8.0, 4.0) == pytest.approx(0.0)
    assert TraceStudy(2, found, ACTIONS[0], None, 4.0).captured(6.0, 4.0) is None


def test_constants_are_tuned_on_the_other_half() -> None:
    # The last bit of the prompt's hash, here the seed, tells the half.
    traces = [made_up_trace(20, seed=seed) for seed in range(4)]
    expected = 0.0
    for half, other in ((traces[::2], traces[1::2]), (traces[1::2], traces[::2])):
        times = [total(simulate(tree, other, COST)).seconds for tree in ACTIONS]
        best = ACTIONS[int(np.argmin(times))]
        expected += total(simulate(best, half, COST)).seconds
    given = {"train": ACTIONS[1], "test": ACTIONS[2]}
    for chosen in ({}, given):
        assert tuned_seconds(traces, ACTIONS, COST, chosen) == pytest.approx(expected)
    assert tuned_seconds(traces[::2], ACTIONS, COST, {}) is None


def test_a_comparisons_constant_takes_the_place_of_the_other_half() -> None:
    traces = [made_up_trace(20, seed=seed) for seed in range(4)][::2]
    split = split_of(traces[0].prompt_id)
    (other,) = {"train", "test"} - {split}
    for tree in ACTIONS:
        expected = total(simulate(tree, traces, COST)).seconds
        assert tuned_seconds(traces, ACTIONS, COST, {split: tree}) == pytest.approx(expected)
        assert tuned_seconds(traces, ACTIONS, COST, {other: tree}) is None
    for unknown in (TreeParams(3, 1, 7), TreeParams(4000, 4, 40)):
        assert tuned_seconds(traces, ACTIONS, COST, {split: unknown}) is None


def test_the_wider_oracle_has_more_to_choose_from() -> None:
    trace = made_up_trace(40, seed=3)
    table = TraceTable.of(trace, ACTIONS, COST)
    trees_only = float(oracle_actions(table)[0][0])
    wider = wider_oracle(trace, ACTIONS, COST)
    assert wider <= trees_only <= constant_seconds(table).min()
    # Chains that never come true are never worth their rows.
    useless = made_up_trace(40, seed=3)
    useless.lookup_accepted[:] = 0
    assert wider_oracle(useless, ACTIONS, COST) == pytest.approx(trees_only)


def test_a_cached_decision_serves_its_interval() -> None:
    class Counting(ConstantPolicy):
        asked = 0

        def choose(self, state):
            Counting.asked += 1
            return super().choose(state)

    traces = [made_up_trace(23, seed=seed) for seed in range(3)]
    for interval in (1, 4, 100):
        Counting.asked = 0
        cached = CachedDecisions(Counting(TreeParams(2, 0, 1)), interval)
        outcomes = simulate(cached, traces, COST)
        # Every trace begins anew.
        expected = sum(math.ceil(outcome.cycles / interval) for outcome in outcomes)
        assert cached.decisions == Counting.asked == expected
    # No features resemble others that much: it decides at every cycle.
    cached = CachedDecisions(Counting(TreeParams(2, 0, 1)), 100, threshold=1.0 + 1e-6)
    assert total(simulate(cached, traces, COST)).cycles == cached.decisions
    # All are similar enough: as with a fixed interval.
    cached = CachedDecisions(Counting(TreeParams(2, 0, 1)), 100, threshold=-1.0)
    simulate(cached, traces, COST)
    assert cached.decisions == len(traces)


def test_predictions_are_of_what_was_verified() -> None:
    traces = [with_repetitive_text(made_up_trace(80, seed=seed), seed=seed) for seed in range(6)]
    policy = PredictingPolicy(limit=TreeParams(11, 2, 2), lookup_tokens=12)
    seconds = total(simulate(policy, traces, COST)).seconds
    drafted = len(policy.expected)
    assert drafted == len(policy.found) > 50
    assert sum(policy.expected) == pytest.approx(drafted + sum(policy.chances))
    # All that is emitted but the bonus token was a candidate.
    assert sum(policy.found) == drafted + sum(policy.accepted)
    assert 0 < sum(policy.from_lookup) < len(policy.chances)
    found, prediction = predict_on_traces(traces, COST, lookups=True)
    assert found == seconds
    assert prediction.expected.tolist() == policy.expected
    counts = {name: sum(one.count for one in bins) for name, bins in prediction.tables.items()}
    of_lookup = sum(policy.from_lookup)
    assert counts == {"of the draft": len(policy.chances) - of_lookup, "looked up": of_lookup}
    _, trees_only = predict_on_traces(traces, COST, lookups=False)
    assert list(trees_only.tables) == ["of the draft"]


def test_predictions_come_true_once_they_are_learned() -> None:
    # The true path of a made-up trace is drawn whatever the scores say.
    traces = [made_up_trace(80, seed=seed) for seed in range(30)]
    policy = PredictingPolicy(limit=TreeParams(11, 2, 2), lookup_tokens=0)
    simulate(policy, traces, COST)
    later = slice(len(policy.chances) // 3, None)
    chances, accepted = np.array(policy.chances[later]), np.array(policy.accepted[later])
    # Within 4 standard deviations of what chance makes of them.
    deviation = np.sqrt((chances * (1 - chances)).sum())
    assert abs(chances.sum() - accepted.sum()) < 4 * deviation


def test_what_is_missing_is_named() -> None:
    chapter = bounds_chapter(None)
    for section in chapter.sections:
        texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
        assert any("not measured" in text for text in texts), section.title
    assert chapter.pictures == []


def test_a_drawing_is_taken_into_the_page() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg SYSTEM "http://a"><svg xmlns="http://b" width="72pt" '
        'viewBox="0 0 1 1"><metadata>http://c</metadata><g id="x" style="fill: #20242b"/>'
        '<use xlink:href="#x" clip-path="url(#y)"/></svg>'
    )
    found = embeddable(svg, "name")
    assert found.startswith("<svg viewBox")
    assert "http" not in found
    for part in ('id="name-x"', 'href="#name-x"', "url(#name-y)", "fill: currentColor"):
        assert part in found


@pytest.mark.parametrize("missing", ["statsmodels.stats", "jinja2"])
def test_a_missing_library_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(report.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"eaglerl\[report\]"):
        report.__getattr__("write_report")
