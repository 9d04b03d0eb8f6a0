"""What the training of a policy left beside it on how good its predictions are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "calibration.json"
_LENGTHS = "acceptance_length"


@dataclass(frozen=True)
class Bin:
    """Candidates that were called about equally probable.

    Attributes:
        count: how many.
        predicted: mean probability; NaN where there are none.
        found: share that came true; NaN where there are none.
    """

    count: int
    predicted: float
    found: float


@dataclass(frozen=True)
class Calibration:
    """Predictions of one policy and what came true, on prompts that it was not fitted to.

    Attributes:
        tables: reliability tables, by what is predicted; those without candidates are left out.
        lengths: after each number of rounds from 0 on, mean acceptance lengths expected and found.
    """

    tables: Mapping[str, Sequence[Bin]]
    lengths: Sequence[tuple[float, float]] = field(default_factory=tuple)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean |found - predicted|, weighted by candidates; else NaN."""
    count = sum(one.count for one in bins)
    off = sum(one.count * abs(one.found - one.predicted) for one in bins if one.count)
    return off / count if count else math.nan


def find_calibration(policy: str | Path) -> Path | None:
    """The file of a policy: in its folder, or in that of the run that it lies in; None if none.

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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"calibration {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise ValueError(f"calibration {str(path)!r} must be an object of lists")
    rows = content.pop(_LENGTHS, [])
    try:
        lengths = [(float(row["expected"]), float(row["found"])) for row in rows]
        tables = {name: [_bin(row) for row in table] for name, table in content.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"calibration {str(path)!r} has a wrong row: {error!r}") from error
    known = {name: table for name, table in tables.items() if any(one.count for one in table)}
    if not known and not lengths:
        raise ValueError(f"calibration {str(path)!r} holds nothing")
    return Calibration(known, lengths)


def _bin(row: Mapping[str, Any]) -> Bin:
    count, values = row["candidates"], (row["predicted"], row["found"])
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"candidates must be a number of them, got {count!r}")
    if not count:
        return Bin(0, math.nan, math.nan)
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        raise ValueError(f"predicted and found must be shares, got {values}")
    return Bin(count, float(values[0]), float(values[1]))
