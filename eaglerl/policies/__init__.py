"""Policies: what chooses the draft tree while decoding."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.policies.auto_policy import AutoPolicy
    from eaglerl.policies.baselines import (
        DraftConfidencePolicy,
        Exp3Policy,
        RandomPolicy,
        ShuffledStates,
        TierPolicy,
        UCB1Policy,
        best_constant,
    )
    from eaglerl.policies.batch_auto import BatchAutoPolicy
    from eaglerl.policies.batch_chains import BatchChainPolicy
    from eaglerl.policies.limited_policy import LimitedPolicy
    from eaglerl.policies.lookup_rule import LookupRule, best_lookup_rule, lookup_alone
    from eaglerl.policies.online_policy import OnlinePolicy

__all__ = [
    "AutoPolicy",
    "BatchAutoPolicy",
    "BatchChainPolicy",
    "DraftConfidencePolicy",
    "Exp3Policy",
    "LimitedPolicy",
    "LookupRule",
    "OnlinePolicy",
    "RandomPolicy",
    "ShuffledStates",
    "TierPolicy",
    "UCB1Policy",
    "best_constant",
    "best_lookup_rule",
    "lookup_alone",
]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "AutoPolicy": "eaglerl.policies.auto_policy",
        "BatchAutoPolicy": "eaglerl.policies.batch_auto",
        "BatchChainPolicy": "eaglerl.policies.batch_chains",
        "DraftConfidencePolicy": "eaglerl.policies.baselines",
        "Exp3Policy": "eaglerl.policies.baselines",
        "LimitedPolicy": "eaglerl.policies.limited_policy",
        "LookupRule": "eaglerl.policies.lookup_rule",
        "OnlinePolicy": "eaglerl.policies.online_policy",
        "RandomPolicy": "eaglerl.policies.baselines",
        "ShuffledStates": "eaglerl.policies.baselines",
        "TierPolicy": "eaglerl.policies.baselines",
        "UCB1Policy": "eaglerl.policies.baselines",
        "best_constant": "eaglerl.policies.baselines",
        "best_lookup_rule": "eaglerl.policies.lookup_rule",
        "lookup_alone": "eaglerl.policies.lookup_rule",
    },
)
