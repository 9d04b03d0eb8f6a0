"""Trained policies on disk: recognise and load them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl._renamed import RenamedAttribute
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.regular_file import check_regular, open_regular
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_file import CARD_NAME
from eaglerl.resps.policies.resps_policy import ReSpSPolicy
from eaglerl.tensor_file import open_tensors

if TYPE_CHECKING:
    from eaglerl.eagle3.decoder import SpeculativeDecoder

# Size of the largest file that is read; the policies in `models/` have some 100,000 bytes.
_MOST_BYTES = 1 << 28
# What release 0.2 wrote into the files of a kind of policy that is gone.
_ACCEPTANCE_FORMAT = "eaglerl-acceptance"


class NoPolicyError(ValueError):
    """A path does not hold a policy."""


@dataclass(frozen=True)
class PolicyFiles:
    """A policy on disk.

    Attributes:
        path: its folder.
    """

    path: Path

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the files that inference reads."""
        digest = hashlib.sha256()
        for path in sorted(self.path.iterdir()):
            if path.suffix not in (".safetensors", ".json"):
                continue
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


def find_policy(path: str | Path) -> PolicyFiles:
    """Find the policy at a path, without loading it.

    Args:
        path: the folder of a policy.

    Raises:
        NoPolicyError: the path holds no policy; a ValueError.
        ValueError: the path holds an acceptance policy of release 0.2, or files that cannot be
            read.
    """
    path = Path(path)
    # Not `exists`: reading reports a broken link or a folder of this name.
    if os.path.lexists(path / CARD_NAME):
        return PolicyFiles(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] * path.exists()
    if any(map(_is_acceptance, files)):
        raise ValueError(
            f'{str(path)!r} holds an acceptance policy, which eaglerl no longer has: policy="auto" '
            "(--policy auto) replaces it, and needs no training"
        )
    raise NoPolicyError(f"a policy must be a folder with {CARD_NAME}, got {str(path)!r}")


def load_policy(path: str | Path | PolicyFiles, decoder: SpeculativeDecoder) -> TreePolicy:
    """Load a policy in its fastest form: fused into the calls of the decoding loop if possible.

    Args:
        path: the policy's folder.
        decoder: the decoder whose trees it will choose.

    Raises:
        ValueError: there is no policy, or it belongs to another head.
    """
    files = path if isinstance(path, PolicyFiles) else find_policy(path)
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
        return (opened.metadata() or {}).get("format") == _ACCEPTANCE_FORMAT
