"""Rates of the runners and the ratios between them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from peer_records import Answer, Passes
from peer_runners import GGUF_TYPES, PRECISIONS, Runner

from eaglerl.ratio_intervals import ratio_interval

Answers = Mapping[tuple[str, str, int], Answer]
#: Tokens per second of decoding alone, and with the prompt's time.
Rates = tuple[float, float]


@dataclass(frozen=True)
class Ratio:
    """A line of the ratio table.

    Attributes:
        label: what is divided by what, in words.
        mine: runner of the numerator, by decoding alone.
        other: runner of the denominator.
        decode: ratio of the medians of decoding alone.
        whole: the same with the prompts' time.
        low: lower end of a 95 % interval of ``whole`` over the questions.
        high: its upper end.
        aim: least ``decode`` or, where the label says so, ``whole`` that is aimed at.
    """

    label: str
    mine: str
    other: str
    decode: float
    whole: float
    low: float
    high: float
    aim: float | None


def complete_repeats(answers: Answers, runner: str, questions: Sequence[str]) -> list[int]:
    """Return the repeats in which a runner answered every question."""
    wanted = set(questions)
    found: dict[int, set[str]] = {}
    for name, question, repeat in answers:
        if name == runner:
            found.setdefault(repeat, set()).add(question)
    return sorted(repeat for repeat, given in found.items() if wanted <= given)


def rates(answers: Iterable[Answer]) -> Rates:
    """Return tokens per second of one repeat: of decoding alone, and prompts included.

    Tokens that were there at the end of the prompt's time are not counted in decoding.
    """
    answers = list(answers)
    tokens = sum(answer.generated for answer in answers)
    first = sum(answer.prompt_tokens for answer in answers)
    decode = sum(answer.decode_seconds for answer in answers)
    prompts = sum(answer.prompt_seconds for answer in answers)
    return (
        (tokens - first) / decode if decode > 0 else float("nan"),
        tokens / (decode + prompts) if decode + prompts > 0 else float("nan"),
    )


def median_rates(answers: Answers, runner: str, questions: Sequence[str]) -> Rates | None:
    """Return the medians of the rates over complete repeats; None without one."""
    each = [
        rates(answers[runner, question, repeat] for question in questions)
        for repeat in complete_repeats(answers, runner, questions)
    ]
    if not each:
        return None
    decode, whole = zip(*each, strict=True)
    return statistics.median(decode), statistics.median(whole)


def equal_texts(
    answers: Answers, runner: str, reference: str, questions: Sequence[str], end: int
) -> int | None:
    """Count the questions whose first texts are equal; None if one of the two is missing."""
    pairs = [
        (answers.get((runner, question, 0)), answers.get((reference, question, 0)))
        for question in questions
    ]
    if any(one is None or other is None for one, other in pairs):
        return None
    return sum(one.text(end) == other.text(end) for one, other in pairs if one and other)


def interval(
    answers: Answers, mine: str, other: str, questions: Sequence[str]
) -> tuple[float, float]:
    """Return the 95 % interval of a ratio over the questions, prompts included."""
    sums = []
    for question in questions:
        row = []
        for name in (mine, other):
            kept = [
                answers[name, question, repeat]
                for repeat in complete_repeats(answers, name, questions)
            ]
            row += [
                sum(a.generated for a in kept) / len(kept),
                sum(a.prompt_seconds + a.decode_seconds for a in kept) / len(kept),
            ]
        sums.append(row)
    found = ratio_interval(np.array(sums))
    return found.low, found.high


class RatioTable:
    """The ratios that can be taken from what was measured."""

    def __init__(
        self, runners: Sequence[Runner], answers: Answers, questions: Sequence[str]
    ) -> None:
        """Take the medians of all runners.

        Args:
            runners: those of the run.
            answers: its answers.
            questions: ids of the questions.
        """
        self._answers, self._questions = answers, questions
        self._rates: dict[Runner, Rates] = {}
        for runner in runners:
            found = median_rates(answers, runner.name, questions)
            if found is not None:
                self._rates[runner] = found

    def rows(self) -> list[Ratio]:
        """Return the lines of the table whose runners were measured."""
        rows = [
            self._row(f"plain {precision} / llama.cpp {kind}", ours, theirs, aim)
            for precision, kind, aim in (
                ("native", "Q4_1", 1.15),
                ("int8", "Q8_0", 1.2),
                ("float32", "F32", 1.05),
            )
            for ours in [self._plain("eaglerl", precision)]
            for theirs in [self._plain("llama.cpp", kind)]
        ]
        llama = self._best(lambda runner: runner.engine == "llama.cpp")
        lookup = self._best(lambda runner: runner.drafts == "lookup")
        before = self._best(lambda r: (r.weights, r.drafts) == ("float32", "policy"))
        for precision, aim in (("native", 1.5), ("int8", 1.8), ("bfloat16", None)):
            for way, ours in self._ways(precision):
                rows.append(self._row(f"{way} {precision} / llama.cpp's best", ours, llama, aim))
        for precision, aim in (("int8", 1.6), ("native", None)):
            for way, ours in self._ways(precision):
                label = f"{way} {precision} / OpenVINO int8 + lookup (prompts included)"
                rows.append(self._row(label, ours, lookup, aim))
        for way, ours in self._ways("native"):
            rows.append(self._row(f"{way} native / policy float32", ours, before, 2.2))
        bfloat16 = self._plain("eaglerl", "bfloat16")
        default = self._plain("OpenVINO", "default")
        rows.append(self._row("plain bfloat16 / OpenVINO default", bfloat16, default, None))
        return [row for row in rows if row is not None]

    def _ways(self, precision: str) -> list[tuple[str, Runner | None]]:
        ours = [r for r in self._rates if (r.engine, r.weights) == ("eaglerl", precision)]
        return [
            ("policy", self._best(lambda runner: runner in ours and runner.drafts == "policy")),
            ("best tree", self._best(lambda runner: runner in ours and runner.is_tree)),
        ]

    def _plain(self, engine: str, weights: str) -> Runner | None:
        return self._best(lambda r: (r.engine, r.weights, r.drafts) == (engine, weights, "plain"))

    def _best(self, fits: Callable[[Runner], bool]) -> Runner | None:
        """Return the fastest with the prompts included: what a user waits for."""
        fitting = [runner for runner in self._rates if fits(runner)]
        return max(fitting, key=lambda runner: self._rates[runner][1], default=None)

    def _row(
        self, label: str, mine: Runner | None, other: Runner | None, aim: float | None
    ) -> Ratio | None:
        if mine is None or other is None:
            return None
        decode, whole = (
            one / two for one, two in zip(self._rates[mine], self._rates[other], strict=True)
        )
        low, high = interval(self._answers, mine.name, other.name, self._questions)
        return Ratio(label, mine.name, other.name, decode, whole, low, high, aim)


def pass_medians(passes: Iterable[Passes]) -> dict[str, dict[int, float]]:
    """Return the median milliseconds of a pass by runner and rows, over all turns."""
    seconds: dict[str, dict[int, list[float]]] = {}
    for one in passes:
        seconds.setdefault(one.runner, {}).setdefault(one.rows, []).extend(one.seconds)
    return {
        runner: {rows: 1e3 * statistics.median(found) for rows, found in sorted(by_rows.items())}
        for runner, by_rows in seconds.items()
    }


def pass_ratios(
    medians: Mapping[str, Mapping[int, float]],
    file_bytes: Mapping[str, int],
    bytes_per_second: float | None,
) -> list[dict[str, Any]]:
    """Return, for each runner, a pass of 1 row over the reading of its file, and 8 rows over 1.

    Args:
        medians: from `pass_medians`.
        file_bytes: bytes of the weights that the runner reads in a pass.
        bytes_per_second: what this machine's threads read together; None if not measured.
    """
    aims = {"eaglerl native": (1.8, 2.2), "eaglerl int8": (None, 1.6)}
    found = []
    for runner, by_rows in medians.items():
        one, eight = by_rows.get(1), by_rows.get(8)
        reading = None
        if bytes_per_second and runner in file_bytes:
            reading = 1e3 * file_bytes[runner] / bytes_per_second
        found.append(
            {
                "runner": runner,
                "reading_ms": reading,
                "one_row_over_reading": one / reading if one and reading else None,
                "eight_rows_over_one": eight / one if one and eight else None,
                "aims": aims.get(runner, (None, None)),
            }
        )
    return found


def pass_names() -> list[tuple[str, str]]:
    """Return engine and weights of every runner of passes."""
    ours = [("eaglerl", precision) for precision in PRECISIONS]
    return [*ours, *(("llama.cpp", kind) for kind in GGUF_TYPES)]
