"""The section on several questions at once."""

from __future__ import annotations

from collections.abc import Iterator

from eaglerl.evaluation.report.blocks import Cell, Section, Table
from eaglerl.evaluation.report.evidence import Evidence
from eaglerl.evaluation.report.words import NOTHING, number
from eaglerl.evaluation.statistics.many_at_once import (
    BATCHED_PLAIN,
    BEST_TREE,
    SERIAL,
    Throughput,
)


def many_at_once_sections(evidence: Evidence, anchor: str) -> Iterator[Section]:
    """Yield the section, if several questions were decoded at once.

    Args:
        evidence: the comparison.
        anchor: distinct within the report.
    """
    if not evidence.at_once:
        return
    speeds = Table(
        "Throughput",
        (
            "mode", "at once", "tokens/s", "with prompts", "over one after another",
            "over plain at once", "over the best tree at once", "answers at work", "output",
        ),
        [_speed_row(one) for one in evidence.at_once],
        "Tokens per second of all questions together, without the prompts and over the time on "
        "the clock. Ratios are those with the prompts; 95 % intervals over groups of questions. "
        "Answers at work: fewer at the end of a group.",
    )  # fmt: skip
    waits = Table(
        "Milliseconds of waiting",
        ("mode", "at once", "first token, p50", "p99", "between tokens, p50", "p99"),
        [_wait_row(one) for one in evidence.at_once if not one.failed],
        "From an answer's joining of the batch. Tokens that come together share their time.",
    )
    yield Section(f"{anchor}-at-once", "Many at once", [speeds, waits])


def _speed_row(one: Throughput) -> list[str | Cell]:
    told = [NOTHING] * 3
    for index, name in enumerate((SERIAL, BATCHED_PLAIN, BEST_TREE)):
        if name in one.ratios and not one.failed:
            whole = one.ratios[name].whole
            told[index] = f"{whole.ratio:.3f} [{whole.low:.3f}, {whole.high:.3f}]"
    speeds = [one.tokens_per_second, one.all_in_tokens_per_second]
    differ = one.compared - one.identical
    output: str | Cell = "identical" if one.compared else "not compared"
    if differ:
        output = Cell(f"differs in {differ} of {one.compared}", "failed")
    return [
        one.mode,
        str(one.concurrency),
        *(NOTHING if one.failed else number(speed, 1) for speed in speeds),
        *told,
        number(one.in_flight, 1),
        output,
    ]


def _wait_row(one: Throughput) -> list[str | Cell]:
    seconds = (
        one.first_token_p50,
        one.first_token_p99,
        one.between_tokens_p50,
        one.between_tokens_p99,
    )
    return [one.mode, str(one.concurrency), *(number(1e3 * value, 1) for value in seconds)]
