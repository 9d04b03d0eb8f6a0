"""Seconds of a step of a batch that drafts chains, by batch size and length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from eaglerl.headroom.cost_curve import StepCost
from eaglerl.headroom.cost_files import read_cost
from eaglerl.json_file import MAX_BYTES, AnyObject, Items, Seconds, VersionedSchema, read_json
from eaglerl.regular_file import read_regular

FORMAT = "eaglerl-step-costs"
VERSION = 1
#: Longest chains that are priced by the costs of passes.
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
    def from_file(cls, path: str | Path) -> StepCosts:
        """Read a file of step costs, or any that `eaglerl headroom` reads as costs.

        Raises:
            ValueError: the file is none of them, or its times are unusable.
        """
        if Path(path).suffix == ".json":
            found = read_json(path, AnyObject, "step costs", allow_nan=True)
            if found.get("format") == FORMAT:
                return cls._of_schema(path)
        cost = read_cost(path)
        try:
            return cls.from_cost(cost)
        except ValueError as problem:
            raise ValueError(f"the costs {str(path)!r}: {problem}") from None

    @classmethod
    def _of_schema(cls, path: str | Path) -> StepCosts:
        content = read_json(path, _Schema, "step costs", form=(FORMAT, VERSION))
        try:
            return cls(content.batch_sizes, content.steps, content.seconds, content.machine)
        except ValueError as problem:
            raise ValueError(f"the step costs {str(path)!r}: {problem}") from None

    @classmethod
    def from_cost(cls, cost: StepCost, context_length: int = _CONTEXT) -> StepCosts:
        """Price chains of up to 7 tokens: k passes of the draft, and b (k + 1) rows to verify.

        The batch sizes b are the powers of two for which plain steps and chains of one token are
        covered. Longer chains than are covered continue the last slope.

        Args:
            cost: what passes cost.
            context_length: tokens of context of each request.

        Raises:
            ValueError: no batch size is covered.
        """
        known = {size: _line(cost, size, context_length) for size in (1 << n for n in range(17))}
        lines = {size: line for size, line in known.items() if len(line) > 1}
        if not lines:
            raise ValueError("they must cover plain steps and chains of one token of some batch")
        longest = max(map(len, lines.values()))
        for line in lines.values():
            slope = max(line[-1] - line[-2], 0.0)
            line += [line[-1] + slope * step for step in range(1, longest - len(line) + 1)]
        seconds = tuple(tuple(line) for line in lines.values())
        return cls(tuple(lines), tuple(range(longest)), seconds, cost.name)


def _line(cost: StepCost, size: int, context_length: int) -> list[float]:
    """Return the seconds of chains of 0, 1, ... tokens, as many as are covered."""
    steps = np.arange(min(cost.most_rows(size) // size, _MOST_STEPS + 1))
    context = np.array(context_length)
    try:
        seconds = cost.verify(size * (steps + 1), size, context)
    except ValueError:
        return []  # plain steps are not covered
    return (seconds + cost.draft(steps, size, context)).tolist()


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
