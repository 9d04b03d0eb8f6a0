"""The option ``--actions``: the trees that a policy chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eaglerl.cli.shared.terminal import say

if TYPE_CHECKING:
    from eaglerl.actions import ActionSpace
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.traces.trace_set import Trace

#: Named action spaces, by the methods that make them.
_ACTION_SPACES = {
    "cpu": "cpu",
    "cpu-grid": "cpu_grid",
    "resps": "resps",
    "resps-grid": "resps_grid",
    # The names of release 0.1.
    "published": "resps",
    "published-bins": "resps_grid",
}


def read_actions(name: str) -> ActionSpace:
    """Return a named action space, or the one in a file.

    Raises:
        typer.BadParameter: `name` is neither.
    """
    from eaglerl.actions import ActionSpace

    if name in _ACTION_SPACES:
        return getattr(ActionSpace, _ACTION_SPACES[name])()
    if Path(name).is_file():
        return ActionSpace.from_json(name)
    raise typer.BadParameter(
        f"{name!r} is neither a file nor one of {', '.join(_ACTION_SPACES)}",
        param_hint="--actions",
    )


def leave_out_unknown(
    actions: ActionSpace, traces: Sequence[Trace], cost: CostTable
) -> ActionSpace:
    """Return the actions that the traces and the cost table cover; print how many they do not.

    Raises:
        ValueError: they cover none.
    """
    from eaglerl.traces.oracle import known_actions

    known = known_actions(actions, traces, cost)
    if len(known) < len(actions):
        say(
            f"{len(actions) - len(known)} of the {len(actions)} trees of --actions are left out: "
            "the traces or the cost table do not cover them"
        )
    return known
