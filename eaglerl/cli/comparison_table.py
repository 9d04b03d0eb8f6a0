"""A comparison's figures as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from eaglerl.evaluation.records import Manifest
    from eaglerl.evaluation.statistics import Interval, ModeSummary, Summary


def comparison_tables(manifest: Manifest, summary: Summary) -> RenderableType:
    """All tables and notes of a comparison.

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
    parts: list[RenderableType] = [_speeds(title, summary.modes, summary.references)]
    if summary.looping and summary.without_looping:
        rest = len(manifest.questions) - len(summary.looping)
        parts.append(
            _speeds(
                f"The {rest} questions without the {len(summary.looping)} whose answer loops",
                summary.without_looping,
                summary.references,
            )
        )
    parts.append(_behaviour(summary.modes))
    if summary.references and len(summary.by_domain) > 1:
        parts.append(_domains(summary))
    parts.extend(Text(note) for note in _notes(manifest, summary))
    return Group(*parts)


def _speeds(title: str, modes: Sequence[ModeSummary], references: Sequence[str]) -> Table:
    table = _table(title)
    for name in ("tokens/s", "all-in", *(f"/ {name}" for name in references), "length"):
        table.add_column(name, justify="right")
    table.add_column("p50 ms", justify="right")
    table.add_column("p99 ms", justify="right")
    table.add_column("identical", justify="right")
    ranked = sorted(modes, key=lambda mode: (mode.failed, -mode.tokens_per_second))
    for mode in ranked:
        cells = [
            f"{mode.tokens_per_second:.1f}",
            f"{mode.all_in_tokens_per_second:.1f}",
            *(_interval(mode.ratios.get(name)) for name in references),
            f"{mode.acceptance_length:.2f}",
            f"{mode.token_milliseconds_p50:.1f}",
            f"{mode.token_milliseconds_p99:.1f}",
            f"{mode.identical} of {mode.compared}" if mode.compared else "",
        ]
        if mode.failed:
            # A wrong answer has no speed.
            cells = ["failed", *[""] * (len(cells) - 2), cells[-1]]
        table.add_row(mode.mode, *cells, style="red" if mode.failed else None)
    return table


def _behaviour(modes: Sequence[ModeSummary]) -> Table:
    table = _table("What the modes did")
    for name in ("policy", "hit rate", "actions", "switches", "wasted", "host syncs"):
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
        "drafted rows that were not accepted"
    )
    return table


def _domains(summary: Summary) -> Table:
    table = _table(f"tokens/s / {summary.references[0]}, by file")
    for domain in summary.by_domain:
        table.add_column(domain, justify="right")
    failed = {mode.mode for mode in summary.modes if mode.failed}
    for mode in summary.modes:
        if mode.mode not in failed:
            ratios = (found.get(mode.mode) for found in summary.by_domain.values())
            table.add_row(mode.mode, *map(_interval, ratios))
    return table


def _notes(manifest: Manifest, summary: Summary) -> Iterator[str]:
    yield manifest.machine
    yield (
        "tokens/s: decoding only, drafting, verification and policy included; all-in: with the "
        "prefills. In brackets: 95 %, by a bootstrap over questions."
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
            f"decoded at another time than {summary.references[0]}, so that the ratio holds only "
            f"if the machine was as fast then: {', '.join(apart)}"
        )
    if summary.missing:
        yield f"{summary.missing} records are still missing; the same command goes on"


def _trees(trees: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{'/'.join(map(str, tree))} for {split}" for split, tree in trees.items())


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("mode")
    return table


def _interval(interval: Interval | None) -> str:
    if interval is None or not math.isfinite(interval.ratio):
        return ""
    return f"{interval.ratio:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"
