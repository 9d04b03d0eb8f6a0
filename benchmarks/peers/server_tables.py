"""The figures of the servers as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from server_records import Load

Loads = Mapping[tuple[str, int, int], Load]


def markdown(loads: Loads, runners: Sequence[str], reference: str) -> str:
    """Return all tables: throughput, ratios, and the times of every concurrency.

    Figures of several repeats are medians over them; quantiles are over all answers or tokens.

    Args:
        loads: what was measured.
        runners: names, in the order of the tables.
        reference: the runner whose texts the others are compared with.
    """
    concurrencies = sorted({number for _, number, _ in loads})
    known = [name for name in runners if any(name == runner for runner, _, _ in loads)]
    ours = [name for name in known if name.startswith("eaglerl ")]
    parts = ["Output tokens per second, prompts included, by requests at once:", ""]
    parts += _table(
        ["server", *map(str, concurrencies)],
        [[name, *(_speed(loads, name, number) for number in concurrencies)] for name in known],
    )
    for mine in ours:
        rows = [
            [other, *(_ratio(loads, mine, other, number) for number in concurrencies)]
            for other in known
            if other != mine
        ]
        parts += ["", f"{mine} over each, with the range over repeats:", ""]
        parts += _table(["over", *map(str, concurrencies)], rows)
    for number in concurrencies:
        parts += ["", _at_once(number, loads, reference), ""]
        parts += _table(
            [
                "server", "tokens/s", "first token p50", "p99", "per token p50", "p99",
                "between pieces p50", "p99", f"texts of {reference}",
            ],
            [
                row
                for name in known
                if (row := _waits(loads, name, number, reference)) is not None
            ],
        )  # fmt: skip
    return "\n".join(parts) + "\n"


def of_runner(loads: Loads, runner: str, concurrency: int) -> list[Load]:
    """Return the repeats of one runner at one concurrency, in order."""
    return [
        load
        for (name, number, _), load in sorted(loads.items())
        if (name, number) == (runner, concurrency)
    ]


def equal_texts(own: Sequence[Load], reference: Sequence[Load]) -> tuple[int, int] | None:
    """Count the questions whose first texts are equal, and all; None if one is missing."""
    if not own or not reference:
        return None
    texts = {answer.question: answer.text for answer in reference[0].answers}
    pairs = [(answer.text, texts.get(answer.question)) for answer in own[0].answers]
    return sum(one == other for one, other in pairs), len(pairs)


def _at_once(number: int, loads: Loads, reference: str) -> str:
    count = max(len(load.answers) for (_, n, _), load in loads.items() if n == number)
    words = "request" if number == 1 else "requests"
    return f"{number} {words} at once, {count} questions; milliseconds:"


def _waits(loads: Loads, runner: str, number: int, reference: str) -> list[str] | None:
    own = of_runner(loads, runner, number)
    if not own:
        return None
    answers = [answer for load in own for answer in load.answers]
    equal = equal_texts(own, of_runner(loads, reference, number))
    return [
        runner,
        _speed(loads, runner, number),
        *_quantiles([answer.first for answer in answers]),
        *_quantiles([one for answer in answers if (one := answer.per_token) is not None]),
        *_quantiles([gap for answer in answers for gap in answer.gaps]),
        "" if equal is None else f"{equal[0]} of {equal[1]}",
    ]


def _quantiles(seconds: Sequence[float]) -> Iterator[str]:
    for share in (0.5, 0.99):
        value = 1e3 * float(np.quantile(seconds, share)) if seconds else None
        yield "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _speed(loads: Loads, runner: str, number: int) -> str:
    own = of_runner(loads, runner, number)
    if not own:
        return ""
    return f"{statistics.median(load.tokens_per_second for load in own):.1f}"


def _ratio(loads: Loads, mine: str, other: str, number: int) -> str:
    """Return the median ratio of repeats that both have; they were measured next to each other."""
    theirs = {load.repeat: load for load in of_runner(loads, other, number)}
    ratios = [
        load.tokens_per_second / theirs[load.repeat].tokens_per_second
        for load in of_runner(loads, mine, number)
        if load.repeat in theirs
    ]
    if not ratios:
        return ""
    median = f"{statistics.median(ratios):.2f}"
    return median if len(ratios) == 1 else f"{median} ({min(ratios):.2f} to {max(ratios):.2f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
