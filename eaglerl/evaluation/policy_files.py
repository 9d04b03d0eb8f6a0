"""Finding out what a folder of a policy holds, and loading it for the decoding loop."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.params import TreePolicy
from eaglerl.evaluation.shuffled import ShuffledProgress
from eaglerl.rl.acceptance_file import FORMAT, load_acceptance
from eaglerl.rl.acceptance_policy import AcceptancePolicy
from eaglerl.rl.baselines import ShuffledStates
from eaglerl.rl.cost import CostTable
from eaglerl.rl.published.files import CARD_NAME
from eaglerl.rl.published.load import load_policy


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
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:16]


def find_policy(path: Path) -> PolicyFiles:
    """Find out what a path holds, without loading it.

    Args:
        path: the folder of a policy, or the file of an acceptance policy.

    Raises:
        ValueError: it holds neither, or several acceptance policies.
    """
    if (path / CARD_NAME).is_file():
        return PolicyFiles(path, is_acceptance=False)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    found = [file for file in files if file.is_file() and _is_acceptance(file)]
    if len(found) != 1:
        raise ValueError(
            f"a policy must be a folder with {CARD_NAME} or one acceptance policy, or the file of "
            f"one, got {str(path)!r}, which holds {len(found)} acceptance policies"
        )
    return PolicyFiles(found[0], is_acceptance=True)


def load_live_policy(
    files: PolicyFiles,
    decoder: SpeculativeDecoder,
    *,
    cost: CostTable | None,
    target_id: str,
    head_id: str,
    lookups: bool = True,
    shuffled: bool = False,
    seed: int = 0,
) -> tuple[TreePolicy, Any]:
    """Load a policy as it decodes fastest: within the loop's own calls where it can.

    Args:
        files: where it lies.
        decoder: what it decides for.
        cost: of this machine; an acceptance policy needs it.
        target_id: hash of the target.
        head_id: hash of the head.
        lookups: False takes an acceptance policy's looked-up chains away.
        shuffled: show it the states of other cycles; it then decides outside the loop's calls.
        seed: of the shuffling.

    Returns:
        The policy for the loop, and the one that counts cache hits, None where there is no cache.

    Raises:
        ValueError: it belongs to another target or head, or lacks its cost table.
    """
    if files.is_acceptance:
        if cost is None:
            raise ValueError(f"the policy {str(files.path)!r} needs a cost table")
        model = load_acceptance(files.path, target_id=target_id, head_id=head_id)
        if not lookups:
            model = replace(model, chain_length=0, chain_net=None)
        policy: Any = AcceptancePolicy(model, cost)
        return (ShuffledProgress(policy, seed=seed) if shuffled else policy), None
    policy = load_policy(files.path, head=decoder.head, tokenizer=decoder.tokenizer)
    if shuffled:
        return ShuffledStates(policy, seed=seed), policy
    spec = policy.settings.spec
    # As published, the first tree comes before the first decision: only the policy itself does so.
    if policy.settings.reference or spec.source == "context" or spec.extras:
        return policy, policy
    fused = policy.fused()
    return fused, fused


def cache_counts(counter: Any) -> tuple[int, int] | None:
    """Hits and misses so far of what `load_live_policy` gave; None where there is no cache."""
    if counter is None:
        return None
    if hasattr(counter, "cache"):
        stats = counter.cache.stats()
        return stats.hits, stats.misses
    counts = counter.statistics.counts
    return counts["hits"], counts["misses"]


def _is_acceptance(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False
