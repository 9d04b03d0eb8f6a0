"""The option ``--policy``: a trained policy, by its folder or its name, ``auto`` or ``none``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eaglerl.cli.shared.auto_policy import can_keep_auto_policy, keeping_auto_policy
from eaglerl.cli.shared.machine_cost import measured_cost

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder, TreeParams, TreePolicy
    from eaglerl.policies.policy_folder import PolicyFiles


#: Names that are no trained policies: the policy that learns while decoding, and a constant tree.
AUTO, NONE = Path("auto"), Path("none")


def find_trained_policy(policy: Path | None) -> PolicyFiles | None:
    """Find the policy of the option, without loading it; None if it is no trained one.

    Raises:
        ValueError: there is none of this name.
    """
    return None if policy in (None, AUTO, NONE) else find_chosen_policy(policy)


@contextmanager
def opened_policy(
    constant: TreeParams | None,
    policy: Path | None,
    files: PolicyFiles | None,
    cost: Path | None,
    decoder: SpeculativeDecoder,
) -> Iterator[TreeParams | TreePolicy]:
    """Open what chooses the trees of a command; what an automatic policy learns is kept.

    Args:
        constant: a constant tree, if one was given.
        policy: the option, if it was given; ``auto`` is the default.
        files: see `find_trained_policy`.
        cost: file of a cost table, if one was given.
        decoder: the decoder.

    Raises:
        ValueError: see `open_chosen_policy`.
    """
    from eaglerl.eagle3.decoder import DEFAULT_TREE
    from eaglerl.eagle3.policy import NO_DRAFT

    if constant is not None:
        yield constant
    elif files is not None:
        yield open_chosen_policy(files, cost, decoder)
    elif decoder.draft_head is None:
        yield NO_DRAFT
    elif policy == NONE or not can_keep_auto_policy(decoder):
        yield DEFAULT_TREE
    else:
        with keeping_auto_policy(decoder) as auto:
            yield auto


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
    if cost is not None and policy in (None, AUTO, NONE):
        raise typer.BadParameter(
            "only trained policies use it; give one with --policy", param_hint="--cost"
        )


def _folder(policy: Path) -> Path:
    from eaglerl.prepare import shipped_policies

    folder = policy.expanduser()
    if folder.exists():
        return folder
    shipped = {found.name: found for found in shipped_policies()}
    if str(policy) in shipped:
        return shipped[str(policy)]
    names = sorted([*shipped, str(AUTO), str(NONE)])
    raise ValueError(f"--policy must be a folder, or one of {names}, got {str(policy)!r}")
