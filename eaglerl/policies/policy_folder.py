"""Trained policies on disk, of whatever kind: finding out which, and opening one to decode with."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.fingerprints import head_id, target_id
from eaglerl.policies.acceptance_file import FORMAT, load_acceptance
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.fallback import FallbackPolicy
from eaglerl.regular_file import check_regular, open_regular
from eaglerl.resps.policies.base import ReSpSPolicy
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_file import CARD_NAME
from eaglerl.tensor_file import open_tensors

if TYPE_CHECKING:
    from eaglerl.eagle3.decoder import SpeculativeDecoder

#: The cost table that an acceptance policy's folder may hold: of the machine that it was fitted on.
COST_NAME = "cost.json"
#: Of one file; the policies that ship have some 100,000.
_MOST_BYTES = 1 << 28


class NoPolicyError(ValueError):
    """A path holds no policy, but something else or nothing."""


@dataclass(frozen=True)
class PolicyFiles:
    """A policy on disk.

    Attributes:
        path: the folder of a published policy, or the file of an acceptance policy.
        is_acceptance: which of the two.
    """

    path: Path
    is_acceptance: bool

    @property
    def identity(self) -> str:
        """16 hexadecimal digits of SHA-256 over the files that inference reads."""
        files = [self.path]
        if not self.is_acceptance:
            files = [
                p for p in sorted(self.path.iterdir()) if p.suffix in (".safetensors", ".json")
            ]
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode() + b"\0")
            if check_regular(path, "policy's file") > _MOST_BYTES:
                raise ValueError(
                    f"the policy's file {str(path)!r} must have at most {_MOST_BYTES:,} bytes"
                )
            with open_regular(path, "policy's file") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()[:16]

    def read_cost(self, cost: CostTable | str | Path | None) -> CostTable:
        """The table given, or the file of one, else the one beside an acceptance policy.

        Raises:
            ValueError: none is given and there is none, or the file is none.
        """
        if isinstance(cost, CostTable):
            return cost
        file = self.path.with_name(COST_NAME) if cost is None else Path(cost)
        if cost is None and not file.is_file():
            raise ValueError(
                f"the policy {str(self.path)!r} needs the cost table of this machine: make one "
                f"with `eaglerl calibrate`, and name it or put it beside the policy as {COST_NAME}"
            )
        return CostTable.from_json(file)


def find_policy(path: str | Path) -> PolicyFiles:
    """Find out what a path holds, without loading it.

    Args:
        path: the folder of a policy, or the file of an acceptance policy.

    Raises:
        NoPolicyError: it holds neither; a ValueError.
        ValueError: it holds several acceptance policies, or files that cannot be read.
    """
    path = Path(path)
    # Whatever is there under the card's name: what it is, is told when it is read.
    if os.path.lexists(path / CARD_NAME):
        return PolicyFiles(path, is_acceptance=False)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] * path.exists()
    found, broken = [], []
    for file in files:
        try:
            found += [file] if _is_acceptance(file) else []
        except ValueError as error:
            broken.append(error)
    if len(found) == 1:
        return PolicyFiles(found[0], is_acceptance=True)
    if not found and broken:
        raise broken[0]
    raise (ValueError if found else NoPolicyError)(
        f"a policy must be a folder with {CARD_NAME} or one acceptance policy, or the file of "
        f"one, got {str(path)!r}, which holds {len(found)} acceptance policies"
    )


def load_policy(
    path: str | Path | PolicyFiles,
    decoder: SpeculativeDecoder,
    *,
    cost: CostTable | str | Path | None = None,
) -> TreePolicy:
    """Open a policy as it decodes fastest: within the loop's own calls where it can.

    An acceptance policy comes with its guard, if its file tells the constant tree that it must not
    fall behind.

    Args:
        path: where it lies.
        decoder: what it decides for.
        cost: time of the cycles on this machine, which an acceptance policy needs; else it takes
            the table that lies beside it, of the machine that it was fitted on.

    Raises:
        ValueError: there is no policy, it belongs to another target or head, or lacks its table.
    """
    files = path if isinstance(path, PolicyFiles) else find_policy(path)
    if files.is_acceptance:
        table = files.read_cost(cost)
        model = load_acceptance(
            files.path, target_id=target_id(decoder.target), head_id=head_id(decoder.head)
        )
        policy = AcceptancePolicy(model, table)
        if model.constant is None:
            return policy
        return FallbackPolicy(policy, model.constant, model.gain)
    return fastest(load_resps_policy(files.path, head=decoder.head, tokenizer=decoder.tokenizer))


def fastest(policy: ReSpSPolicy) -> TreePolicy:
    """A PPO or DQN policy within the decoding loop's own calls, or as it is where they cannot.

    Args:
        policy: decides.
    """
    settings = policy.settings
    # As published, the first tree comes before the first decision: only the policy itself does so.
    if settings.reference or settings.reads_text or settings.spec.extras:
        return policy
    return policy.fused()


def _is_acceptance(file: Path) -> bool:
    """Whether it is one, or weights of something else.

    Raises:
        ValueError: it cannot be read.
    """
    with open_tensors(file, "policy") as opened:
        return (opened.metadata() or {}).get("format") == FORMAT
