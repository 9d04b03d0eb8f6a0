"""The option ``--policy``: a trained policy, by its folder or its name, ``auto`` or ``none``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl.cli.shared.auto_policy import can_keep_auto_policy, keeping_auto_policy

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
    if policy is None or policy in (AUTO, NONE):
        return None
    from eaglerl.policies.policy_folder import find_policy

    return find_policy(policy_folder(policy))


@contextmanager
def opened_policy(
    constant: TreeParams | None,
    policy: Path | None,
    files: PolicyFiles | None,
    decoder: SpeculativeDecoder,
) -> Iterator[TreeParams | TreePolicy]:
    """Open what chooses the trees of a command; what an automatic policy learns is kept.

    Args:
        constant: a constant tree, if one was given.
        policy: the option, if it was given; ``auto`` is the default.
        files: see `find_trained_policy`.
        decoder: the decoder.

    Raises:
        ValueError: the policy cannot be read, or belongs to another head.
    """
    from eaglerl.eagle3.decoder import DEFAULT_TREE
    from eaglerl.eagle3.policy import NO_DRAFT
    from eaglerl.policies.policy_folder import load_policy

    if constant is not None:
        yield constant
    elif files is not None:
        yield load_policy(files, decoder)
    elif decoder.draft_head is None:
        yield NO_DRAFT
    elif policy == NONE or not can_keep_auto_policy(decoder):
        yield DEFAULT_TREE
    else:
        with keeping_auto_policy(decoder) as auto:
            yield auto


def policy_folder(
    policy: Path, option: str = "--policy", others: Sequence[Path] = (AUTO, NONE)
) -> Path:
    """Return the folder of a policy that is given by its folder, or by the name of a shipped one.

    Args:
        policy: what was given.
        option: its name, for the error.
        others: other names that the option takes, for the error.

    Raises:
        ValueError: there is none.
    """
    from eaglerl.prepare import shipped_policies

    folder = policy.expanduser()
    if folder.exists():
        return folder
    shipped = {found.name: found for found in shipped_policies()}
    if str(policy) in shipped:
        return shipped[str(policy)]
    names = sorted([*shipped, *map(str, others)])
    raise ValueError(f"{option} must be a folder, or one of {names}, got {str(policy)!r}")
