"""The chapter on bounds, cached decisions and calibration."""

from __future__ import annotations

from collections.abc import Sequence

from eaglerl.evaluation.report.blocks import Block, Chapter, Paragraph, Section, Table, not_measured
from eaglerl.evaluation.report.calibration import calibration_error
from eaglerl.evaluation.report.policy_plots import expected_and_found
from eaglerl.evaluation.report.predictions import Prediction
from eaglerl.evaluation.report.trace_plots import interval_sweep, reliability, speeds
from eaglerl.evaluation.report.trace_study import (
    ADAPTIVE_LIMIT,
    ADAPTIVE_THRESHOLD,
    PolicyStudy,
    TraceStudy,
)
from eaglerl.evaluation.report.words import NOTHING, number, percent, share

_HOW = "Give traces and a cost table with --traces and --cost."
_NO_PREDICTION = (
    "None of the policies predicts acceptance: only auto and auto-trees do, if they draft."
)


def bounds_chapter(study: TraceStudy | None) -> Chapter:
    """Make the chapter from traces; it says what was not measured.

    Args:
        study: study of the traces; None without traces.
    """
    return Chapter(
        "bounds",
        "Bounds, cache and calibration",
        sections=(
            Section("bounds-headroom", "Headroom and captured share", _headroom(study)),
            Section("bounds-cache", "How long a decision may be kept", _cache(study)),
            Section("bounds-expected", "Acceptance expected and found", _expected(study)),
            Section("bounds-calibration", "Calibration", _calibration(study)),
        ),
    )


def _headroom(study: TraceStudy | None) -> list[Block]:
    if study is None:
        return [not_measured("Headroom H and captured share C", _HOW)]
    bounds = study.bounds
    tokens = bounds.tokens
    rows: list[tuple[str, float, str]] = [("plain decoding", bounds.plain, "constant")]
    if study.tuned is not None:
        rows.append(("tuned constant (on the other half)", study.tuned, "constant"))
    rows.append((f"best constant in hindsight, {study.tree}", bounds.constant, "constant"))
    rows += [
        (policy.label, policy.seconds, "policy")
        for policy in study.policies
        if policy.seconds is not None
    ]
    rows += [
        ("best constant of every set", bounds.per_domain, "bound"),
        ("best constant of every prompt", bounds.per_prompt, "bound"),
        ("oracle that looks one cycle ahead", bounds.myopic, "bound"),
        ("oracle of trees", bounds.oracle, "bound"),
        ("oracle of trees and prompt lookup", study.wider, "bound"),
    ]
    blocks: list[Block] = [
        Paragraph(
            f"Headroom H: an oracle that knows what will be accepted gives "
            f"{percent(1 + bounds.headroom)} tokens per second over the best constant tree in "
            f"hindsight, on {study.prompts} traces with {tokens:,} tokens; "
            f"{percent(bounds.constant / study.wider)} where it may also verify looked-up "
            f"tokens. {_judgement(bounds.headroom)}"
        ),
        speeds("bounds-speeds", [(label, tokens / seconds, kind) for label, seconds, kind in rows]),
        _bounds_table(study, rows),
        *_problems(study.policies),
    ]
    if study.tuned is None:
        blocks.append(
            not_measured(
                "The captured share C",
                "It needs a constant tree tuned on other prompts: these are all of one split, and "
                "no comparison has tuned a tree for them that the traces cover.",
            )
        )
    return blocks


def _judgement(headroom: float) -> str:
    if headroom < 0.03:
        return "With less than 3 %, a policy over trees is not worth having."
    return "No policy that chooses among the same trees can be faster."


def _bounds_table(study: TraceStudy, rows: Sequence[tuple[str, float, str]]) -> Table:
    tokens, oracle, wider = study.bounds.tokens, study.bounds.oracle, study.wider

    def captured(seconds: float, bound: float, kind: str) -> str:
        value = study.captured(seconds, bound) if kind == "policy" else None
        return NOTHING if value is None else share(value)

    return Table(
        "On the traces, by the cost table",
        (
            "what decides", "tokens/s", "over the best constant", "C of trees",
            "C of trees and prompt lookup", "regret, µs per token",
        ),
        [
            [
                label,
                number(tokens / seconds),
                percent(study.bounds.constant / seconds),
                captured(seconds, oracle, kind),
                captured(seconds, wider, kind),
                number(1e6 * (seconds - wider) / tokens, 0),
            ]
            for label, seconds, kind in rows
        ],
        "C is the share of an oracle's gain over the tuned constant that a policy captures; one "
        "with prompt lookup may exceed the oracle of trees. Regret is against the oracle of trees "
        "and prompt lookup. All by the same cost table, without the policies' own time"
        + (f" (measured on: {study.machine})." if study.machine else ".")
        + " Trained policies should not have been trained on the prompts of the traces; auto "
        "begins with nothing and learns on them, one prompt after another.",
    )  # fmt: skip


def _problems(policies: Sequence[PolicyStudy]) -> list[Block]:
    return [
        not_measured(f"{policy.label} on the traces", f"{policy.problem}.")
        for policy in policies
        if policy.problem
    ]


def _cache(study: TraceStudy | None) -> list[Block]:
    if study is None:
        return [not_measured("The sweep of cache intervals", _HOW)]
    sweeps = {policy.label: policy.sweep for policy in study.policies if policy.sweep}
    if not sweeps:
        return [
            not_measured(
                "The sweep of cache intervals", "None of the policies has an action cache."
            )
        ]
    names = [run.name for run in next(iter(sweeps.values()))]
    table = Table(
        "Tokens per second by the cycles that a decision serves",
        ("policy", *names),
        [
            [label, *(number(run.tokens_per_second, 2) for run in runs)]
            for label, runs in sweeps.items()
        ],
        f"adaptive: a decision serves up to {ADAPTIVE_LIMIT} cycles, as long as the cosine "
        f"similarity of the features to those of the decision is at least {ADAPTIVE_THRESHOLD}.",
    )
    return [interval_sweep("bounds-intervals", sweeps), table]


def _expected(study: TraceStudy | None) -> list[Block]:
    if study is None:
        return [not_measured("Acceptance expected and found on traces", _HOW)]
    known = _predictions(study)
    if not known:
        return [not_measured("Acceptance expected and found on the traces", _NO_PREDICTION)]
    return [
        expected_and_found(
            f"bounds-expected-{index + 1}", prediction.expected, prediction.found, label
        )
        for index, (label, prediction) in enumerate(known)
    ]


def _predictions(study: TraceStudy) -> list[tuple[str, Prediction]]:
    return [(policy.label, policy.prediction) for policy in study.policies if policy.prediction]


def _calibration(study: TraceStudy | None) -> list[Block]:
    if study is None:
        return [not_measured("Calibration", _HOW)]
    blocks: list[Block] = []
    for index, (label, prediction) in enumerate(_predictions(study)):
        tables = prediction.tables
        blocks.append(reliability(f"bounds-calibration-{index + 1}", tables, label))
        rows = [
            [name, f"{sum(one.count for one in bins):,}", number(calibration_error(bins), 4)]
            for name, bins in tables.items()
        ]
        columns = ("candidates", "verified", "expected calibration error")
        blocks.append(Table(f"Calibration of {label}", columns, rows))
    return blocks or [not_measured("Calibration", _NO_PREDICTION)]
