"""The option ``--policy``: a trained policy by its folder, or the name of one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eaglerl.cli.shared.machine_cost import measured_cost
from eaglerl.prepare import MODELS, default_policy_path, shipped_policies

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder, TreePolicy
    from eaglerl.policies.policy_folder import PolicyFiles


def find_chosen_policy(policy: Path) -> PolicyFiles:
    """Find a policy, without loading it.

    Args:
        policy: its folder or file, or the name of a shipped one.

    Raises:
        ValueError: there is none.
    """
    from eaglerl.policies.policy_folder import find_policy

    return find_policy(_folder(policy))


def open_chosen_policy(
    files: PolicyFiles, cost: Path | None, decoder: SpeculativeDecoder
) -> TreePolicy:
    """Open a policy; a machine that is unknown is measured first where the policy needs its costs.

    Args:
        files: see `find_chosen_policy`.
        cost: table of `calibrate`, if one was given.
        decoder: what it decides for.

    Raises:
        ValueError: it cannot be read, or belongs to another target or head.
    """
    from eaglerl.policies.policy_folder import load_policy

    return load_policy(files, decoder, cost=measured_cost(cost, decoder, files))


def check_cost_is_used(cost: Path | None, policy: Path | None) -> None:
    """Check that a table of costs is not given where nothing decides by it.

    Raises:
        typer.BadParameter: it is, without a policy.
    """
    if cost is not None and policy is None:
        raise typer.BadParameter("policies decide by it; give --policy", param_hint="--cost")


def default_policy(model: str, draft: Path | None) -> Path | None:
    """The policy that is shipped for a model and its own head; None where there is none."""
    return None if draft is not None or model not in MODELS else default_policy_path(model)


def _folder(policy: Path) -> Path:
    folder = policy.expanduser()
    if folder.exists():
        return folder
    shipped = {found.name: found for found in shipped_policies()}
    if str(policy) in shipped:
        return shipped[str(policy)]
    raise ValueError(
        f"--policy must be a folder, or one of the shipped {sorted(shipped)}, got {str(policy)!r}"
    )
