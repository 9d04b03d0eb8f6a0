"""The tables of a run, and its JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_models import end_token, model_bytes
from peer_records import RunRecords
from peer_runners import Runner, all_runners
from peer_tables import (
    RatioTable,
    equal_texts,
    median_rates,
    pass_medians,
    pass_ratios,
)
from rich.console import Console
from rich.table import Table

from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.files import atomic_path

#: Whose texts the others are compared with.
REFERENCES = ("eaglerl float32 plain", "llama.cpp F32 plain")


def report(
    console: Console,
    questions: Sequence[str],
    records: RunRecords,
    model: Path,
    folder: Path,
    bandwidth: float | None,
) -> None:
    """Print the tables of what answered all questions, and write ``report.json``."""
    runners = all_runners()
    speeds = speed_rows(runners, questions, records, end_token(model))
    ratios = RatioTable(runners, records.answers, questions).rows()
    medians = pass_medians(records.passes.values())
    over = pass_ratios(medians, model_bytes(model / "model.gguf"), bandwidth)
    sessions = 1 + max((a.session for a in records.answers.values()), default=0)
    note = "" if sessions == 1 else f", measured in {sessions} sessions"
    _print_speeds(console, speeds, f"{len(questions)} questions, greedy{note}")
    _print_ratios(console, [vars(ratio) for ratio in ratios])
    if medians:
        _print_passes(console, medians, over, bandwidth)
    with atomic_path(folder / "report.json") as temporary:
        content = {
            "machine": describe_machine(),
            "questions": list(questions),
            "sessions": sessions,
            "speeds": speeds,
            "ratios": [vars(ratio) for ratio in ratios],
            "passes_ms": medians,
            "bytes_per_second": bandwidth,
            "pass_ratios": over,
        }
        temporary.write_text(json.dumps(_without_nan(content), indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {folder / 'report.json'}")


def speed_rows(
    runners: Sequence[Runner], questions: Sequence[str], records: RunRecords, end: int
) -> list[dict[str, Any]]:
    """Return the medians and equal texts of every runner that answered all questions."""
    rows = []
    for runner in runners:
        found = median_rates(records.answers, runner.name, questions)
        if found is None:
            continue
        own = [
            records.answers[key]
            for key in records.answers
            if key[0] == runner.name and key[1] in questions
        ]
        drafted = sum(answer.drafted for answer in own)
        rows.append(
            {
                "runner": runner.name,
                "decode": found[0],
                "whole": found[1],
                "accepted": sum(a.accepted for a in own) / drafted if drafted else None,
                "equal": {
                    reference: equal_texts(records.answers, runner.name, reference, questions, end)
                    for reference in REFERENCES
                },
            }
        )
    return rows


def _print_speeds(console: Console, rows: list[dict[str, Any]], title: str) -> None:
    table = Table(title=f"Tokens/s: {title}")
    for name in ("runner", "decoding", "prompt included", "drafts accepted"):
        table.add_column(name, justify="left" if name == "runner" else "right")
    for reference in REFERENCES:
        table.add_column(f"texts of {reference}", justify="right")
    for row in rows:
        accepted = "" if row["accepted"] is None else f"{row['accepted']:.0%}"
        equal = ["" if n is None else str(n) for n in row["equal"].values()]
        rates = f"{row['decode']:.1f}", f"{row['whole']:.1f}"
        table.add_row(row["runner"], *rates, accepted, *equal)
    console.print(table)


def _print_ratios(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="Ratios of tokens/s, with 95 % intervals over the questions")
    for name in ("ratio", "of", "to", "decoding", "prompt included", "interval", "aim"):
        left = name in ("ratio", "of", "to")
        table.add_column(name, justify="left" if left else "right")
    for row in rows:
        table.add_row(
            row["label"],
            row["mine"],
            row["other"],
            f"{row['decode']:.2f}",
            f"{row['whole']:.2f}",
            "" if math.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}",
            "" if row["aim"] is None else f">= {row['aim']}",
        )
    console.print(table)


def _print_passes(
    console: Console,
    medians: dict[str, dict[int, float]],
    over: list[dict[str, Any]],
    bandwidth: float | None,
) -> None:
    read = "" if bandwidth is None else f"; memory is read at {bandwidth / 1e9:.1f} GB/s"
    table = Table(title=f"Milliseconds of a whole pass by rows{read}")
    rows = sorted({number for by_rows in medians.values() for number in by_rows})
    table.add_column("runner")
    for name in (*map(str, rows), "reading", "1 / reading", "aim", "8 / 1", "aim"):
        table.add_column(name, justify="right")
    for one in over:
        aims = ["" if aim is None else f"<= {aim}" for aim in one["aims"]]
        table.add_row(
            one["runner"],
            *(f"{medians[one['runner']].get(number, math.nan):.2f}" for number in rows),
            _number(one["reading_ms"]),
            _number(one["one_row_over_reading"]),
            aims[0],
            _number(one["eight_rows_over_one"]),
            aims[1],
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
