"""Compile-time constants of acceptance and of prompt lookup."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from eaglerl.kernels._plan import Tiles, power_of_two


@dataclass(frozen=True)
class TablePlan:
    """Compile-time constants of an ``NgramTable``.

    Attributes:
        capacity: most tokens of a text.
        orders: n-grams of 2 to orders + 1 tokens.
        places: of the table of each n.
        proposed: tokens that a match proposes.
        order_lanes: lanes for the orders.
        proposed_lanes: lanes for a proposal.
    """

    capacity: int
    orders: int
    places: int
    proposed: int
    order_lanes: int
    proposed_lanes: int


@dataclass(frozen=True)
class AcceptPlan:
    """Compile-time constants of a launch.

    Attributes:
        rows: rows of a tree; 0 where there is none.
        longest: the most rows of a path; 0 where there is none.
        row_lanes: lanes for the rows.
        path_lanes: lanes for a path.
        table: those of the table; None without one.
        tiles: warps and stages.
    """

    rows: int
    longest: int
    row_lanes: int
    path_lanes: int
    table: TablePlan | None
    tiles: Tiles


@functools.lru_cache
def accept_plan(rows: int, longest: int, table: Any) -> AcceptPlan:
    """Return the constants.

    Args:
        rows: see ``AcceptPlan``.
        longest: see there.
        table: ``TableSizes``, or None.
    """
    plan = None
    if table is not None:
        lanes = power_of_two(table.orders), power_of_two(max(table.proposed, 1))
        plan = TablePlan(*table, *lanes)
    # A single warp appends to a text: its lanes wait for one another at every token.
    tiles = Tiles(1, 1, 1, num_warps=4 if rows > 32 else 1, num_stages=1)
    lanes = power_of_two(max(rows, 1)), power_of_two(max(longest, 1))
    return AcceptPlan(rows, longest, *lanes, plan, tiles)
