"""Trained policies as modes: those found in a folder that belong to the target and its head."""

from __future__ import annotations

import warnings
from pathlib import Path

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.policies.policy_folder import NoPolicyError, PolicyFiles, find_policy, load_policy
from eaglerl.server.modes import NAME, Mode

_DESCRIPTIONS = {
    True: "Trained: predicts what is accepted, and weighs it against what it costs.",
    False: "Trained by reinforcement learning: chooses the tree from the target's features.",
}


def find_policies(
    folder: str | Path, decoder: SpeculativeDecoder, *, cost: CostTable | None = None
) -> list[Mode]:
    """The policies that a folder and the folders in it hold.

    Args:
        folder: where to look.
        decoder: whose target and head the policies must be of.
        cost: what drafting and verifying cost on this machine, for policies that weigh it; without
            it they take the table that lies beside them.

    Returns:
        A mode for each, named like its folder. One that cannot be used with this decoder, whatever
        its files hold, is left out, and a warning says which and why.
    """
    root = Path(folder).resolve()
    found: list[Mode] = []
    for path in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        try:
            found.append(_mode(path.name, find_policy(path), decoder, cost))
        except NoPolicyError:
            # A folder of something else.
            continue
        except Exception as error:
            # Files of others must not keep a server from starting.
            kind = (
                "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
            )
            warnings.warn(f"the policy in {path} is left out: {kind}{error}", stacklevel=2)
    return found


def _mode(
    name: str, files: PolicyFiles, decoder: SpeculativeDecoder, cost: CostTable | None
) -> Mode:
    mode = Mode(
        name,
        _DESCRIPTIONS[files.is_acceptance],
        lambda: load_policy(files, decoder, cost=cost),
        learned=True,
    )
    if not NAME.fullmatch(name):
        raise ValueError(
            f"its folder's name is that of a mode, which must match {NAME.pattern}, got {name!r}"
        )
    # It is found out now whether it can be opened.
    mode.give_back(mode.make())
    return mode
