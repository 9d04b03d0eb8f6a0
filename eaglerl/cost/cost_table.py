"""The cost of a cycle on a machine, t(T, D, K, context), measured once and kept as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, overload

import numpy as np
from pydantic import Field

from eaglerl.cost.cost_check import CostError, why_unusable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, Schema, Seconds, VersionedSchema, read_json
from eaglerl.ops.limits import LARGEST_TREE

FORMAT = "eaglerl-cost"
VERSION = 1


@dataclass(frozen=True)
class CostTable:
    """Seconds of a cycle: one verification of T rows, and D + 1 draft passes of width K.

    t(T, D, K, c) = verify(T, c) + draft(D, K, c), where c is the context length. The attention of
    a row grows with the context, so both terms are linear in it:
    verify(T, c) = ``verify_base[T]`` + c ``verify_slope[T]``, interpolated linearly between the
    measured T, and draft(D, K, c) = ``first_pass[K]`` + D ``later_pass[K]`` +
    c (1 + D) ``draft_slope``. A cycle without drafts costs verify(1, c), and one with m looked-up
    tokens alone verify(1 + m, c).

    Attributes:
        machine: description of the measured machine.
        draft_dtype: precision of the draft's matrix products.
        total_tokens: measured T, ascending from 1.
        verify_base: seconds.
        verify_slope: seconds per token of context.
        top_ks: measured K, ascending.
        first_pass: seconds of the pass over the accepted tokens, the choice of K children included.
        later_pass: seconds of a pass over K nodes.
        draft_slope: seconds per token of context and pass.
        samples: number of measured cycles.
        error: error of the fit; None for a table that was not measured.

    Raises:
        ValueError: lengths do not match, a grid does not ascend, a number is negative or infinite,
            or a verification takes no time.
    """

    machine: str
    draft_dtype: str
    total_tokens: tuple[int, ...]
    verify_base: tuple[float, ...]
    verify_slope: tuple[float, ...]
    top_ks: tuple[int, ...]
    first_pass: tuple[float, ...]
    later_pass: tuple[float, ...]
    draft_slope: float = 0.0
    samples: int = 0
    error: CostError | None = None

    def __post_init__(self) -> None:
        for name, columns in (
            ("total_tokens", ("verify_base", "verify_slope")),
            ("top_ks", ("first_pass", "later_pass")),
        ):
            grid = getattr(self, name)
            if not grid or grid[0] < 1 or any(b <= a for a, b in pairwise(grid)):
                raise ValueError(f"{name} must ascend from at least 1, got {list(grid)}")
            for column in columns:
                values = np.asarray(getattr(self, column), dtype=float)
                if values.shape != (len(grid),) or not (np.isfinite(values) & (values >= 0)).all():
                    raise ValueError(
                        f"{column} must be {len(grid)} finite numbers that are not negative, one "
                        f"for each of {name}, got {list(getattr(self, column))}"
                    )
        if self.total_tokens[0] != 1:
            raise ValueError(f"total_tokens must begin with 1, got {self.total_tokens[0]}")
        if not (np.isfinite(self.draft_slope) and self.draft_slope >= 0):
            raise ValueError(f"draft_slope must not be negative, got {self.draft_slope}")
        if not all(seconds > 0 for seconds in self.verify_base):
            # Rates are tokens divided by these.
            raise ValueError(f"verify_base must be positive, got {list(self.verify_base)}")

    @overload
    def verify_seconds(self, rows: int, context_length: int) -> float: ...
    @overload
    def verify_seconds(self, rows: np.ndarray, context_length: np.ndarray | int) -> np.ndarray: ...
    @overload
    def verify_seconds(self, rows: int, context_length: np.ndarray) -> np.ndarray: ...

    def verify_seconds(
        self, rows: np.ndarray | int, context_length: np.ndarray | int
    ) -> np.ndarray | float:
        """Return the seconds of verifying `rows` at context lengths that broadcast to them.

        Raises:
            ValueError: more rows than were measured, or fewer than one.
        """
        rows = np.asarray(rows)
        if rows.size and (rows.min() < 1 or rows.max() > self.total_tokens[-1]):
            wrong = rows.min() if rows.min() < 1 else rows.max()
            raise ValueError(f"rows must lie in 1..{self.total_tokens[-1]}, got {wrong}")
        base = np.interp(rows, self.total_tokens, self.verify_base)
        return base + context_length * np.interp(rows, self.total_tokens, self.verify_slope)

    @overload
    def draft_seconds(self, depth: int, top_k: int, context_length: int) -> float: ...
    @overload
    def draft_seconds(
        self, depth: np.ndarray, top_k: int, context_length: np.ndarray | int
    ) -> np.ndarray: ...
    @overload
    def draft_seconds(self, depth: int, top_k: int, context_length: np.ndarray) -> np.ndarray: ...

    def draft_seconds(
        self, depth: np.ndarray | int, top_k: int, context_length: np.ndarray | int
    ) -> np.ndarray | float:
        """Return the seconds of the first pass and of `depth` passes over `top_k` nodes.

        Raises:
            ValueError: the width was not measured.
        """
        if top_k not in self.top_ks:
            raise ValueError(f"top_k must be one of {list(self.top_ks)}, got {top_k}")
        column = self.top_ks.index(top_k)
        passes = self.first_pass[column] + np.asarray(depth) * self.later_pass[column]
        return passes + self.draft_slope * (1 + np.asarray(depth)) * context_length

    def verify_lines(self, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds of verifying 1 to `max_rows` rows as lines over the context.

        Returns:
            (max_rows,) float64 seconds without context, and the same per token of context.

        Raises:
            ValueError: more rows than were measured, or fewer than one.
        """
        # Checked before arrays of this size are allocated.
        if not 1 <= max_rows <= self.total_tokens[-1]:
            raise ValueError(f"rows must lie in 1..{self.total_tokens[-1]}, got {max_rows}")
        rows = np.arange(1, max_rows + 1)
        base = self.verify_seconds(rows, 0)
        return base, self.verify_seconds(rows, 1) - base

    def draft_passes(self, top_k: int) -> tuple[float, float, float]:
        """Return the seconds of the first pass, of a later one, and of a pass per token of context.

        Raises:
            ValueError: the width was not measured.
        """
        first, later, longer = (
            float(self.draft_seconds(depth, top_k, context))
            for depth, context in ((0, 0), (1, 0), (0, 1))
        )
        return first, later - first, longer - first

    @overload
    def seconds(self, params: TreeParams, context_length: int) -> float: ...
    @overload
    def seconds(self, params: TreeParams, context_length: np.ndarray) -> np.ndarray: ...

    def seconds(self, params: TreeParams, context_length: np.ndarray | int) -> np.ndarray | float:
        """Return the seconds of a cycle with a tree, for one context length or many."""
        verify = self.verify_seconds(params.total_tokens, context_length)
        if params.total_tokens == 1:
            return verify
        return verify + self.draft_seconds(params.depth, params.top_k, context_length)

    def matrix(self, actions: Sequence[TreeParams], context_lengths: np.ndarray) -> np.ndarray:
        """Return the (P, A) float64 seconds of A trees at P context lengths."""
        lengths = np.asarray(context_lengths)
        return np.stack([self.seconds(tree, lengths) for tree in actions], axis=1)

    def to_json(self, path: str | Path) -> None:
        """Write the table to a file."""
        content = {"format": FORMAT, "version": VERSION} | asdict(self)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path) -> CostTable:
        """Read a file that `to_json` wrote.

        Raises:
            ValueError: the file is not a cost table, or its times are unusable.
        """
        content = read_json(path, _CostSchema, "cost table", form=(FORMAT, VERSION))
        values = {field.name: getattr(content, field.name) for field in fields(cls)}
        error = values.pop("error")
        try:
            table = cls(**values, error=None if error is None else CostError(**dict(error)))
        except ValueError as problem:
            raise ValueError(f"the cost table {str(path)!r}: {problem}") from None
        if (why := why_unusable(table)) is not None:
            raise ValueError(
                f"the cost table {str(path)!r} is unusable: {why}; measure the machine again while "
                "nothing else runs on it (eaglerl calibrate)"
            )
        return table


class _ErrorSchema(Schema):
    median: float
    worst: float
    total: float


_Column = Annotated[Items[Seconds], Field(max_length=LARGEST_TREE["total_tokens"])]


class _CostSchema(VersionedSchema):
    machine: str
    draft_dtype: str
    total_tokens: Annotated[
        Items[Annotated[int, Field(ge=1, le=LARGEST_TREE["total_tokens"])]],
        Field(min_length=1, max_length=LARGEST_TREE["total_tokens"]),
    ]
    verify_base: _Column
    verify_slope: _Column
    top_ks: Annotated[
        Items[Annotated[int, Field(ge=1, le=LARGEST_TREE["top_k"])]],
        Field(min_length=1, max_length=LARGEST_TREE["top_k"]),
    ]
    first_pass: _Column
    later_pass: _Column
    draft_slope: Seconds
    samples: Count
    error: _ErrorSchema | None = None
