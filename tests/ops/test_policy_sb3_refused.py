"""What a model does besides its layers is found out by what it predicts, and refused."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import nn

from eaglerl.ops import PolicyWeights, check_reproduced, policy_mlp

WIDTH, ACTIONS = 12, 5
TREES = [[2 + action, 1, 4] for action in range(ACTIONS)]
VECTOR = spaces.Box(-np.inf, np.inf, (WIDTH,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class Environment(gymnasium.Env):
    """Draws observations about 3, of scale 2."""

    def __init__(self, action: spaces.Space, observation: spaces.Space = VECTOR) -> None:
        self.action_space, self.observation_space = action, observation
        self.draw = np.random.default_rng(0)

    def _seen(self) -> Any:
        if self.observation_space is not VECTOR:
            return self.observation_space.sample()
        return self.draw.normal(3, 2, WIDTH).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        return self._seen(), {}

    def step(self, action):
        return self._seen(), 0.0, bool(self.draw.random() < 0.1), False, {}


def model_of(
    kind: type = PPO,
    action: spaces.Space | None = None,
    observation: spaces.Space = VECTOR,
    policy: str | type = "MlpPolicy",
    env: Any = None,
    **kwargs: Any,
) -> Any:
    env = env or Environment(action or spaces.Discrete(ACTIONS), observation)
    own = {"n_steps": 8} if kind in (PPO, A2C) else {}
    own |= {"batch_size": 8} if kind is PPO else {}
    model = kind(policy, env, policy_kwargs=kwargs, seed=3, device="cpu", **own)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


class Scaled(FlattenExtractor):
    """Has the parent's shape, and halves what it reads."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) / 2


class Late(FlattenExtractor):
    """Differs for large observations only."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations).clamp(-30, 30)


class Renamed(BaseFeaturesExtractor):
    """Computes what FlattenExtractor does under another name."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, WIDTH)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations.flatten(1)


class Normed(FlattenExtractor):
    """With a layer of its own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(observations))


class Recurrent(PPO):
    """Keeps a state, as sb3-contrib's RecurrentPPO does."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        actions, _ = super().predict(observation, deterministic=deterministic)
        return actions, (np.zeros(1),)


class Masked(DQN):
    """Never takes action 0."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        actions, state = super().predict(observation, deterministic=deterministic)
        return np.where(actions == 0, 1, actions), state


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "Box": (lambda: model_of(action=spaces.Box(-1, 1, (ACTIONS,))), r"A = 5, .*got Box\("),
    "Box, gSDE": (
        lambda: PPO("MlpPolicy", Environment(spaces.Box(-1, 1, (ACTIONS,))), n_steps=8,
                    batch_size=8, use_sde=True, device="cpu"), r"got Box\("),
    "Box, squashed": (
        lambda: PPO("MlpPolicy", Environment(spaces.Box(-1, 1, (ACTIONS,))), n_steps=8,
                    batch_size=8, use_sde=True, policy_kwargs={"squash_output": True},
                    device="cpu"), r"got Box\("),
    "MultiBinary": (lambda: model_of(action=spaces.MultiBinary(ACTIONS)), r"got MultiBinary\("),
    "one MultiBinary": (lambda: model_of(action=spaces.MultiBinary(1)), r"got MultiBinary\("),
    "other trees": (lambda: model_of(action=spaces.Discrete(ACTIONS + 1)), r"got Discrete\(6\)"),
    "uneven": (lambda: model_of(action=spaces.MultiDiscrete([5, 4])), r"got \[5, 4\]"),
    "image": (lambda: model_of(observation=IMAGE), r"observations of shape \(3, 36, 36\)"),
    "cnn": (lambda: model_of(observation=IMAGE, policy="CnnPolicy"), r"NatureCNN"),
    "Dict": (
        lambda: model_of(observation=spaces.Dict({"a": VECTOR}), policy="MultiInputPolicy"),
        r"Box as its observation space, got Dict"),
    "one-hot": (
        lambda: model_of(observation=spaces.Discrete(WIDTH)), r"Box as .* got Discrete\(12\)"),
    "bits": (
        lambda: model_of(observation=spaces.MultiBinary(WIDTH)), r"Box as .* got MultiBinary"),
    "scaled": (lambda: model_of(features_extractor_class=Scaled), r"\d% of 1280 .*Scaled"),
    "late": (lambda: model_of(features_extractor_class=Late), r"\d% of 1280 .*Late"),
    "late, DQN": (lambda: model_of(DQN, features_extractor_class=Late), r"\d% of 1280 .*Late"),
    "normed": (lambda: model_of(features_extractor_class=Normed), r"\d% of 1280 .*Normed"),
    "LeakyReLU": (lambda: model_of(activation_fn=nn.LeakyReLU), r"got \['LeakyReLU'\]"),
    "no hidden layer": (lambda: model_of(net_arch=[]), r"with a hidden layer"),
    "masked": (lambda: model_of(Masked), r"decides differently .*\d% of 1280"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_reproduced_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        PolicyWeights.from_sb3(make(), TREES[:1] if name == "one MultiBinary" else TREES)


def test_a_state_is_refused() -> None:
    model = Recurrent(
        "MlpPolicy", Environment(spaces.Discrete(ACTIONS)), n_steps=8, batch_size=8, device="cpu"
    )
    with pytest.raises(ValueError, match="got one with a state"):
        PolicyWeights.from_sb3(model, TREES)


def test_scores_count_where_actions_do_not_tell() -> None:
    # ReLU without biases decides the same whatever the scale of what it reads.
    model = model_of(DQN, activation_fn=nn.ReLU, features_extractor_class=Scaled)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    with pytest.raises(ValueError, match=r"scores its actions differently .*100.0% of 1280"):
        PolicyWeights.from_sb3(model, TREES)


def test_a_name_is_no_reason() -> None:
    for kind in (PPO, A2C, DQN):
        model = model_of(kind, features_extractor_class=Renamed)
        assert PolicyWeights.from_sb3(model, TREES).num_actions == ACTIONS


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (WIDTH,), np.float32),
        spaces.Box(0, 255, (WIDTH,), np.uint8),
        spaces.Box(-3.4e38, 3.4e38, (3, WIDTH // 3), np.float64),
        spaces.Box(np.array([0] * 6 + [-np.inf] * 6), np.array([1e9] * 12), (WIDTH,), np.float64),
    ],
)
def test_observations_of_every_range(space: spaces.Box) -> None:
    model = model_of(observation=space)
    weights = PolicyWeights.from_sb3(model, TREES)
    seen = np.stack([space.sample() for _ in range(50)])
    with np.errstate(all="ignore"):
        seen = np.clip(seen, -1e3, 1e3)
    expected, _ = model.predict(seen, deterministic=True)
    rows = torch.from_numpy(seen.reshape(50, WIDTH).astype(np.float32))
    out = policy_mlp(rows, weights)
    top = out.logits.topk(2).values
    clear = (top[:, 0] - top[:, 1] > 1e-3).numpy()
    assert clear.sum() > 20
    assert (out.action.numpy() == expected)[clear].all()


def test_ties_are_no_difference() -> None:
    # Nothing but ties, exact ones in half of the actions.
    for kind in (PPO, DQN):
        model = model_of(kind)
        layer = model.policy.action_net if kind is PPO else model.policy.q_net.q_net[-1]
        with torch.no_grad():
            layer.weight[2:] = layer.weight[1]
            layer.bias[2:] = layer.bias[1]
        assert PolicyWeights.from_sb3(model, TREES).num_actions == ACTIONS
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        assert PolicyWeights.from_sb3(model, TREES).num_actions == ACTIONS


def test_the_model_is_left_as_it_was() -> None:
    for kind in (PPO, DQN):
        model = model_of(kind, features_extractor_class=Renamed)
        model.policy.set_training_mode(True)
        next(model.policy.children()).eval()
        modes = [part.training for part in model.policy.modules()]
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        space = repr(model.action_space.np_random.bit_generator.state)
        PolicyWeights.from_sb3(model, TREES)
        assert [part.training for part in model.policy.modules()] == modes
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        assert repr(model.action_space.np_random.bit_generator.state) == space
        for name, value in model.policy.state_dict().items():
            assert torch.equal(value, before[name])
        assert all(parameter.grad is None for parameter in model.policy.parameters())


def normalized(**options: Any) -> tuple[Any, VecNormalize]:
    """Return a model and its VecNormalize, whose statistics are of some steps."""
    env = VecNormalize(
        VecMonitor(DummyVecEnv([lambda: Environment(spaces.Discrete(ACTIONS))])), **options
    )
    model = model_of(env=env)
    env.reset()
    for _ in range(200):
        env.step(np.zeros(1, dtype=int))
    return model, env


def test_vec_normalize_is_folded_in(tmp_path: Path) -> None:
    model, env = normalized()
    assert abs(env.obs_rms.mean.mean() - 3) < 0.2
    with pytest.raises(ValueError, match=r"standardised by VecNormalize: give vec_normalize=model"):
        PolicyWeights.from_sb3(model, TREES)
    with pytest.warns(UserWarning, match="clip_obs=10 is not reproduced"):
        weights = PolicyWeights.from_sb3(model, TREES, vec_normalize=env)
    seen = np.random.default_rng(5).normal(3, 2, (1000, WIDTH)).astype(np.float32)
    expected, _ = model.predict(env.normalize_obs(seen), deterministic=True)
    out = policy_mlp(torch.from_numpy(seen), weights)
    top = out.logits.topk(2).values
    clear = (top[:, 0] - top[:, 1] > 1e-4).numpy()
    assert clear.mean() > 0.98
    assert (out.action.numpy() == expected)[clear].all()
    # The statistics matter here.
    assert (model.predict(seen, deterministic=True)[0] != expected).mean() > 0.1


def test_what_is_left_of_a_vec_normalize_is_enough(tmp_path: Path) -> None:
    model, env = normalized()
    model.learn(8)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    with pytest.raises(ValueError, match=r"VecNormalize that was not loaded with it"):
        PolicyWeights.from_sb3(loaded, TREES)
    with pytest.warns(UserWarning, match="clip_obs"):
        PolicyWeights.from_sb3(loaded, TREES, vec_normalize=env)


def test_clipping_is_not_passed_over() -> None:
    model, env = normalized(clip_obs=1.5)
    with pytest.raises(ValueError, match=r"clip_obs=1.5 changes \d+\.\d% of normally distributed"):
        PolicyWeights.from_sb3(model, TREES, vec_normalize=env)
    # Where it cannot clip, there is nothing to say.
    model, env = normalized(clip_obs=1e9)
    env.observation_space = model.observation_space = spaces.Box(-50, 50, (WIDTH,), np.float32)
    assert PolicyWeights.from_sb3(model, TREES, vec_normalize=env).num_actions == ACTIONS


def test_statistics_that_float32_cannot_hold_are_refused() -> None:
    model, env = normalized(clip_obs=1e9)
    env.obs_rms.mean[:], env.obs_rms.var[:] = 1e6, 1e-4
    refused = pytest.raises(ValueError, match="differently than its layers")
    with refused, pytest.warns(UserWarning, match="clip_obs"):
        PolicyWeights.from_sb3(model, TREES, vec_normalize=env)


def test_rewards_alone_may_be_normalized() -> None:
    model, env = normalized(norm_obs=False)
    assert PolicyWeights.from_sb3(model, TREES).num_actions == ACTIONS
    assert PolicyWeights.from_sb3(model, TREES, vec_normalize=env).num_actions == ACTIONS


def test_other_statistics_are_refused() -> None:
    model = model_of(
        env=gymnasium.wrappers.NormalizeObservation(Environment(spaces.Discrete(ACTIONS)))
    )
    with pytest.raises(ValueError, match=r"standardised by NormalizeObservation"):
        PolicyWeights.from_sb3(model, TREES)
    with pytest.raises(ValueError, match=r"must be a VecNormalize, got DummyVecEnv"):
        PolicyWeights.from_sb3(model_of(), TREES, vec_normalize=model.env)


def test_a_fc_stands_before_the_statistics() -> None:
    model, env = normalized()
    fc = nn.Linear(3 * 8, WIDTH)
    with pytest.warns(UserWarning, match="clip_obs"):
        weights = PolicyWeights.from_sb3(model, TREES, fc=fc, vec_normalize=env)
    with pytest.warns(UserWarning, match="clip_obs"):
        alone = PolicyWeights.from_sb3(model, TREES, vec_normalize=env)
    assert torch.equal(weights.fc_weight, fc.weight)
    assert torch.equal(weights.hidden_weights[0], alone.hidden_weights[0])
    assert torch.equal(weights.hidden_biases[0], alone.hidden_biases[0])


def test_policies_that_are_adopted_are_checked() -> None:
    model = model_of(DQN, features_extractor_class=Scaled)
    with pytest.raises(ValueError, match=r"\d% of 1280"):
        check_reproduced(model, PolicyWeights.from_modules(list(model.q_net.q_net), TREES))


# --- modules


class Tripled(nn.Linear):
    """Has weights, and more."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(values)


class PlusOne(nn.Module):
    """A norm as Gemma has it: (1 + weight)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], 1 + self.weight, self.eps)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def chain(first: nn.Module, activation: nn.Module | None = None) -> list[nn.Module]:
    return [first, activation or nn.Tanh(), nn.Linear(8, ACTIONS)]


def hooked() -> nn.Module:
    layer = nn.Linear(WIDTH, 8)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def patched() -> nn.Module:
    activation = nn.Tanh()
    activation.forward = lambda values: values.clamp(-1, 1)
    return activation


@pytest.mark.parametrize(
    ("mlp", "options", "message"),
    [
        (chain(Tripled(WIDTH, 8)), {}, r"mlp\[0\] must compute x W\^T \+ b.*\d+% of its"),
        (chain(hooked()), {}, r"mlp\[0\] must compute"),
        (chain(nn.Linear(WIDTH, 8), patched()), {}, r"mlp\[1\] must compute tanh"),
        (chain(nn.LazyLinear(8)), {}, r"mlp\[0\] must have initialised weights"),
        (chain(nn.Linear(WIDTH, 8)), {"fc": Tripled(24, WIDTH)}, r"fc must compute"),
        (chain(nn.Linear(WIDTH, 8)), {"fc": nn.Identity()}, r"fc must be a Linear"),
        (
            chain(nn.Linear(WIDTH, 8)),
            {"fc": nn.Linear(24, WIDTH), "norms": [nn.LayerNorm(8) for _ in range(3)]},
            r"norms\[0\] must compute x / rms",
        ),
        (
            chain(nn.Linear(WIDTH, 8)),
            {"fc": nn.Linear(24, WIDTH), "norms": [PlusOne(8) for _ in range(3)]},
            r"norms\[0\] must compute x / rms",
        ),
        (
            chain(nn.Linear(WIDTH, 8)),
            {"fc": nn.Linear(24, WIDTH), "norms": [nn.BatchNorm1d(24)]},
            r"norms\[0\] must compute x / rms",
        ),
        (
            chain(nn.Linear(WIDTH, 8)),
            {"fc": nn.Linear(24, WIDTH), "norms": [nn.Identity()]},
            r"norms\[0\] must have a weight",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_that_do_more_are_refused(
    mlp: list[nn.Module], options: dict[str, Any], message: str, dtype: torch.dtype
) -> None:
    parts = [*mlp, *options.get("norms", []), *([options["fc"]] if "fc" in options else [])]
    before = [next(iter(part.parameters()), torch.zeros(())).dtype for part in parts]
    for part in parts:
        part.to(dtype)
    try:
        with pytest.raises(ValueError, match=message):
            PolicyWeights.from_modules(mlp, TREES, **options)
    finally:
        for part, kind in zip(parts, before, strict=True):
            part.to(kind)


def test_weights_that_are_computed_are_read_as_they_are_now() -> None:
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 8))
    with torch.no_grad():
        parametrized.parametrizations.weight.original0.mul_(2)
    with pytest.warns(FutureWarning, match="weight_norm"):
        hooked = nn.utils.weight_norm(nn.Linear(WIDTH, 8))
    with torch.no_grad():
        # The weight itself is stale until the layer is called.
        hooked.weight_g.mul_(2)
    x = torch.randn(1, WIDTH)
    for first in (parametrized, hooked):
        mlp = nn.Sequential(*chain(first))
        logits = policy_mlp(x, PolicyWeights.from_modules(mlp, TREES)).logits
        torch.testing.assert_close(logits, mlp(x), rtol=1e-5, atol=1e-6)


def test_plain_norms_are_taken_over() -> None:
    norms = [nn.RMSNorm(8), nn.RMSNorm(8), nn.RMSNorm(8)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    mlp = nn.Sequential(*chain(nn.Linear(WIDTH, 8)))
    weights = PolicyWeights.from_modules(mlp, TREES, fc=nn.Linear(24, WIDTH), norms=norms)
    assert weights.eps == torch.finfo(torch.float32).eps
    assert torch.equal(weights.norm_weight, torch.cat([norm.weight for norm in norms]))


def test_one_of_two_standardisations_is_not_enough() -> None:
    """What is folded in would stand before the other one's statistics, which nobody sees."""
    inner = gymnasium.wrappers.NormalizeObservation(Environment(spaces.Discrete(ACTIONS)))
    env = VecNormalize(DummyVecEnv([lambda: inner]))
    model = model_of(env=env)
    with pytest.raises(ValueError, match="standardised by NormalizeObservation besides"):
        PolicyWeights.from_sb3(model, TREES, vec_normalize=env)
    # The same where the model comes without its environment.
    model.env = model._vec_normalize_env = None
    with pytest.raises(ValueError, match="standardised by NormalizeObservation besides"):
        PolicyWeights.from_sb3(model, TREES, vec_normalize=env)
    first = VecNormalize(DummyVecEnv([lambda: Environment(spaces.Discrete(ACTIONS))]))
    second = VecNormalize(first)
    model = model_of(env=second)
    for given in (first, second):
        with pytest.raises(ValueError, match="standardised by VecNormalize besides"):
            PolicyWeights.from_sb3(model, TREES, vec_normalize=given)
