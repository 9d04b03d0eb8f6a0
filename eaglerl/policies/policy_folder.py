"""Trained policies of any kind on disk: recognise and load them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl._renamed import RenamedAttribute
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.fingerprints import head_id, target_id
from eaglerl.policies.acceptance_file import FORMAT, load_acceptance
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.fallback import FallbackPolicy
from eaglerl.regular_file import check_regular, open_regular
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_file import CARD_NAME
from eaglerl.resps.policies.resps_policy import ReSpSPolicy
from eaglerl.tensor_file import open_tensors

if TYPE_CHECKING:
    from eaglerl.eagle3.decoder import SpeculativeDecoder

#: Cost table in an acceptance policy's folder, of the machine that it was fitted on.
COST_NAME = "cost.json"
# Size of the largest file that is read; the policies in `models/` have some 100,000 bytes.
_MOST_BYTES = 1 << 28


class NoPolicyError(ValueError):
    """A path does not hold a policy."""


@dataclass(frozen=True)
class PolicyFiles:
    """A policy on disk.

    Attributes:
        path: the folder of a PPO or DQN policy, or the file of an acceptance policy.
        is_acceptance: whether it is an acceptance policy.
    """

    path: Path
    is_acceptance: bool

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the files that inference reads."""
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

    identity = RenamedAttribute("fingerprint")

    def read_cost(self, cost: CostTable | str | Path | None) -> CostTable:
        """Return the given cost table, read it, or read the one next to an acceptance policy.

        Raises:
            ValueError: no table is given and the policy has none, or the file is not a cost table.
        """
        if isinstance(cost, CostTable):
            return cost
        file = self.path.with_name(COST_NAME) if cost is None else Path(cost)
        if cost is None and not file.is_file():
            raise ValueError(
                f"the policy {str(self.path)!r} needs the cost table of this machine: make one "
                "with `eaglerl calibrate`, and pass its path or put it next to the policy as "
                f"{COST_NAME}"
            )
        return CostTable.from_json(file)


def find_policy(path: str | Path) -> PolicyFiles:
    """Find the policy at a path, without loading it.

    Args:
        path: the folder of a policy, or the file of an acceptance policy.

    Raises:
        NoPolicyError: the path holds no policy; a ValueError.
        ValueError: the path holds several acceptance policies, or files that cannot be read.
    """
    path = Path(path)
    # Not `exists`: reading reports a broken link or a folder of this name.
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
    """Load a policy in its fastest form: fused into the calls of the decoding loop if possible.

    An acceptance policy falls back to the best constant tree if its file names one.

    Args:
        path: the policy's folder or file.
        decoder: the decoder whose trees it will choose.
        cost: duration of the cycles on this machine, for an acceptance policy; the default is the
            table next to the policy, of the machine that it was fitted on.

    Raises:
        ValueError: there is no policy, it belongs to another target or head, or it has no cost
            table.
    """
    files = path if isinstance(path, PolicyFiles) else find_policy(path)
    if files.is_acceptance:
        table = files.read_cost(cost)
        if decoder.draft_head is None:
            raise ValueError("decoder must have a draft head for an acceptance policy")
        model = load_acceptance(
            files.path, target_id=target_id(decoder.target), head_id=head_id(decoder.draft_head)
        )
        policy = AcceptancePolicy(model, table)
        if model.constant is None:
            return policy
        return FallbackPolicy(policy, model.constant, model.gain)
    return fastest(
        load_resps_policy(files.path, head=decoder.draft_head, tokenizer=decoder.tokenizer)
    )


def fastest(policy: ReSpSPolicy) -> TreePolicy:
    """Return a PPO or DQN policy fused into the calls of the decoding loop, if it can be fused.

    Args:
        policy: the policy.
    """
    settings = policy.settings
    # The fused call cannot use a first tree before the first decision, as `reference` does after
    # Re-SpS, and it reads neither text nor extra observations.
    if settings.reference or settings.reads_text or settings.spec.extras:
        return policy
    return policy.fused()


def _is_acceptance(file: Path) -> bool:
    """Return whether a file holds an acceptance policy rather than other weights.

    Raises:
        ValueError: the file cannot be read.
    """
    with open_tensors(file, "policy") as opened:
        return (opened.metadata() or {}).get("format") == FORMAT
