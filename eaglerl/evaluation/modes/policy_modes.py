"""Trained policies as modes: as they are, or without their cache or their states."""

from __future__ import annotations

from typing import Any

from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.policies.baselines import ShuffledStates
from eaglerl.policies.policy_folder import PolicyFiles, fastest, find_policy, load_policy
from eaglerl.resps.policies.load_saved import load_resps_policy

__all__ = ["PolicyFiles", "cache_counts", "find_policy", "load_live_policy"]


def load_live_policy(
    files: PolicyFiles, decoder: SpeculativeDecoder, *, kind: str, seed: int = 0
) -> tuple[TreePolicy, Any]:
    """Load a policy for the decoding loop.

    Args:
        files: the policy's files.
        decoder: the decoder that it decides for.
        kind: "policy": as `load_policy` returns it; "uncached": without its action cache;
            "shuffled": shown the states of other cycles, and called from Python in every cycle.
        seed: seed of the shuffling.

    Returns:
        The policy for the loop, and the object that counts its cache's hits.

    Raises:
        ValueError: the policy belongs to another head.
    """
    if kind == "policy":
        policy = load_policy(files, decoder)
        return policy, policy
    chooser = load_resps_policy(files.path, head=decoder.draft_head, tokenizer=decoder.tokenizer)
    if kind == "uncached":
        chooser.set_action_cache(enabled=False)
        policy = fastest(chooser)
        return policy, policy
    return ShuffledStates(chooser, seed=seed), chooser


def cache_counts(policy: Any) -> tuple[int, int] | None:
    """Return the hits and misses so far of a policy's cache, or None if it has no cache."""
    if hasattr(policy, "cache"):
        stats = policy.cache.stats()
        return stats.hits, stats.misses
    if hasattr(policy, "statistics"):
        counts = policy.statistics.counts
        return counts["hits"], counts["misses"]
    return None
