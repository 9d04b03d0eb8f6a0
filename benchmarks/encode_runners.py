"""Runners that make the same decision in different ways, from one set of weights."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO

from eaglerl._ext import C, thread_count
from eaglerl.ops import ActionCache, FusedEncoder, PolicyWeights
from eaglerl.ops.policy_mlp import without_fc

ACTIONS = 177
VERIFIED_ROWS = 60  # rows of EAGLE's default tree
HIT = "eaglerl: cache hit"
FROM_G = "eaglerl: miss from g"
FUSED = "eaglerl: miss from low, mid, high"
FOLDED = "eaglerl: miss, folded"
FUSED_FLOOR = "floor: reading the FC and the MLP"
FOLDED_FLOOR = "floor: reading the folded MLP"
EAGER = "torch: cat, FC, MLP"
EAGER_FOLDED = "torch: cat, folded MLP"
COMPILED = "torch.compile of cat, FC, MLP"
PREDICT = "stable-baselines3 predict from g"
RESPS = "mean-pooled features to numpy, predict"
NAMES = (
    HIT, FROM_G, FUSED, FOLDED, FUSED_FLOOR, FOLDED_FLOOR, EAGER, EAGER_FOLDED, COMPILED, PREDICT,
    RESPS,
)  # fmt: skip
_SERIAL_BYTES = 512 << 10  # the extension reads smaller matrices on one thread


class _Observations(gymnasium.Env):
    """The spaces from which stable-baselines3 makes its policy; not a real environment."""

    def __init__(self, width: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)


class Runners:
    """All runners for features of width k."""

    def __init__(self, k: int) -> None:
        torch.manual_seed(0)
        self.k = k
        self.hidden = (64, 64) if k < 1024 else (128, 128)
        self.features = [torch.randn(1, k) for _ in range(3)]
        self.verified = torch.randn(VERIFIED_ROWS, 3 * k)
        self.model = self._model(k)
        fc = torch.nn.Linear(3 * k, k)
        actions = torch.randint(1, 60, (ACTIONS, 3), dtype=torch.int32)
        self.weights = PolicyWeights.from_sb3(self.model, actions, fc=fc)
        self.folded = self.weights.fold()
        self._pooled_model = self._model(3 * k)

    def _model(self, width: int) -> PPO:
        return PPO(
            "MlpPolicy",
            _Observations(width),
            policy_kwargs={"net_arch": list(self.hidden)},
            device="cpu",
        )

    def make(self, name: str) -> Callable[[], object]:
        """Return a runner that has run three times; each call makes one decision."""
        make = {
            HIT: lambda: self._fused(self.weights, self.features, ActionCache(1, 2**30), False),
            FROM_G: lambda: self._fused(without_fc(self.weights), [self._g()]),
            FUSED: lambda: self._fused(self.weights, self.features),
            FOLDED: lambda: self._fused(self.folded, self.features),
            FUSED_FLOOR: lambda: _reader(self.weights),
            FOLDED_FLOOR: lambda: _reader(self.folded),
            EAGER: lambda: self._eager(self.weights),
            EAGER_FOLDED: lambda: self._eager(self.folded),
            COMPILED: lambda: torch.compile(self._eager(self.weights), fullgraph=True),
            PREDICT: self._predict,
            RESPS: self._resps,
        }
        runner = make[name]()
        for _ in range(3):
            runner()
        return runner

    def check(self) -> None:
        """Compare eaglerl's decisions with torch's before anything is timed.

        Raises:
            RuntimeError: they differ.
        """
        expected = self._eager(self.weights)()
        for weights in (self.weights, self.folded):
            encoder = FusedEncoder(weights)
            encoder.encode(*self.features)
            if not torch.equal(encoder.params, expected):
                raise RuntimeError("the decision differs from torch's; nothing was timed")

    def _g(self) -> torch.Tensor:
        return torch.nn.functional.linear(
            torch.cat(self.features, 1), self.weights.fc_weight, self.weights.fc_bias
        )

    def _fused(
        self,
        weights: PolicyWeights,
        inputs: list[torch.Tensor],
        cache: ActionCache | None = None,
        return_features: bool = True,
    ) -> Callable[[], object]:
        encoder = FusedEncoder(weights, cache, return_features=return_features)
        encode = encoder.encode
        low, mid, high = (*inputs, None, None)[:3]
        return lambda: encode(low, mid, high)

    def _eager(self, weights: PolicyWeights) -> Callable[[], torch.Tensor]:
        linear = torch.nn.functional.linear
        layers = list(zip(weights.hidden_weights, weights.hidden_biases, strict=True))

        def decide() -> torch.Tensor:
            x = torch.cat(self.features, 1)
            if weights.fc_weight is not None:
                x = linear(x, weights.fc_weight, weights.fc_bias)
            for weight, bias in layers:
                x = torch.tanh(linear(x, weight, bias))
            return weights.actions[linear(x, weights.output_weight, weights.output_bias).argmax(-1)]

        return decide

    def _predict(self) -> Callable[[], object]:
        observation = self._g().numpy()
        return lambda: self.model.predict(observation, deterministic=True)

    def _resps(self) -> Callable[[], object]:
        def decide() -> object:
            observation = self.verified.mean(0, keepdim=True).cpu().numpy()
            return self._pooled_model.predict(observation, deterministic=True)

        return decide


def _reader(weights: PolicyWeights) -> Callable[[], float]:
    """Return a function that reads the same bytes with plain vector loads on as many threads."""
    sizes = [
        (tensor.data_ptr(), tensor.numel() * tensor.element_size())
        for name, tensor in weights.tensors().items()
        if name != "bins"
    ]
    threads = thread_count()
    calls = [(at, size, threads if size >= _SERIAL_BYTES else 1) for at, size in sizes]

    def read() -> float:
        return sum(C.read_seconds(*call) for call in calls)

    return read
