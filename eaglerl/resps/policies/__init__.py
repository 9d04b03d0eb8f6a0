"""The policies of Re-SpS under their original names.

Re-SpS chooses the draft tree by PPO or DQN. These policies have the same interface and defaults,
but run on the algorithms of stable-baselines3, with the faults corrected.
"""

from eaglerl.resps.policies.dqn import OptimizedOnlineTreePolicy
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_settings import PolicySettings
from eaglerl.resps.policies.ppo import OptimizedSB3DiscretePPOOnlineTreePolicy

__all__ = [
    "OptimizedOnlineTreePolicy",
    "OptimizedSB3DiscretePPOOnlineTreePolicy",
    "PolicySettings",
    "load_resps_policy",
]
