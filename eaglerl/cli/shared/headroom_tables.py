"""Studies of headroom as tables for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eaglerl.cli.shared.comparison_table import apart, new_table

if TYPE_CHECKING:
    from eaglerl.headroom.result import Headroom
    from eaglerl.ratio_intervals import Interval

_NAME_WIDTH = 30


def headroom_tables(studies: Sequence[Headroom]) -> RenderableType:
    """Return the tables of studies, with verdicts and notes.

    Args:
        studies: at least one, each of another batch.
    """
    parts: list[RenderableType] = []
    for study in studies:
        parts += [_ways(study), *_words(study)]
    if len(studies) > 1:
        schedule = ", ".join(f"{study.batch}: {study.best_name}" for study in studies)
        parts.append(Text(f"The best constant by requests in a step: {schedule}."))
    return Group(*apart(parts))


def _ways(study: Headroom) -> Table:
    requests = "request" if study.batch == 1 else "requests"
    table = new_table(
        f"{len(study.tokens):,} requests with {study.tokens.sum():,.0f} tokens, {study.batch} "
        f"{requests} in a step"
    )
    table.columns[0].header = "what decides"
    table.columns[0].max_width = _NAME_WIDTH
    for name in ("tokens/s", "/ tuned constant", "/ best constant", "share"):
        table.add_column(name, justify="right")
    for way in study.ways:
        captured = study.captured(way) if way.kind == "policy" else None
        table.add_row(
            way.name,
            f"{study.speed(way).ratio:.1f}",
            "" if way is study.tuned else _interval(study.gain(way, study.tuned)),
            "" if way is study.best else _interval(study.gain(way, study.best)),
            "" if captured is None else f"{100 * captured:.0f} %",
        )
    table.caption = (
        "tuned constant: the best on other requests; share: of the oracle's gain; in brackets: "
        "95 % intervals over requests"
    )
    return table


def _words(study: Headroom) -> Iterator[Text]:
    yield Text()
    yield Text(study.verdict, style="bold")
    yield Text(f"Costs: {study.costs}.")
    for note in study.notes:
        yield Text(f"{note}.", style="dim")
    yield Text()


def _interval(interval: Interval) -> str:
    if not math.isfinite(interval.low):
        return f"{interval.ratio:.3f}"
    return f"{interval.ratio:.3f} [{interval.low:.2f}, {interval.high:.2f}]"
