"""Policies of stable-baselines3 decide as its own `predict` does."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import chisquare
from stable_baselines3 import DQN, PPO
from torch import nn

from eaglerl.ops import PolicyWeights, policy_mlp

WIDTH, ACTIONS = 48, 23
TREES = [[2 + action, 1, 4] for action in range(ACTIONS)]


class Environment(gymnasium.Env):
    """Observations and actions of a policy; nobody steps it."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros(WIDTH, np.float32), {}

    def step(self, action):
        return np.zeros(WIDTH, np.float32), 0.0, True, False, {}


def make_model(kind: type, activation: type[nn.Module], space: spaces.Space | None = None):
    environment = Environment(space or spaces.Discrete(ACTIONS))
    kwargs = {"net_arch": [32, 16], "activation_fn": activation}
    model = kind("MlpPolicy", environment, policy_kwargs=kwargs, seed=3, device="cpu")
    # At its start, PPO's actor is nearly indifferent: every action would be a near tie.
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.SiLU])
@pytest.mark.parametrize("kind", [PPO, DQN])
def test_greedy_actions_on_10000_observations(kind: type, activation: type[nn.Module]) -> None:
    model = make_model(kind, activation)
    weights = PolicyWeights.from_sb3(model, TREES)
    observations = np.random.default_rng(0).normal(size=(10_000, WIDTH)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    outputs = [policy_mlp(part, weights) for part in torch.from_numpy(observations).split(1000)]
    actions = torch.cat([output.action for output in outputs]).numpy()
    logits = torch.cat([output.logits for output in outputs])
    top = logits.topk(2).values
    # Two sums in float32 may order logits differently that are this close, and then only.
    near_ties = ((top[:, 0] - top[:, 1]) < 1e-5).numpy()
    assert near_ties.sum() < 10
    assert (actions == expected)[~near_ties].all()
    assert len(set(expected.tolist())) > 5
    params = torch.cat([output.params for output in outputs])
    assert (params[:, 0].numpy() == 2 + actions).all()


def test_several_decisions_at_once() -> None:
    model = make_model(PPO, nn.Tanh, spaces.MultiDiscrete([ACTIONS] * 3))
    weights = PolicyWeights.from_sb3(model, TREES)
    assert weights.horizon == 3
    observations = np.random.default_rng(1).normal(size=(50, WIDTH)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    output = policy_mlp(torch.from_numpy(observations), weights)
    actual = output.logits.unflatten(1, (3, ACTIONS)).argmax(-1)
    assert (actual.numpy() == expected).all()
    assert (output.action.numpy() == expected[:, 0]).all()


def test_drawn_actions_follow_the_softmax() -> None:
    trees = [[*tree, action] for action, tree in enumerate(TREES)]  # with tokens to look up
    weights = PolicyWeights.from_sb3(make_model(PPO, nn.Tanh), trees)
    assert weights.actions.tolist() == trees
    observation = torch.randn(1, WIDTH)
    temperature, draws = 2.0, 40_000
    logits = policy_mlp(observation, weights).logits[0].double()
    expected = torch.softmax(logits / temperature, -1) * draws
    rows = observation.expand(1000, WIDTH).contiguous()
    counts = torch.zeros(ACTIONS)
    for offset in range(draws // 1000):
        out = policy_mlp(rows, weights, temperature=temperature, seed=7, offset=offset)
        counts += torch.bincount(out.action, minlength=ACTIONS)
    often = expected >= 5
    assert int(often.sum()) >= 5
    rest = torch.stack([counts[~often].sum(), expected[~often].sum()])
    observed = torch.cat((counts[often], rest[:1]))
    wanted = torch.cat((expected[often], rest[1:]))
    keep = wanted > 0
    assert chisquare(observed[keep], wanted[keep]).pvalue > 0.01


def test_other_policies_are_refused() -> None:
    model = make_model(PPO, nn.Tanh)
    with pytest.raises(ValueError, match=r"horizon \* actions"):
        PolicyWeights.from_sb3(model, TREES[:-1])
    uneven = make_model(PPO, nn.Tanh, spaces.MultiDiscrete([ACTIONS, 5]))
    with pytest.raises(
        ValueError, match=r"the same number of actions for every step, got \[23, 5\]"
    ):
        PolicyWeights.from_sb3(uneven, TREES)
    continuous = make_model(PPO, nn.Tanh, spaces.Box(-1, 1, (2,)))
    with pytest.raises(ValueError, match=r"horizon \* actions"):
        PolicyWeights.from_sb3(continuous, TREES)
