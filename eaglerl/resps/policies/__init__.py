"""The policies of Re-SpS under the names that they were published with.

Re-SpS (https://arxiv.org/abs/2601.12212) chooses the draft tree by PPO or DQN. These are policies
of the same interface and defaults, on stable-baselines3's own algorithms, faults put right.
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
