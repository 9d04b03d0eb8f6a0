"""Calibration files, in which the training of a policy records how good its predictions are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, model_validator

from eaglerl.json_file import Count, JsonObject, Schema, check_json, read_json

FILE_NAME = "calibration.json"
_LENGTHS = "acceptance_length"


@dataclass(frozen=True)
class Bin:
    """Candidates with about the same predicted probability.

    Attributes:
        count: number of candidates.
        predicted: mean probability; NaN without candidates.
        found: share that was accepted; NaN without candidates.
    """

    count: int
    predicted: float
    found: float


@dataclass(frozen=True)
class Calibration:
    """Predictions of one policy and the outcomes, on prompts that it was not fitted to.

    Attributes:
        tables: reliability tables, by what is predicted; those without candidates are left out.
        lengths: after each number of rounds from 0 on, mean acceptance lengths expected and found.
    """

    tables: Mapping[str, Sequence[Bin]]
    lengths: Sequence[tuple[float, float]] = field(default_factory=tuple)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean |found - predicted|, weighted by candidates; NaN without candidates."""
    count = sum(one.count for one in bins)
    off = sum(one.count * abs(one.found - one.predicted) for one in bins if one.count)
    return off / count if count else math.nan


def find_calibration(policy: str | Path) -> Path | None:
    """Find the calibration file of a policy, in its folder or in the folder of its run.

    Args:
        policy: the policy's folder or file.
    """
    path = Path(policy)
    folder = path if path.is_dir() else path.parent
    candidates = (folder / FILE_NAME, folder.resolve().parent / FILE_NAME)
    return next((file for file in candidates if file.is_file()), None)


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration file.

    It is an object: by what is predicted, lists of bins with "candidates", "predicted" and "found",
    the last two null where there are no candidates; and "acceptance_length", a list of "expected"
    and "found" by depth.

    Raises:
        ValueError: the file is not one.
    """
    path = Path(path)
    content = read_json(path, _TABLES, "calibration")
    where = f"the calibration {str(path)!r}"
    rows = content.pop(_LENGTHS, [])
    lengths = [
        (row.expected, row.found) for row in (check_json(one, _LengthSchema, where) for one in rows)
    ]
    tables = {
        name: [_bin(check_json(row, _BinSchema, f"{name!r} of {where}")) for row in table]
        for name, table in content.items()
    }
    known = {name: table for name, table in tables.items() if any(one.count for one in table)}
    if not known and not lengths:
        raise ValueError(f"{where} holds nothing")
    return Calibration(known, lengths)


_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_TABLES = TypeAdapter(dict[str, list[JsonObject]])


class _LengthSchema(Schema):
    expected: Annotated[float, Field(ge=0.0)]
    found: Annotated[float, Field(ge=0.0)]


class _BinSchema(Schema):
    candidates: Count
    predicted: _Share | None
    found: _Share | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.candidates and (self.predicted is None or self.found is None):
            raise ValueError("predicted and found must be shares where there are candidates")
        return self


def _bin(row: _BinSchema) -> Bin:
    if not row.candidates or row.predicted is None or row.found is None:
        return Bin(0, math.nan, math.nan)
    return Bin(row.candidates, row.predicted, row.found)
