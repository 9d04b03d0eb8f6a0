"""Reading what a step costs, in the forms that are measured and logged.

eaglerl's cost tables; a table as CSV or JSON; the tables of SGLang's ``dspark_sps_profiler``; and
vLLM's log of its iterations.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eaglerl.cost.cost_table import FORMAT as TABLE_FORMAT
from eaglerl.cost.cost_table import CostTable
from eaglerl.headroom.cost_curve import CostCurve, StepCost, TableCost, curve_of
from eaglerl.json_file import (
    Items,
    JsonObject,
    Schema,
    VersionedSchema,
    parse_json,
    read_lines,
    shortly,
)
from eaglerl.regular_file import naming, read_regular

#: Format of a table that is written by hand as JSON.
FORMAT = "eaglerl-cost-curve"
VERSION = 1
#: Largest table, and longest line of a log.
MOST_BYTES = 1 << 24

_WHAT = "cost file"
_MOST_POINTS = 1_000_000
# `--enable-logging-iteration-details` of vLLM 0.32.
_ITERATION = re.compile(
    rb"Iteration\(\d+\): (\d{1,9}) context requests, \d+ context tokens, "
    rb"(\d{1,9}) generation requests, (\d{1,9}) generation tokens, "
    rb"iteration elapsed time: (\d{1,9}\.\d+) ms( \(dummy\))?"
)
# The first steps of a batch size compile or capture something.
_FEWEST_STEPS = 3

_Rows = Annotated[int, Field(ge=1, le=1 << 24)]
_Batch = Annotated[int, Field(ge=1, le=1 << 20)]
_Context = Annotated[int, Field(ge=0, le=1 << 30)]
_Positive = Annotated[float, Field(gt=0.0, lt=1e9)]


def read_cost(path: str | Path) -> StepCost:
    """Read the costs of steps; the content says which form it has.

    Raises:
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
        ValueError: the file has none of the forms, or is wrong.
    """
    path = Path(path)
    where = f"the {_WHAT} {str(path)!r}"
    if path.suffix in (".log", ".txt"):
        return _read_vllm_log(path)
    data = read_regular(path, _WHAT, max_bytes=MOST_BYTES)
    if path.suffix == ".csv":
        with naming(where):
            return _of_csv(data, path.name)
    content = parse_json(data, JsonObject, where)
    if content.get("format") == TABLE_FORMAT:
        return TableCost(CostTable.from_json(path))
    with naming(where):
        if "bias_seconds" in content:
            return _of_sglang_sum(parse_json(data, _SumSchema, where), path.name)
        if "sample_batch_tokens" in content:
            return _of_sglang(parse_json(data, _SpsSchema, where), path.name)
        curve = parse_json(data, _CurveSchema, where, form=(FORMAT, VERSION))
        return CostCurve(
            curve.machine or path.name,
            [(point.rows, point.batch, point.context, point.seconds) for point in curve.verify],
            [(point.batch, point.context, point.seconds) for point in curve.draft],
            notes=() if curve.draft else (_FREE_DRAFTS,),
        )


_FREE_DRAFTS = "Drafting is taken to cost nothing: the costs have no draft passes"


class _VerifyPoint(Schema):
    rows: _Rows
    batch: _Batch = 1
    context: _Context = 0
    seconds: _Positive


class _DraftPoint(Schema):
    batch: _Batch = 1
    context: _Context = 0
    seconds: Annotated[float, Field(ge=0.0, lt=1e9)]


class _CurveSchema(VersionedSchema):
    machine: Annotated[str, Field(max_length=1000)] = ""
    verify: Annotated[Items[_VerifyPoint], Field(min_length=1)]
    draft: Items[_DraftPoint] = ()


class _SpsSchema(Schema):
    sample_batch_tokens: Annotated[Items[_Rows], Field(min_length=1)]
    sample_steps_per_sec: Annotated[Items[_Positive], Field(min_length=1)]
    max_batch_tokens: _Rows


class _SumSchema(Schema):
    bias_seconds: _Positive
    bs_probes: Annotated[Items[_Batch], Field(min_length=1, max_length=1000)]
    alpha_seconds: Items[float]
    m_probes: Annotated[Items[_Rows], Field(min_length=1, max_length=1000)]
    theta_seconds: Items[float]


def _of_sglang(table: _SpsSchema, name: str) -> CostCurve:
    """Make a curve of SGLang's steps per second by the tokens of a verification."""
    if len(table.sample_batch_tokens) != len(table.sample_steps_per_sec):
        raise ValueError(
            "sample_batch_tokens and sample_steps_per_sec must be as many, got "
            f"{len(table.sample_batch_tokens)} and {len(table.sample_steps_per_sec)}"
        )
    pairs = zip(table.sample_batch_tokens, table.sample_steps_per_sec, strict=True)
    return CostCurve(
        name,
        [(rows, 1, 0, 1.0 / steps) for rows, steps in pairs],
        by_rows_alone=True,
        notes=[_SGLANG],
    )


_SGLANG = (
    "The times are SGLang's whole steps, with a draft of full length; between two probes they are "
    "interpolated, where SGLang takes the lower one"
)


def _of_sglang_sum(table: _SumSchema, name: str) -> CostCurve:
    """Make a curve of SGLang's sum of a part by requests and a part by verified tokens."""
    for probes, values in (
        (table.bs_probes, table.alpha_seconds),
        (table.m_probes, table.theta_seconds),
    ):
        if len(probes) != len(values):
            raise ValueError(
                f"probes and their seconds must be as many, got {len(probes)} and {len(values)}"
            )
    points = [
        (rows, batch, 0, table.bias_seconds + of_batch + of_rows)
        for batch, of_batch in zip(table.bs_probes, table.alpha_seconds, strict=True)
        for rows, of_rows in zip(table.m_probes, table.theta_seconds, strict=True)
    ]
    return CostCurve(name, points, notes=[_SGLANG])


def _of_csv(data: bytes, name: str) -> CostCurve:
    """Make a curve of lines ``kind,rows,batch,context,seconds``; all but rows and seconds may lack.

    The kind is verify (the default) or draft; a line of a draft pass needs no rows.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    given, lines = _lines_of(text)
    verification: list[tuple[int, int, int, float]] = []
    passes: list[tuple[int, int, float]] = []
    names = {"kind", "rows", "batch", "context", "seconds"}
    if not {"rows", "seconds"} <= given <= names:
        raise ValueError(
            f"the first line must name the columns rows and seconds, and may name kind, batch and "
            f"context, got {shortly(sorted(given))}"
        )
    for number, line in enumerate(lines, 2):
        if len(verification) + len(passes) >= _MOST_POINTS:
            raise ValueError(f"there must be at most {_MOST_POINTS:,} lines, got more")
        where = f"line {number}"
        if "more" in line:
            raise ValueError(f"{where} must have {len(given)} columns, got more")
        kind = (line.get("kind") or "verify").strip()
        batch = _whole(line, "batch", where, 1)
        context, seconds = _whole(line, "context", where, 0), _seconds(line, where)
        if kind == "verify":
            verification.append((_whole(line, "rows", where, None), batch, context, seconds))
        elif kind == "draft":
            passes.append((batch, context, seconds))
        else:
            raise ValueError(f"'kind' of {where} must be verify or draft, got {shortly(kind)}")
    return CostCurve(name, verification, passes, notes=() if passes else (_FREE_DRAFTS,))


def _lines_of(text: str) -> tuple[set[str], list[dict[str, str | None]]]:
    """Return the names of the columns, and the lines by these names."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="more", strict=True)
    try:
        lines = [dict(line) for line in reader]
        return set(reader.fieldnames or ()), lines
    except csv.Error as error:
        raise ValueError(f"it is not CSV: {error}") from None


def _whole(line: dict[str, str | None], key: str, where: str, default: int | None) -> int:
    text = line.get(key)
    text = text.strip() if isinstance(text, str) else ""
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ValueError(f"{key!r} of {where} must be a whole number, got {shortly(text)}")
    return int(text)


def _seconds(line: dict[str, str | None], where: str) -> float:
    text = line.get("seconds") or ""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"'seconds' of {where} must be a number, got {shortly(text)}") from None


def _read_vllm_log(path: Path) -> CostCurve:
    """Read the iterations of a log that vLLM wrote with ``--enable-logging-iteration-details``.

    Iterations that read prompts too are left out. One iteration counts the root and the drafted
    tokens of each request as its generation tokens.
    """
    times: dict[tuple[int, int], list[float]] = {}
    count = 0
    for line in read_lines(path, _WHAT, max_line_bytes=MOST_BYTES):
        found = _ITERATION.search(line.data)
        if found is None or found[5] is not None or int(found[1]) or not int(found[2]):
            continue
        batch, rows, milliseconds = int(found[2]), int(found[3]), float(found[4])
        if rows < batch or milliseconds <= 0.0:
            continue
        times.setdefault((rows, batch), []).append(1e-3 * milliseconds)
        count += 1
        if count > _MOST_POINTS:
            raise ValueError(
                f"the {_WHAT} {str(path)!r} must have at most {_MOST_POINTS:,} iterations, got more"
            )
    points = {key: own for key, own in times.items() if len(own) >= _FEWEST_STEPS}
    if not points:
        raise ValueError(
            f"the {_WHAT} {str(path)!r} must be a log of vLLM with at least {_FEWEST_STEPS} "
            "iterations of as many tokens (--enable-logging-iteration-details), or end in .json or "
            f".csv; it has {count} iterations without prompts"
        )
    return curve_of(points, path.name)
