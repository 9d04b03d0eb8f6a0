"""The policies of Re-SpS under the names that they were published with.

Re-SpS (https://arxiv.org/abs/2601.12212) chooses the draft tree by PPO or DQN. These are policies
of the same interface and defaults, on stable-baselines3's own algorithms, faults put right.
"""

from eaglerl.rl.published.dqn import OptimizedOnlineTreePolicy
from eaglerl.rl.published.load import load_policy
from eaglerl.rl.published.ppo import OptimizedSB3DiscretePPOOnlineTreePolicy
from eaglerl.rl.published.settings import PolicySettings

__all__ = [
    "OptimizedOnlineTreePolicy",
    "OptimizedSB3DiscretePPOOnlineTreePolicy",
    "PolicySettings",
    "load_policy",
]
