"""The figures of a comparison as tables for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eaglerl.evaluation.results.records import Manifest
    from eaglerl.evaluation.statistics.summary import Interval, ModeSummary, Summary

# What fits into 80 columns: a ratio with its interval takes 20, and 14 in two lines, by file.
_LABEL_WIDTH = 26
_REFERENCES, _DOMAINS = 2, 3

_T = TypeVar("_T")


def comparison_tables(manifest: Manifest, summary: Summary) -> RenderableType:
    """Return all tables and notes of a comparison.

    Args:
        manifest: of the comparison.
        summary: its figures.
    """
    configuration = manifest.configuration
    sampling = configuration["temperature"]
    title = (
        f"{len(manifest.questions)} questions ({configuration['split']}), "
        f"each decoded {configuration['repeats']} x, "
        f"{configuration['max_new_tokens']} new tokens, "
        + (f"temperature {sampling}" if sampling else "greedy")
    )
    parts: list[RenderableType] = [*_before_all(summary)]
    # A preliminary comparison has no ratios yet.
    references = () if summary.preliminary else summary.references
    parts += _speeds(title, summary.modes, references)
    if summary.looping and summary.without_looping:
        rest = len(manifest.questions) - len(summary.looping)
        parts += _speeds(
            f"The {rest} questions without the {len(summary.looping)} whose answer loops",
            summary.without_looping,
            references,
        )
    parts += [_times(summary.modes), _behaviour(summary.modes)]
    if references and len(summary.by_domain) > 1:
        parts += _domains(summary)
    notes = [Text(note) for note in _notes(manifest, summary)]
    return Group(*apart(parts), Text(), *notes)


def apart(parts: Iterable[RenderableType]) -> Iterator[RenderableType]:
    """Yield the parts, with an empty line before each table.

    Titles and captions become lines of their own: rich would wrap them at the table's width.
    """
    for number, part in enumerate(parts):
        if not isinstance(part, Table):
            yield part
            continue
        if number:
            yield Text()
        title, caption = part.title, part.caption
        part.title = part.caption = None
        yield Text(str(title), style="bold")
        yield part
        if caption is not None:
            yield Text(str(caption), style="dim")


def _before_all(summary: Summary) -> Iterator[Text]:
    """Yield the warnings that belong above all figures."""
    for sentence in summary.disturbed:
        yield Text(f"WORTHLESS as a measurement of speed: {sentence}.", style="bold red")
    if summary.preliminary:
        yield Text(f"NOT A RESULT YET: {summary.progress}. The same command continues.", "bold red")
    elif summary.progress:
        yield Text(f"PRELIMINARY: {summary.progress}. The same command continues.", style="yellow")


def _speeds(
    title: str, modes: Sequence[ModeSummary], references: Sequence[str]
) -> Iterator[RenderableType]:
    """Yield tables of the speeds, each with as many references as fit, and which outputs differ."""
    ranked = sorted(modes, key=lambda mode: (mode.failed, -mode.tokens_per_second))
    for some in batched(references, _REFERENCES) if references else [()]:
        table = new_table(title)
        for name in ("tokens/s", *(f"/ {name}" for name in some)):
            table.add_column(name, justify="right")
        for mode in ranked:
            cells = [
                f"{mode.tokens_per_second:.1f}",
                *(_interval(mode.ratios.get(name)) for name in some),
            ]
            # A mode with a wrong answer has no speed.
            style = "red" if mode.failed else None
            table.add_row(mode.mode, *(["failed"] if mode.failed else cells), style=style)
        yield table
    compared = [mode for mode in ranked if mode.compared]
    for mode in compared:
        if mode.failed:
            yield Text(f"{mode.mode}: {_identical(mode)}")
    counts = sorted({_identical(mode) for mode in compared if not mode.failed})
    if counts:
        yield Text(f"all others: {', '.join(counts)}" if len(counts) == 1 else "; ".join(counts))


def _identical(mode: ModeSummary) -> str:
    return f"{mode.identical} of {mode.compared} outputs identical to plain decoding"


def _times(modes: Sequence[ModeSummary]) -> Table:
    table = new_table("Tokens and times")
    for name in ("all-in", "length", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for mode in modes:
        if not mode.failed:
            table.add_row(
                mode.mode,
                f"{mode.all_in_tokens_per_second:.1f}",
                f"{mode.acceptance_length:.2f}",
                f"{mode.token_milliseconds_p50:.1f}",
                f"{mode.token_milliseconds_p99:.1f}",
            )
    table.caption = (
        "all-in: tokens/s with the prefills; length: mean acceptance length; ms: per token"
    )
    return table


def _behaviour(modes: Sequence[ModeSummary]) -> Table:
    table = new_table("What the modes did")
    for name in ("policy", "hit rate", "actions", "switches", "wasted", "syncs"):
        table.add_column(name, justify="right")
    for mode in modes:
        table.add_row(
            mode.mode,
            _percent(mode.policy_share, 2),
            _percent(mode.hit_rate),
            str(mode.distinct_actions),
            f"{mode.switches:.0f}",
            _percent(mode.wasted_drafts),
            "" if mode.host_syncs is None else f"{mode.host_syncs:.2f}",
        )
    table.caption = (
        "policy: share of the decoding time; switches: per 100 cycles; wasted: share of the "
        "drafted rows that were rejected; syncs: waits of the host per cycle"
    )
    return table


def _domains(summary: Summary) -> Iterator[Table]:
    failed = {mode.mode for mode in summary.modes if mode.failed}
    for some in batched(summary.by_domain.items(), _DOMAINS):
        table = new_table(f"tokens/s / {summary.references[0]}, by file")
        for domain, _ in some:
            table.add_column(domain, justify="right", overflow="fold")
        for mode in summary.modes:
            if mode.mode not in failed:
                cells = (_interval(found.get(mode.mode), "\n") for _, found in some)
                table.add_row(mode.mode, *cells)
        yield table


def _notes(manifest: Manifest, summary: Summary) -> Iterator[str]:
    yield manifest.machine
    yield (
        "tokens/s: decoding only, with drafting, verification and policy; all-in: with the "
        "prefills. In brackets: 95 % confidence intervals over questions."
    )
    loads = ", ".join(f"{median:.1f} (up to {largest:.1f})" for median, largest in summary.load)
    yield f"load average by repeat: {loads}"
    for label, mode in manifest.modes.items():
        if mode.trees:
            yield f"{label}: {_trees(mode.trees)}"
    runs = {mode.mode: mode.runs for mode in summary.modes}
    first = runs.get(summary.references[0]) if summary.references else None
    apart = [label for label, of in runs.items() if first and not set(of) & set(first)]
    if apart:
        yield (
            f"decoded at another time than {summary.references[0]}, so the ratio holds only if the "
            f"machine was as fast then: {', '.join(apart)}"
        )


def batched(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Yield the items in order, `size` at a time, like `itertools.batched` of Python 3.12."""
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def _trees(trees: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{'/'.join(map(str, tree))} for {split}" for split, tree in trees.items())


def new_table(title: str) -> Table:
    """Return an empty table with a column for the modes."""
    table = Table(
        title=title, header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("mode", max_width=_LABEL_WIDTH, overflow="fold")
    return table


def _interval(interval: Interval | None, between: str = " ") -> str:
    if interval is None or not math.isfinite(interval.ratio):
        return ""
    if not math.isfinite(interval.low):
        return f"{interval.ratio:.3f}"
    return f"{interval.ratio:.3f}{between}[{interval.low:.3f}, {interval.high:.3f}]"


def _percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"
