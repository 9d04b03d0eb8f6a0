"""Trained policies as modes: as they are, or without fallback, prompt lookup, cache or states."""

from __future__ import annotations

from typing import Any

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.evaluation.modes.shuffled_states import ShuffledProgress
from eaglerl.policies.acceptance_file import load_acceptance
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.baselines import ShuffledStates
from eaglerl.policies.policy_folder import COST_NAME, PolicyFiles, fastest, find_policy, load_policy
from eaglerl.resps.policies.load_saved import load_resps_policy

__all__ = ["COST_NAME", "PolicyFiles", "cache_counts", "find_policy", "load_live_policy"]


def load_live_policy(
    files: PolicyFiles,
    decoder: SpeculativeDecoder,
    *,
    kind: str,
    cost: CostTable | None,
    target_id: str,
    head_id: str,
    seed: int = 0,
) -> tuple[TreePolicy, Any]:
    """Load a policy for the decoding loop.

    Args:
        files: the policy's files.
        decoder: the decoder that it decides for.
        kind: "policy": as `load_policy` returns it; "unguarded": an acceptance policy without its
            fallback; "trees-only": also without prompt lookup; "uncached": a PPO or DQN policy
            without its action cache; "shuffled": shown the states of other cycles, without its
            fallback, and called from Python in every cycle.
        cost: cost table of this machine; by default, an acceptance policy uses the table beside it.
        target_id: fingerprint of the target.
        head_id: fingerprint of the head.
        seed: seed of the shuffling.

    Returns:
        The policy for the loop, and the object that counts its cache's hits, or None.

    Raises:
        ValueError: the policy belongs to another target or head, or has no cost table.
    """
    if kind == "policy":
        policy = load_policy(files, decoder, cost=cost)
        return policy, policy
    if files.is_acceptance:
        model = load_acceptance(files.path, target_id=target_id, head_id=head_id)
        if kind == "trees-only":
            model = model.without_lookups()
        bare = AcceptancePolicy(model, files.read_cost(cost))
        return (ShuffledProgress(bare, seed=seed) if kind == "shuffled" else bare), None
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
