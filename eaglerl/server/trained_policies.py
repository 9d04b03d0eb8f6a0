"""Trained policies as modes: those in a folder that belong to the head."""

from __future__ import annotations

import warnings
from pathlib import Path

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.policies.policy_folder import NoPolicyError, PolicyFiles, find_policy, load_policy
from eaglerl.server.modes import NAME, Mode

_DESCRIPTION = "Trained by reinforcement learning: chooses the tree from the target's features."


def find_policies(folder: str | Path, decoder: SpeculativeDecoder) -> list[Mode]:
    """Find the trained policies in a folder and in its subfolders.

    Args:
        folder: where to look.
        decoder: the policies must belong to its head.

    Returns:
        A mode for each policy, named after its folder. A policy that cannot be used with this
        decoder is left out with a warning that gives the reason.
    """
    root = Path(folder).resolve()
    found: list[Mode] = []
    for path in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        try:
            found.append(_mode(path.name, find_policy(path), decoder))
        except NoPolicyError:
            # The folder holds something else.
            continue
        except Exception as error:
            # A broken file must not keep the server from starting.
            kind = (
                "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
            )
            warnings.warn(f"the policy in {path} is left out: {kind}{error}", stacklevel=2)
    return found


def _mode(name: str, files: PolicyFiles, decoder: SpeculativeDecoder) -> Mode:
    mode = Mode(name, _DESCRIPTION, lambda: load_policy(files, decoder), trained=True)
    if not NAME.fullmatch(name):
        raise ValueError(
            f"the name of its folder must match {NAME.pattern} to name a mode, got {name!r}"
        )
    # Loaded once now, so that a policy that cannot be opened is found at the start.
    mode.give_back(mode.make())
    return mode
