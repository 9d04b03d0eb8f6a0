"""Observations of zero mean and unit variance, and how a policy absorbs that step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from eaglerl.ops import PolicyWeights
from eaglerl.traces.trace_set import Trace


@dataclass(frozen=True, eq=False)
class Standardization:
    """(x - mean) / scale, fixed before training.

    Attributes:
        mean: (size,) float32.
        scale: (size,) float32, positive.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, size: int) -> Standardization:
        """Return a standardisation that changes nothing."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))

    @classmethod
    def of_traces(cls, traces: Iterable[Trace], size: int) -> Standardization:
        """Standardise by mean and deviation of the traces' features; extras stay as they are.

        Args:
            traces: recorded continuations.
            size: width of an observation, extras included.

        Raises:
            ValueError: there are no traces.
        """
        total, squares, count = np.zeros(()), np.zeros(()), 0
        for trace in traces:
            features = np.asarray(trace.features, dtype=np.float64)
            total = total + features.sum(axis=0)
            squares = squares + (features**2).sum(axis=0)
            count += len(features)
        if not count:
            raise ValueError("traces must hold at least one trace")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        result = cls.identity(size)
        result.mean[: len(mean)] = mean
        # A constant column says nothing: dividing it by its deviation would amplify rounding.
        result.scale[: len(mean)] = np.where(deviation > 1e-6, deviation, 1.0)
        return result

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Return standardised observations (..., size) float32."""
        return ((observations - self.mean) / self.scale).astype(np.float32)

    def fold_into(self, weights: PolicyWeights) -> PolicyWeights:
        """Return the policy of raw observations, from one of standardised observations.

        W1 ((x - m) / s) + b1 = (W1 / s) x + (b1 - (W1 / s) m), computed in float64.
        """
        first = weights.hidden_weights[0]
        scaled = first.double() / torch.from_numpy(self.scale).double()
        bias = weights.hidden_biases[0].double() - scaled @ torch.from_numpy(self.mean).double()
        return replace(
            weights,
            hidden_weights=(scaled.to(first.dtype), *weights.hidden_weights[1:]),
            hidden_biases=(bias.float(), *weights.hidden_biases[1:]),
        )


class StandardizedVecEnv(VecEnvWrapper):
    """Environments whose observations are standardised."""

    def __init__(self, env: VecEnv, standardization: Standardization) -> None:
        super().__init__(env)
        self.standardization = standardization

    def reset(self) -> np.ndarray:
        """Begin episodes; return standardised observations (n_envs, size)."""
        return self._standardized(self.venv.reset())

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return what the environments do, with standardised observations, terminal ones too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for index in np.flatnonzero(dones):
            infos[index]["terminal_observation"] = self.standardization(
                infos[index]["terminal_observation"]
            )
        return self._standardized(observations), rewards, dones, infos

    def _standardized(self, observations: VecEnvObs) -> np.ndarray:
        assert isinstance(observations, np.ndarray)  # the observation space is a Box
        return self.standardization(observations)
