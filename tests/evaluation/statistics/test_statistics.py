"""Figures of comparisons against hand-made records and a plain loop."""

import numpy as np
import pytest

from eaglerl.evaluation.results.records import Comparison, Cycles, Manifest, Mode, Record, Turn
from eaglerl.evaluation.statistics.paired_speeds import paired_ratio
from eaglerl.evaluation.statistics.summary import loops, summarise, uncut_actions


def made_cycles(tokens, rows, seconds: float, policy: float | None = 0.0) -> Cycles:
    count = len(tokens)
    return Cycles(
        tokens=tuple(tokens),
        total_tokens=tuple(rows),
        depth=(1,) * count,
        top_k=(2,) * count,
        rows=tuple(rows),
        lookup_tokens=(0,) * count,
        lookup_accepted=(0,) * count,
        draft_seconds=(seconds / 4,) * count,
        verify_seconds=(seconds,) * count,
        policy_seconds=None if policy is None else (policy,) * count,
    )


def made_record(
    mode: str, question: str = "a/1", repeat: int = 0, *, seconds: float = 1.0, ids=range(9), **more
) -> Record:
    """Nine tokens: the prefill's and those of cycles with 2, 3, 3, over `seconds` of decoding."""
    policy = more.pop("policy", 0.0)
    cycles = made_cycles((2, 3, 3), (4, 4, 6), seconds / 3, policy)
    turn = Turn(5, tuple(ids), "length", 0.5, seconds, cycles)
    domain = question.partition("/")[0]
    return Record(question, domain, domain, repeat, mode, 0, 0, 0.0, 1.5, (turn,), **more)


def made_comparison(records: list[Record]) -> Comparison:
    labels = dict.fromkeys(record.mode for record in records)
    configuration = {
        "max_new_tokens": 100,
        "temperature": 0.0,
        "repeats": len({record.repeat for record in records}),
    }
    questions = tuple({"id": name} for name in dict.fromkeys(r.question for r in records))
    modes = {label: Mode(label, label) for label in labels}
    manifest = Manifest(configuration, questions, "t", "h", "machine", {}, modes)
    return Comparison(manifest, tuple(records))


def test_figures_by_hand() -> None:
    records = [
        made_record("plain", seconds=4.0),
        made_record("tuned", seconds=2.0, policy=0.1, cache_hits=2, cache_misses=1, host_syncs=3),
    ]
    plain, tuned = summarise(made_comparison(records)).modes
    assert tuned.tokens_per_second == pytest.approx(8 / 2)
    assert tuned.all_in_tokens_per_second == pytest.approx(9 / 2.5)
    assert tuned.acceptance_length == pytest.approx(8 / 3)
    # Cycles of (1/4 + 1) * 2/3 + 0.1 seconds, for 2 tokens once and 3 tokens twice.
    cycle = 1.25 * 2 / 3 + 0.1
    assert tuned.token_milliseconds_p50 == pytest.approx(1e3 * cycle / 3)
    assert tuned.token_milliseconds_p99 == pytest.approx(1e3 * cycle / 2)
    assert tuned.policy_share == pytest.approx(0.3 / 2)
    assert tuned.hit_rate == pytest.approx(2 / 3)
    assert tuned.distinct_actions == 2
    assert tuned.switches == pytest.approx(50.0)
    # 11 drafted rows, of which 5 were accepted.
    assert tuned.wasted_drafts == pytest.approx(6 / 11)
    assert tuned.host_syncs == pytest.approx(1.0)
    assert tuned.ratios["plain"].ratio == pytest.approx(2.0)
    assert plain.hit_rate is None
    assert plain.host_syncs is None
    unknown = made_comparison([made_record("plain", policy=None)])
    assert summarise(unknown).modes[0].policy_share is None


def test_another_output_fails_a_mode() -> None:
    records = [
        made_record("plain"),
        made_record("plain", "a/2"),
        made_record("wrong", seconds=0.1),
        made_record("wrong", "a/2", ids=[0, 1, 2, 3, 4, 5, 6, 7, 9]),
    ]
    summary = summarise(made_comparison(records))
    assert {mode.mode: (mode.identical, mode.compared) for mode in summary.modes} == {
        "plain": (2, 2),
        "wrong": (1, 2),
    }
    assert summary.to_dict()["failed"] == ["wrong"]


@pytest.mark.parametrize(
    ("output", "looping"),
    [
        (list(range(100)), False),
        ([7] * 48, True),
        ([7] * 47, False),
        (list(range(24)) * 2, True),
        (list(range(25)) * 3, False),
        ([1, 2, 3] * 16 + [4], False),
        ([9] * 50 + list(range(24)) * 2, True),
    ],
)
def test_loops(output: list[int], looping: bool) -> None:
    assert loops(output) is looping


def test_looping_questions_are_told_apart() -> None:
    loop = [5] * 60
    records = [
        made_record("plain", "a/1", seconds=1.0),
        made_record("plain", "b/1", seconds=1.0, ids=loop),
        made_record("other", "a/1", seconds=1.0),
        made_record("other", "b/1", seconds=0.1, ids=loop),
    ]
    summary = summarise(made_comparison(records))
    assert summary.looping == ("b/1",)
    assert summary.modes[1].ratios["plain"].ratio > 1.5
    assert summary.without_looping[1].ratios["plain"].ratio == pytest.approx(1.0)
    assert summary.by_domain["a"]["other"].ratio == pytest.approx(1.0)
    assert summary.by_domain["b"]["other"].ratio == pytest.approx(10.0)


def test_repeats_are_summed_where_both_have_them() -> None:
    mine = [made_record("m", "a/1", 0, seconds=1.0), made_record("m", "a/1", 1, seconds=3.0)]
    others = [made_record("o", "a/1", repeat, seconds=2.0) for repeat in range(3)]
    found = paired_ratio(mine, others)
    assert found.questions == 1
    assert found.ratio == pytest.approx((16 / 4) / (16 / 4))
    assert np.isnan([found.low, found.high]).all(), "one question bounds nothing"
    assert paired_ratio(mine, [made_record("o", "a/2")]) is None


def test_the_arguments_of_the_bootstrap_warn() -> None:
    with pytest.warns(DeprecationWarning, match="resamples and seed of summarise are deprecated"):
        summarise(made_comparison([made_record("plain")]), resamples=10, seed=1)


def test_what_the_end_cuts_is_no_action_of_the_policy() -> None:
    cycles = made_cycles((2, 2, 2, 1), (4, 4, 4, 3), 1.0)
    turn = Turn(5, tuple(range(8)), "length", 0.1, 1.0, cycles)
    # Of 8 tokens 7 are left before the first cycle, then 5, 3 and 1; depth 1 reaches 2 levels,
    # which the third cycle and the last may have been cut to.
    assert uncut_actions(turn, 8) == [(4, 1, 2, 0)] * 2
    assert len(uncut_actions(turn, 100)) == 4
    with pytest.raises(ValueError, match="references must be among"):
        summarise(made_comparison([made_record("plain")]), ["tuned"])
