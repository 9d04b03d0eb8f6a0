"""What a cycle costs on a machine: t(T, D, K, context), measured once and kept as a small table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from eaglerl.eagle3.params import TreeParams
from eaglerl.files import atomic_path

FORMAT = "eaglerl-cost"
VERSION = 1


@dataclass(frozen=True)
class CostError:
    """How well a table gives back what it was fitted to.

    Attributes:
        median: median over the measured kinds of cycle of |median measured / predicted - 1|.
        worst: largest of the same.
        total: predicted time of all measured cycles together over their measured time, less 1.
    """

    median: float
    worst: float
    total: float


@dataclass(frozen=True)
class CostTable:
    """Seconds of a cycle: a verification of T rows and D + 1 draft passes of width K.

    t(T, D, K, c) = verify(T, c) + draft(D, K, c), where c is the context's length. A row's
    attention grows with the context, so both are linear in it:
    verify(T, c) = ``verify_base[T]`` + c ``verify_slope[T]``, between the measured T by linear
    interpolation, and draft(D, K, c) = ``first_pass[K]`` + D ``later_pass[K]`` +
    c (1 + D) ``draft_slope``. A cycle that drafts nothing costs verify(1, c), one that looks its
    m drafts up in the text verify(1 + m, c).

    Attributes:
        machine: what was measured on.
        draft_dtype: precision of the draft's products.
        total_tokens: measured T, ascending from 1.
        verify_base: seconds.
        verify_slope: seconds per token of context.
        top_ks: measured K, ascending.
        first_pass: seconds of the pass over accepted tokens, with the choice of K children.
        later_pass: seconds of a pass over K nodes.
        draft_slope: seconds per token of context and pass.
        samples: measured cycles.
        error: of the fit; None for a table that was not measured.

    Raises:
        ValueError: lengths that do not fit each other, grids that do not ascend, or a negative or
            infinite number.
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

    def verify_seconds(
        self, rows: np.ndarray | int, context_length: np.ndarray | int
    ) -> np.ndarray | float:
        """Seconds of verifying rows (any shape) at context lengths that broadcast to it.

        Raises:
            ValueError: more rows than were measured, or less than one.
        """
        rows = np.asarray(rows)
        if rows.size and (rows.min() < 1 or rows.max() > self.total_tokens[-1]):
            wrong = rows.min() if rows.min() < 1 else rows.max()
            raise ValueError(f"rows must lie in 1..{self.total_tokens[-1]}, got {wrong}")
        base = np.interp(rows, self.total_tokens, self.verify_base)
        return base + context_length * np.interp(rows, self.total_tokens, self.verify_slope)

    def draft_seconds(
        self, depth: np.ndarray | int, top_k: int, context_length: np.ndarray | int
    ) -> np.ndarray | float:
        """Seconds of the first pass and of `depth` passes over `top_k` nodes.

        Raises:
            ValueError: a width that was not measured.
        """
        if top_k not in self.top_ks:
            raise ValueError(f"top_k must be one of {list(self.top_ks)}, got {top_k}")
        column = self.top_ks.index(top_k)
        passes = self.first_pass[column] + np.asarray(depth) * self.later_pass[column]
        return passes + self.draft_slope * (1 + np.asarray(depth)) * context_length

    def seconds(self, params: TreeParams, context_length: np.ndarray | int) -> np.ndarray | float:
        """Seconds of a cycle with a tree, for one context length or many."""
        verify = self.verify_seconds(params.total_tokens, context_length)
        if params.total_tokens == 1:
            return verify
        return verify + self.draft_seconds(params.depth, params.top_k, context_length)

    def matrix(self, actions: Sequence[TreeParams], context_lengths: np.ndarray) -> np.ndarray:
        """(P, A) float64 seconds of A trees at P context lengths."""
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
            ValueError: the file is not one.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"path must name a JSON file, got {str(path)!r}: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f'{str(path)!r} is no cost table: "format" must be "{FORMAT}"')
        if content.get("version") != VERSION:
            raise ValueError(
                f"version of the cost table {str(path)!r} must be {VERSION}, got "
                f"{content.get('version')!r}"
            )
        return cls._from_content(path, content)

    @classmethod
    def _from_content(cls, path: str | Path, content: Mapping[str, object]) -> CostTable:
        values: dict[str, object] = {}
        for field in fields(cls):
            value = content.get(field.name)
            kind = {"machine": str, "draft_dtype": str, "samples": int}.get(field.name, list)
            if field.name == "draft_slope":
                kind = (int, float)
            if field.name == "error":
                values["error"] = _read_error(path, value)
                continue
            numbers = kind is not list or (
                isinstance(value, list)
                and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
            )
            if not isinstance(value, kind) or not numbers:
                raise ValueError(f"{field.name!r} of the cost table {str(path)!r} is {value!r}")
            values[field.name] = tuple(value) if kind is list else value
        return cls(**values)


def _read_error(path: str | Path, value: object) -> CostError | None:
    if value is None:
        return None
    names = [field.name for field in fields(CostError)]
    if not isinstance(value, dict) or any(
        not isinstance(value.get(name), int | float) for name in names
    ):
        raise ValueError(f"'error' of the cost table {str(path)!r} is {value!r}")
    return CostError(**{name: float(value[name]) for name in names})
