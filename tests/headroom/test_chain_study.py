"""Predictions on drawn logs beside what is known in closed form."""

import dataclasses

import numpy as np
import pytest

from eaglerl.headroom.acceptance import SurvivalModel, hazards, seen_survival
from eaglerl.headroom.chain_study import ChainOptions, study_steps
from eaglerl.headroom.cost_curve import CostCurve
from eaglerl.headroom.result import Headroom, Way
from eaglerl.headroom.step_log import LookupLine, StepLine

from .logs import (
    COST,
    LEVELS,
    PASS,
    PLAIN,
    ROW,
    always,
    drawn_lines,
    either,
    length_of,
    speed_of,
    steps_of,
)


def rate(study: Headroom, way: Way) -> float:
    return study.speed(way).ratio


@pytest.mark.parametrize("probability", [0.3, 0.6, 0.9])
def test_chains_have_the_speeds_of_geometric_acceptance(probability: float) -> None:
    study = study_steps(steps_of(drawn_lines(always(probability), requests=60)), COST)
    for level, way in enumerate(study.constants):
        assert rate(study, way) == pytest.approx(speed_of(probability, level), rel=0.03)
    best = max(range(LEVELS + 1), key=lambda level: speed_of(probability, level))
    assert speed_of(probability, study.constants.index(_best(study))) == pytest.approx(
        speed_of(probability, best), rel=0.005
    )


def _best(study: Headroom) -> Way:
    return min(study.constants, key=lambda way: way.seconds.sum())


def test_the_oracle_verifies_what_will_be_accepted() -> None:
    study = study_steps(steps_of(drawn_lines(always(0.6), requests=60)), COST)
    length = length_of(0.6, LEVELS)
    speed = length / (PLAIN + (ROW + PASS) * (length - 1.0))
    assert rate(study, study.oracle) == pytest.approx(speed, rel=0.02)


def test_where_all_steps_are_alike_a_policy_gains_nothing() -> None:
    study = study_steps(steps_of(drawn_lines(always(0.6), requests=40)), COST)
    gain = study.gain(study.policy, study.best)
    assert 0.99 <= gain.ratio <= 1.001
    assert gain.low <= 1.0
    assert study.oracle.seconds.sum() < study.policy.seconds.sum()


def test_a_policy_that_is_told_which_steps_are_easy_reaches_the_best_of_both() -> None:
    study = study_steps(steps_of(drawn_lines(either(0.1, 0.9), requests=60)), COST)
    # The first drafted token tells an easy step, so one pass is all that a hard one costs.
    seconds = [PLAIN + PASS, PLAIN + (ROW + PASS) * LEVELS]
    length = 1.0 + length_of(0.9, LEVELS)
    told = length / sum(seconds)
    assert rate(study, study.policy) == pytest.approx(told, rel=0.03)
    assert study.gain(study.policy, study.tuned).low > 1.03
    assert study.verdict.startswith("Adapt: ")
    assert study.captured(study.policy) == pytest.approx(0.5, abs=0.45)


@pytest.mark.parametrize("batch", [1, 4, 32])
@pytest.mark.parametrize("draw", [always(0.5), either(0.2, 0.9)], ids=["alike", "either"])
def test_the_order_of_bounds_holds(draw, batch: int) -> None:
    study = study_steps(steps_of(drawn_lines(draw)), COST, ChainOptions(batch=batch))
    best, policy, oracle = study.best, study.policy, study.oracle
    assert oracle.seconds.sum() <= policy.seconds.sum() <= best.seconds.sum() / 0.97
    assert study.per_request.seconds.sum() <= best.seconds.sum() <= study.tuned.seconds.sum()
    assert (study.per_request.seconds <= best.seconds + 1e-12).all()


@pytest.mark.parametrize("batch", [1, 4])
def test_memory_that_was_not_written_is_not_read(monkeypatch, batch: int) -> None:
    def full_of_signals(shape, dtype=np.float64, **_) -> np.ndarray:
        """Allocate float64 whose use in any arithmetic is an invalid operation."""
        bits = np.full(shape, 0x7FF0000000000001, dtype=np.uint64)
        return bits.view(np.float64) if dtype == np.float64 else bits.astype(dtype)

    steps = steps_of(drawn_lines(always(0.5), requests=20))
    expected = study_steps(steps, COST, ChainOptions(batch=batch)).policy.seconds
    monkeypatch.setattr(np, "empty", full_of_signals)
    found = study_steps(steps, COST, ChainOptions(batch=batch)).policy.seconds
    np.testing.assert_array_equal(found, expected)


def test_a_cost_that_is_not_monotone_makes_the_best_chain_jump() -> None:
    # As in a mixture of experts: few rows need many experts, and rows up to a tile are then free.
    seconds = (0.030, 0.052, 0.060, 0.060, 0.048, 0.080)
    moe = CostCurve("experts", [(rows, 1, 0, s) for rows, s in enumerate(seconds, 1)])
    study = study_steps(steps_of(drawn_lines(always(0.7), requests=40)), moe)
    speeds = [length_of(0.7, level) / seconds[level] for level in range(LEVELS + 1)]
    found = [rate(study, way) for way in study.constants]
    assert found == pytest.approx(speeds, rel=0.03)
    assert study.best_name == "chain of 4"
    assert found[1] < found[0] < found[4]
    # The policy looks ahead over the levels that do not pay.
    assert study.gain(study.policy, study.best).ratio > 0.99


def test_requests_of_a_batch_share_their_step() -> None:
    study = study_steps(
        steps_of(drawn_lines(always(0.6), requests=40)), COST, ChainOptions(batch=8)
    )
    for level, way in enumerate(study.constants):
        seconds = PLAIN + ROW * (8 * (1 + level) - 1) + PASS * level
        assert rate(study, way) == pytest.approx(8 * length_of(0.6, level) / seconds, rel=0.03)


def test_rows_go_to_the_requests_that_will_use_them() -> None:
    lines = drawn_lines(either(0.1, 0.9), requests=40)
    study = study_steps(steps_of(lines), COST, ChainOptions(batch=16))
    assert study.gain(study.policy, study.tuned).low > 1.05


def _cut(lines: list[StepLine], at: int | None, seed: int = 0) -> list[StepLine]:
    """Verify fewer tokens: a random number, or `at` where the first token is doubtful.

    Where all of them are accepted, the target's own token tells of one more.
    """
    draw = np.random.default_rng(seed)
    cut: list[StepLine] = []
    position = 1
    for line in lines:
        if at is None:
            rows = 1 + int(draw.integers(LEVELS + 1))
        else:
            rows = 1 + (at if line.logprobs[0] < np.log(0.5) else LEVELS)
        changed = {"accepted": min(line.accepted, rows), "verified": rows, "position": position}
        cut.append(line.model_copy(update=changed))
        position += 1 + min(line.accepted, rows - 1)
    return cut


def test_what_chance_cut_short_is_estimated() -> None:
    lines = drawn_lines(always(0.7), requests=60)
    cut = steps_of(_cut(lines, None))
    assert cut.cut_short > 0.1
    assert hazards(cut, LEVELS) == pytest.approx([0.7] * LEVELS, abs=0.04)
    found = 1.0 + seen_survival(cut, LEVELS).sum(axis=1).mean()
    assert found == pytest.approx(length_of(0.7, LEVELS), rel=0.02)
    study = study_steps(cut, COST)
    assert any("Kaplan-Meier" in note for note in study.notes)
    for level, way in enumerate(study.constants):
        assert rate(study, way) == pytest.approx(speed_of(0.7, level), rel=0.04)


def test_where_doubtful_drafts_were_cut_the_truth_lies_between_the_bounds() -> None:
    lines = drawn_lines(either(0.3, 0.9), requests=60)
    whole, cut = (steps_of(each) for each in (lines, _cut(lines, 1)))
    truth = 1.0 + seen_survival(whole, LEVELS).sum(axis=1).mean()
    none, some, every = (
        1.0 + seen_survival(cut, LEVELS, beyond=beyond).sum(axis=1).mean()
        for beyond in ("none", "estimate", "all")
    )
    assert none < truth < some < every


def test_the_model_learns_what_the_draft_believes_wrongly() -> None:
    lines = drawn_lines(always(0.5), requests=80)
    sure = tuple([float(np.log(0.9))] * LEVELS)
    steps = steps_of([line.model_copy(update={"logprobs": sure}) for line in lines])
    every = np.ones(len(steps), dtype=bool)
    model = SurvivalModel.fit(steps, every, LEVELS)
    survival = model.survival(steps.log_probs, LEVELS)[0]
    assert survival[:3] == pytest.approx([0.5, 0.25, 0.125], abs=0.04)
    assert (np.diff(survival) <= 0).all()


def test_the_policy_is_scored_on_requests_that_it_was_not_fitted_on() -> None:
    # What a log-probability means differs from request to request: to have seen it would be worth
    # a lot, and it must be worth nothing.
    draw = np.random.default_rng(0)
    lines = []
    for number, line in enumerate(drawn_lines(always(0.5), requests=40)):
        if number % 60 == 0:
            mark = tuple((-draw.random(LEVELS)).tolist())
        lines.append(line.model_copy(update={"logprobs": mark}))
    study = study_steps(steps_of(lines), COST)
    assert study.gain(study.policy, study.tuned).ratio < 1.005


def test_looked_up_text_is_passed_over_once() -> None:
    # Every request copies 12 tokens, in which the logged chain of 2 made four steps.
    lines = []
    for request in range(20):
        position = 1
        for _ in range(10):
            for left in (12, 9, 6, 3):
                lookup = LookupLine(match=5, tokens=12, accepted=min(left, 12))
                lines.append(
                    StepLine(request=str(request), position=position, context=position,
                             logprobs=(-0.1, -0.1), accepted=2, lookup=lookup)
                )  # fmt: skip
                position += 3
            lines.append(
                StepLine(request=str(request), position=position, context=position,
                         logprobs=(-3.0, -3.0), accepted=0)
            )  # fmt: skip
            position += 1
    study = study_steps(steps_of(lines), COST, ChainOptions(levels=2))
    # 13 tokens a block: all looked up in one step of 13 rows, whose own token is the block's last.
    seconds = PLAIN + 12 * ROW
    assert rate(study, study.oracle) == pytest.approx(13 / seconds, rel=0.01)
    assert rate(study, study.others[0]) == pytest.approx(13 / seconds, rel=0.01)
    assert rate(study, study.oracles[0]) < rate(study, study.oracle)


def test_intervals_cover_the_truth() -> None:
    covered = []
    truth = np.mean([length_of(q, 2) for q in (0.3, 0.8)])
    for seed in range(150):
        lines = drawn_lines(either(0.3, 0.8), requests=20, steps=15, seed=seed, levels=2)
        study = study_steps(steps_of(lines), COST, ChainOptions(folds=2))
        found = study.gain(study.constants[2], study.constants[0])
        covered.append(found.low <= truth * PLAIN / (PLAIN + 2 * (ROW + PASS)) <= found.high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_studies_that_cannot_be_made_say_why() -> None:
    steps = steps_of(drawn_lines(always(0.5), requests=4, steps=5))
    with pytest.raises(ValueError, match="at most 5 tokens long"):
        study_steps(steps, COST, ChainOptions(levels=6))
    with pytest.raises(ValueError, match="at least 2 requests"):
        study_steps(steps_of(drawn_lines(always(0.5), requests=1)), COST)
    short = CostCurve("short", [(1, 1, 0, 0.03), (3, 1, 0, 0.04)])
    assert len(study_steps(steps, short).constants) == 3
    with pytest.raises(ValueError, match="must cover steps of 8 rows"):
        study_steps(steps, short, ChainOptions(batch=8))
    undrafted = dataclasses.replace(steps, judged=np.zeros_like(steps.judged))
    with pytest.raises(ValueError, match="a drafted token"):
        study_steps(undrafted, COST)
    for wrong in ({"batch": 0}, {"folds": 1}, {"levels": 0}):
        with pytest.raises(ValueError, match="at least"):
            ChainOptions(**wrong)


def test_the_figures_are_json_without_nan() -> None:
    import json

    study = study_steps(steps_of(drawn_lines(always(0.5), requests=6)), COST)
    content = json.loads(json.dumps(study.to_dict(), allow_nan=False))
    assert content["requests"] == 6
    assert content["ways"][0]["name"] == "plain decoding"
    assert {"tokens_per_second", "over_tuned_constant", "captured"} <= content["ways"][0].keys()
