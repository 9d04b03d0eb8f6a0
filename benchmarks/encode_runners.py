"""What the policy's decision is compared with, on one set of weights."""

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
VERIFIED_ROWS = 60  # of one verification of the published default tree
HIT = "ours: cache hit"
FROM_G = "ours: miss from g"
FUSED = "ours: miss from low, mid, high"
FOLDED = "ours: miss, folded"
FUSED_FLOOR = "floor: reading the FC and the MLP"
FOLDED_FLOOR = "floor: reading the folded MLP"
EAGER = "torch: cat, FC, MLP"
EAGER_FOLDED = "torch: cat, folded MLP"
COMPILED = "torch.compile of cat, FC, MLP"
PREDICT = "stable-baselines3 predict from g"
PUBLISHED = "mean-pooled taps to numpy, predict"
NAMES = (
    HIT, FROM_G, FUSED, FOLDED, FUSED_FLOOR, FOLDED_FLOOR, EAGER, EAGER_FOLDED, COMPILED, PREDICT,
    PUBLISHED,
)  # fmt: skip
_SERIAL_BYTES = 512 << 10  # the extension reads smaller matrices on one thread


class _Observations(gymnasium.Env):
    """Spaces alone: stable-baselines3 makes its policy from them."""

    def __init__(self, width: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)


class Runners:
    """Every way to decide, for features of width k."""

    def __init__(self, k: int) -> None:
        torch.manual_seed(0)
        self.k = k
        self.hidden = (64, 64) if k < 1024 else (128, 128)
        self.taps = [torch.randn(1, k) for _ in range(3)]
        self.verified = torch.randn(VERIFIED_ROWS, 3 * k)
        self.model = self._model(k)
        fc = torch.nn.Linear(3 * k, k)
        bins = torch.randint(1, 60, (ACTIONS, 3), dtype=torch.int32)
        self.weights = PolicyWeights.from_sb3(self.model, bins, fc=fc)
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
        """One runner, prepared: calling it decides once."""
        make = {
            HIT: lambda: self._ours(self.weights, self.taps, ActionCache(1, 2**30), False),
            FROM_G: lambda: self._ours(without_fc(self.weights), [self._features()]),
            FUSED: lambda: self._ours(self.weights, self.taps),
            FOLDED: lambda: self._ours(self.folded, self.taps),
            FUSED_FLOOR: lambda: _reader(self.weights),
            FOLDED_FLOOR: lambda: _reader(self.folded),
            EAGER: lambda: self._eager(self.weights),
            EAGER_FOLDED: lambda: self._eager(self.folded),
            COMPILED: lambda: torch.compile(self._eager(self.weights), fullgraph=True),
            PREDICT: self._predict,
            PUBLISHED: self._published,
        }
        runner = make[name]()
        for _ in range(3):
            runner()
        return runner

    def check(self) -> None:
        """Compares our results with torch's before anything is timed.

        Raises:
            RuntimeError: They differ.
        """
        expected = self._eager(self.weights)()
        for weights in (self.weights, self.folded):
            encoder = FusedEncoder(weights)
            encoder.encode(*self.taps)
            if not torch.equal(encoder.params, expected):
                raise RuntimeError("our decision differs from torch's: nothing is timed")

    def _features(self) -> torch.Tensor:
        return torch.nn.functional.linear(
            torch.cat(self.taps, 1), self.weights.fc_weight, self.weights.fc_bias
        )

    def _ours(
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
            x = torch.cat(self.taps, 1)
            if weights.fc_weight is not None:
                x = linear(x, weights.fc_weight, weights.fc_bias)
            for weight, bias in layers:
                x = torch.tanh(linear(x, weight, bias))
            return weights.bins[linear(x, weights.output_weight, weights.output_bias).argmax(-1)]

        return decide

    def _predict(self) -> Callable[[], object]:
        observation = self._features().numpy()
        return lambda: self.model.predict(observation, deterministic=True)

    def _published(self) -> Callable[[], object]:
        def decide() -> object:
            observation = self.verified.mean(0, keepdim=True).cpu().numpy()
            return self._pooled_model.predict(observation, deterministic=True)

        return decide


def _reader(weights: PolicyWeights) -> Callable[[], float]:
    """Reads the same weights with plain vector loads, on the threads that a decision runs on."""
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
