"""The policy that the settings name."""

from __future__ import annotations

import importlib
from typing import Any

from eaglerl.policies.batch_chains import BatchChainPolicy, chain_cost
from eaglerl_vllm.cost_file import kept_cost
from eaglerl_vllm.fixed_chains import FixedChains
from eaglerl_vllm.settings import Settings


def make_policy(settings: Settings, slots: int, tokens: int) -> Any:
    """Return a policy with the methods of `BatchChainPolicy`.

    Args:
        settings: the plugin's settings.
        slots: most requests of a step.
        tokens: most tokens of a chain, vLLM's num_speculative_tokens.

    Raises:
        ValueError: the settings do not fit vLLM's, or the file of costs is none.
    """
    if settings.policy == "auto":
        cost = chain_cost(slots, tokens)
        if settings.costs is not None:
            cost = kept_cost(settings.costs, cost)
        return BatchChainPolicy(slots, tokens, cost=cost)
    chosen = tokens if settings.tokens is None else settings.tokens
    if chosen > tokens:
        raise ValueError(
            f"eaglerl's tokens must be at most num_speculative_tokens={tokens}, got {chosen}"
        )
    if settings.policy == "fixed":
        return FixedChains(slots, chosen)
    module, name = settings.policy.split(":", 1)
    return getattr(importlib.import_module(module), name)(slots, chosen)
