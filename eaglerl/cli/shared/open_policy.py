"""The option ``--policy``: a trained policy, given by its folder or by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eaglerl.cli.shared.machine_cost import measured_cost
from eaglerl.packaged_models import MODELS

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder, TreePolicy
    from eaglerl.policies.policy_folder import PolicyFiles


def find_chosen_policy(policy: Path) -> PolicyFiles:
    """Find a policy, without loading it.

    Args:
        policy: its folder or file, or the name of a policy that comes with eaglerl.

    Raises:
        ValueError: there is none.
    """
    from eaglerl.policies.policy_folder import find_policy

    return find_policy(_folder(policy))


def open_chosen_policy(
    files: PolicyFiles, cost: Path | None, decoder: SpeculativeDecoder
) -> TreePolicy:
    """Open a policy; measure this machine's cost table first if the policy needs one.

    Args:
        files: see `find_chosen_policy`.
        cost: file of a cost table, if one was given.
        decoder: the decoder that the policy chooses trees for.

    Raises:
        ValueError: the policy cannot be read, or belongs to another target or head.
    """
    from eaglerl.policies.policy_folder import load_policy

    return load_policy(files, decoder, cost=measured_cost(cost, decoder, files))


def check_cost_is_used(cost: Path | None, policy: Path | None) -> None:
    """Check that a cost table is given only with a policy.

    Raises:
        typer.BadParameter: it is given without one.
    """
    if cost is not None and policy is None:
        raise typer.BadParameter("only policies use it; give --policy", param_hint="--cost")


def default_policy(model: str, draft: Path | None) -> Path | None:
    """Return the policy that comes with a model and its head; None if there is none."""
    from eaglerl.prepare import default_policy_path

    return None if draft is not None or model not in MODELS else default_policy_path(model)


def _folder(policy: Path) -> Path:
    from eaglerl.prepare import shipped_policies

    folder = policy.expanduser()
    if folder.exists():
        return folder
    shipped = {found.name: found for found in shipped_policies()}
    if str(policy) in shipped:
        return shipped[str(policy)]
    raise ValueError(f"--policy must be a folder, or one of {sorted(shipped)}, got {str(policy)!r}")
