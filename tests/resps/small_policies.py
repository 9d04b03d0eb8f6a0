"""The policies of Re-SpS at the size of tests."""

import pytest
import torch

from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies import (
    OptimizedOnlineTreePolicy,
    OptimizedSB3DiscretePPOOnlineTreePolicy,
)

from ..traces.planted import ACTIONS, WIDTH
from ..traces.test_oracle import ACTIONS as TREES

PPO, DQN = OptimizedSB3DiscretePPOOnlineTreePolicy, OptimizedOnlineTreePolicy
SMALL = {PPO: {"n_steps": 8, "batch_size": 4, "n_epochs": 2}, DQN: {"net_arch": (16, 8, 8)}}
BOTH = pytest.mark.parametrize("policy_class", [PPO, DQN])


def make_policy(policy_class: type, **options: object):
    settings = {"hidden_size": WIDTH, "actions": ACTIONS, "action_cache_steps": 3}
    return policy_class(**{**settings, **SMALL[policy_class], **options})


def policy_for(decoder, policy_class: type, **options: object):
    """A policy that chooses trees for a decoder, from the features of its head."""
    head = decoder.draft_head
    width = head.config.hidden_size
    return make_policy(policy_class, hidden_size=width, actions=TREES, head=head, **options)


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def same_weights(first: PolicyWeights, second: PolicyWeights) -> bool:
    """Whether two policies are equal, bit by bit."""
    one, other = first.tensors(), second.tensors()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
