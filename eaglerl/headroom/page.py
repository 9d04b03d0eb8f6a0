"""The page of a study of headroom, from the blocks of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eaglerl.evaluation.report.blocks import Block, Chapter, Headline, Paragraph, Section, Table
from eaglerl.evaluation.report.trace_plots import speeds
from eaglerl.evaluation.report.words import NOTHING, number, share, verdict, with_interval
from eaglerl.evaluation.report.writing import write_page
from eaglerl.files import exclusive_file
from eaglerl.headroom.result import Headroom


def write_headroom(studies: Sequence[Headroom], output: str | Path) -> Path:
    """Write studies as one self-contained HTML file.

    Args:
        studies: at least one, each of another batch.
        output: the file.

    Raises:
        AlreadyLockedError: another process is writing this page.
        ValueError: there is no folder for the file.
    """
    output = Path(output)
    if not output.parent.is_dir():
        raise ValueError(f"output must lie in an existing folder, got {str(output)!r}")
    chapters = [headroom_chapter(study) for study in studies]
    with exclusive_file(output):
        return write_page(output, "What adapting would be worth", chapters)[0]


def headroom_chapter(study: Headroom) -> Chapter:
    """Make the chapter of a study."""
    anchor = f"headroom-{study.batch}"
    facts = [
        ("requests", f"{len(study.tokens):,}, {study.tokens.sum():,.0f} tokens"),
        ("from", study.source),
        ("costs", study.costs),
        ("requests in a step", str(study.batch)),
    ]
    tone = verdict(study.gain(study.policy, study.tuned))
    blocks: list[Block] = [
        speeds(
            f"{anchor}-speeds",
            [(way.name, study.speed(way).ratio, way.kind) for way in study.ways],
        ),
        _table(study),
        *(Paragraph(f"{note}.", "note") for note in study.notes),
    ]
    sections = [Section(f"{anchor}-ways", "What decides, and how fast that is", blocks)]
    if len(study.constants) > 1:
        section = Section(f"{anchor}-constants", "The constants", [_constants(study)])
        sections.append(section)
    return Chapter(
        anchor, _title(study), facts=facts, headlines=[Headline(study.verdict, tone)],
        sections=sections,
    )  # fmt: skip


def _title(study: Headroom) -> str:
    return f"{study.batch} requests at once" if study.batch > 1 else "One request at a time"


def _table(study: Headroom) -> Table:
    rows = []
    for way in study.ways:
        captured = study.captured(way) if way.kind == "policy" else None
        rows.append(
            [
                way.name,
                number(study.speed(way).ratio),
                NOTHING if way is study.tuned else with_interval(study.gain(way, study.tuned)),
                NOTHING if way is study.best else with_interval(study.gain(way, study.best)),
                NOTHING if captured is None else share(captured),
            ]
        )
    return Table(
        "By the costs that were given",
        (
            "what decides", "tokens/s", "over the best constant of other requests",
            "over the best constant in hindsight", "share of the oracle's gain",
        ),
        rows,
        "In brackets: 95 % intervals over requests. The best constant in hindsight was chosen on "
        "these very requests, so it is a little too good, and what is compared with it a little "
        "too bad.",
    )  # fmt: skip


def _constants(study: Headroom) -> Table:
    best = min(study.constants, key=lambda way: float(way.seconds.sum()))
    ranked = sorted(study.constants, key=lambda way: float(way.seconds.sum()))
    return Table(
        f"The fastest of {len(study.constants)} constants",
        ("constant", "tokens/s", f"over {best.name}"),
        [
            [way.name, number(study.speed(way).ratio), with_interval(study.gain(way, best))]
            for way in ranked[:20]
        ],
    )
