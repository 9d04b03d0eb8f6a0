"""Compile-time constants of the choice of nodes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401

import eaglerl._C as C
from eaglerl.kernels._plan import Tiles, power_of_two


@dataclass(frozen=True)
class RuleWords:
    """Where the parts of a rule begin, see ``pack_rule``."""

    bias: int
    confidence: int
    surplus: int
    level: int
    tail_inside: int
    tail_score: int
    most_levels: int
    agree: int
    disagree: int
    tail: int
    price: int
    pass_price: int
    ratio: int
    gain: int
    words: int


@dataclass(frozen=True)
class SelectionPlan:
    """Compile-time constants of a launch.

    Attributes:
        top_k: width K of the draft.
        depth: passes D after the first one.
        rows: rows R of the tree.
        lookup: most looked-up tokens L.
        pool: candidates P.
        new: lanes for the candidates of a level.
        kept: keys that one pass leaves for the next.
        lanes: keys that are sorted.
        row_lanes: lanes for the rows.
        levels: the most levels that a tree has.
        limited: whether the slots have limits of their own.
        layout: where the parts of a rule begin.
        tiles: warps and stages.
    """

    top_k: int
    depth: int
    rows: int
    lookup: int
    pool: int
    new: int
    kept: int
    lanes: int
    row_lanes: int
    levels: int
    limited: bool
    layout: RuleWords
    tiles: Tiles


@functools.lru_cache
def selection_plan(sizes: Any, limited: bool) -> SelectionPlan:
    """Return the constants for ``SelectionSizes``, and for slots with or without limits."""
    top_k, depth, rows, lookup = sizes
    kept, new = rows - 1 + lookup, power_of_two(top_k**2)
    layout = RuleWords(**C.selection_rule_layout(list(sizes)))
    return SelectionPlan(
        top_k, depth, rows, lookup, top_k + depth * top_k**2, new, kept,
        power_of_two(max(kept + new + lookup, 2)), power_of_two(rows), max(depth + 1, lookup),
        limited, layout, Tiles(1, 1, 1, num_warps=4, num_stages=1),
    )  # fmt: skip
