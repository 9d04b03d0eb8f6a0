"""Loading of a saved policy of either algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eaglerl.resps.policies.dqn import OptimizedOnlineTreePolicy
from eaglerl.resps.policies.policy_file import read_card
from eaglerl.resps.policies.ppo import OptimizedSB3DiscretePPOOnlineTreePolicy
from eaglerl.resps.policies.resps_policy import ReSpSPolicy

POLICIES: dict[
    str, type[OptimizedSB3DiscretePPOOnlineTreePolicy] | type[OptimizedOnlineTreePolicy]
] = {
    policy.algorithm: policy
    for policy in (OptimizedSB3DiscretePPOOnlineTreePolicy, OptimizedOnlineTreePolicy)
}


def load_resps_policy(path: str | Path, **options: Any) -> ReSpSPolicy:
    """Read a policy of either algorithm.

    Args:
        path: folder that its `save` wrote.
        options: see `ReSpSPolicy.load`.

    Raises:
        ValueError: see there; or the algorithm is unknown.
    """
    algorithm = read_card(path)["algorithm"]
    if algorithm not in POLICIES:
        raise ValueError(
            f"algorithm of the policy in {str(path)!r} must be one of {sorted(POLICIES)}, got "
            f"{algorithm!r}"
        )
    return POLICIES[algorithm].load(path, **options)
