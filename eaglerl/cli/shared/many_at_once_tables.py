"""The figures of several questions at once as tables for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from eaglerl.cli.shared.comparison_table import batched, new_table

if TYPE_CHECKING:
    from rich.table import Table

    from eaglerl.evaluation.statistics.many_at_once import Throughput

# What fits beside a label into 80 columns, in two lines.
_CONCURRENCIES = 5


def many_at_once_tables(figures: Sequence[Throughput]) -> Iterator[RenderableType]:
    """Yield a table per kind of figure, with a row per mode and a column per concurrency.

    Args:
        figures: from `throughputs`.
    """
    from eaglerl.evaluation.statistics.many_at_once import BATCHED_PLAIN, BEST_TREE, SERIAL

    groups = max(one.groups for one in figures)
    several = sorted({one.concurrency for one in figures if one.concurrency > 1})
    yield from _tables(
        f"Questions at once, {'1 group' if groups == 1 else f'{groups} groups'}: tokens/s, and "
        "with the prompts",
        figures,
        lambda one: f"{one.tokens_per_second:.1f}\n{one.all_in_tokens_per_second:.1f}",
    )
    for name, words in (
        (SERIAL, "the same mode, one question after another"),
        (BATCHED_PLAIN, "plain decoding at the same concurrency"),
        (BEST_TREE, "the fastest constant tree at the same concurrency"),
    ):
        own = [one for one in figures if name in one.ratios]
        if own:
            yield from _tables(f"tokens/s / {words}", own, _ratio(name, whole=False))
            yield from _tables(f"the same with the prompts, / {words}", own, _ratio(name, True))
    yield from _tables(
        "Milliseconds to the first token, p50 and p99",
        figures,
        lambda one: _milliseconds(one.first_token_p50, one.first_token_p99),
    )
    yield from _tables(
        "Milliseconds between tokens, p50 and p99",
        figures,
        lambda one: _milliseconds(one.between_tokens_p50, one.between_tokens_p99),
    )
    yield from _tables(
        "Answers at work, mean",
        [one for one in figures if one.concurrency in several],
        lambda one: f"{one.in_flight:.1f}",
    )
    yield from _outputs(figures)


def _outputs(figures: Sequence[Throughput]) -> Iterator[Text]:
    compared = [one for one in figures if one.compared]
    for one in compared:
        if one.failed:
            yield Text(
                f"{one.mode}, {one.concurrency} at once: only {one.identical} of {one.compared} "
                "outputs identical to plain decoding",
                style="red",
            )
    right = sum(one.identical for one in compared)
    if compared:
        yield Text(
            f"{right} of {sum(one.compared for one in compared)} outputs of all modes identical to "
            "plain decoding, one after another"
        )


def _tables(
    title: str, figures: Sequence[Throughput], cell: Callable[[Throughput], str]
) -> Iterator[Table]:
    found = {(one.mode, one.concurrency): one for one in figures}
    for some in batched(sorted({one.concurrency for one in figures}), _CONCURRENCIES):
        table = new_table(title)
        for number in some:
            table.add_column(str(number), justify="right")
        for mode in dict.fromkeys(one.mode for one in figures):
            each = [found.get((mode, number)) for number in some]
            cells = ("" if one is None else "failed" if one.failed else cell(one) for one in each)
            table.add_row(mode, *cells)
        yield table


def _ratio(name: str, whole: bool) -> Callable[[Throughput], str]:
    def text(one: Throughput) -> str:
        if name not in one.ratios:
            return ""
        interval = one.ratios[name].whole if whole else one.ratios[name].decoding
        told = f"{interval.ratio:.3f}"
        if math.isfinite(interval.low):
            told += f"\n[{interval.low:.2f}, {interval.high:.2f}]"
        return told

    return text


def _milliseconds(median: float, worst: float) -> str:
    return "" if math.isnan(median) else f"{1e3 * median:.0f}, {1e3 * worst:.0f}"
