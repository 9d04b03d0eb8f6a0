"""Seconds of a step of a batch that drafts chains, by batch size and length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from eaglerl.cost.cost_table import FORMAT as TABLE_FORMAT
from eaglerl.cost.cost_table import CostTable
from eaglerl.json_file import MAX_BYTES, AnyObject, Items, Seconds, VersionedSchema, read_json
from eaglerl.regular_file import read_regular

FORMAT = "eaglerl-step-costs"
VERSION = 1
#: Longest chains that are priced by a cost table of trees.
_MOST_STEPS = 7
#: Context at which they are priced.
_CONTEXT = 512
_Axis = Annotated[
    Items[Annotated[int, Field(ge=0, le=1 << 16)]], Field(min_length=1, max_length=256)
]


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step: the draft, the verification and all between, for the whole batch.

    Attributes:
        batch_sizes: numbers of requests, ascending from at least 1.
        steps: drafted tokens of each request, ascending from 0, which is a step without a draft.
        seconds: for each batch size, the seconds of each number of drafted tokens.
        machine: description of the machine and the models.

    Raises:
        ValueError: an axis does not ascend from its beginning, or a number is missing, not
            positive or infinite.
    """

    batch_sizes: tuple[int, ...]
    steps: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    machine: str = ""

    def __post_init__(self) -> None:
        for name, first in (("batch_sizes", 1), ("steps", 0)):
            axis = getattr(self, name)
            if not axis or axis[0] < first or any(b <= a for a, b in pairwise(axis)):
                raise ValueError(f"{name} must ascend from at least {first}, got {list(axis)}")
        if self.steps[0] != 0:
            raise ValueError(
                f"steps must begin with 0, a step without a draft, got {self.steps[0]}"
            )
        shape = len(self.batch_sizes), len(self.steps)
        lengths = {len(row) for row in self.seconds}
        if len(self.seconds) != shape[0] or lengths != {shape[1]}:
            raise ValueError(
                f"seconds must have a row of {shape[1]} numbers for each of {shape[0]} batch "
                f"sizes, got {len(self.seconds)} of {sorted(lengths)}"
            )
        wrong = [t for row in self.seconds for t in row if not 0.0 < t < float("inf")]
        if wrong:
            raise ValueError(f"seconds must be positive and finite, got {wrong[0]}")

    @classmethod
    def from_json(cls, path: str | Path) -> StepCosts:
        """Read a file of step costs, or a cost table of `eaglerl calibrate`.

        Raises:
            ValueError: the file is neither, or its times are unusable.
        """
        found = read_json(path, AnyObject, "step costs", allow_nan=True)
        if found.get("format") == TABLE_FORMAT:
            return cls.from_cost_table(CostTable.from_json(path))
        content = read_json(path, _Schema, "step costs", form=(FORMAT, VERSION))
        try:
            return cls(content.batch_sizes, content.steps, content.seconds, content.machine)
        except ValueError as problem:
            raise ValueError(f"the step costs {str(path)!r}: {problem}") from None

    @classmethod
    def from_cost_table(cls, table: CostTable, context_length: int = _CONTEXT) -> StepCosts:
        """Price chains of up to 7 tokens by a cost table of trees.

        A batch of b requests that draft k tokens verifies b (k + 1) rows, after k passes over b
        nodes each; a pass between two measured widths is interpolated. The batch sizes are the
        powers of two whose rows and widths the table has.

        Args:
            table: the table.
            context_length: tokens of context of each request.

        Raises:
            ValueError: the table lacks the rows of a single chain, or the width of its passes.
        """
        rows = table.total_tokens[-1]
        most = min(rows - 1, _MOST_STEPS)
        sizes = [
            size for size in (1 << power for power in range(17))
            if table.top_ks[0] <= size <= table.top_ks[-1] and size * (most + 1) <= rows
        ]  # fmt: skip
        if most < 1 or not sizes:
            raise ValueError(
                f"a cost table must have at least 2 rows and a width of 1, 2, 4, ... nodes whose "
                f"chains of {most} it can verify, got up to {rows} rows and the widths "
                f"{list(table.top_ks)}"
            )
        steps = np.arange(most + 1)
        lines = []
        for size in sizes:
            verify = table.verify_seconds(size * (steps + 1), context_length)
            first, later = (
                float(np.interp(size, table.top_ks, column))
                for column in (table.first_pass, table.later_pass)
            )
            draft = first + (steps - 1) * later + table.draft_slope * steps * context_length
            lines.append(tuple((verify + np.where(steps > 0, draft, 0.0)).tolist()))
        return cls(tuple(sizes), tuple(steps.tolist()), tuple(lines), table.machine)


def file_digest(path: str | Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file that was read before."""
    data = read_regular(path, "step costs", max_bytes=MAX_BYTES)
    return hashlib.sha256(data).hexdigest()[:16]


class _Schema(VersionedSchema):
    machine: str = ""
    batch_sizes: _Axis
    steps: _Axis
    seconds: Annotated[
        Items[Annotated[Items[Seconds], Field(max_length=256)]],
        Field(min_length=1, max_length=256),
    ]
