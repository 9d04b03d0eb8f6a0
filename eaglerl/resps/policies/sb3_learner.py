"""stable-baselines3's PPO and DQN, fed one transition at a time by a decoding loop.

Their own buffers, losses and optimizers do the learning; this module only passes them what the loop
has seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, NoReturn, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger
from torch import nn

from eaglerl.envs.trace_env import action_space, observation_space
from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies.compression import compression_of
from eaglerl.runs.sb3_state import load_model_state, model_state


class SpacesOnly(gym.Env):
    """The spaces of an environment, for a model: the decoding loop takes its place."""

    def __init__(self, size: int, num_actions: int, horizon: int = 1) -> None:
        self._size = size
        self.observation_space = observation_space(size)
        self.action_space = action_space(num_actions, horizon)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return an observation of zeros."""
        super().reset(seed=seed)
        return np.zeros(self._size, np.float32), {}

    def step(self, action: int) -> NoReturn:
        """Refuse to step.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the decoding loop steps, not this environment")


class ReLUDropout(nn.ReLU):
    """ReLU, then dropout: one layer, so that a model's parameters keep their names."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self._probability = probability

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Drop out in training mode."""
        return nn.functional.dropout(super().forward(values), self._probability, self.training)


def actor_layers(model: PPO | DQN) -> list[nn.Module]:
    """Return a model's layers from the observation to the scores of the actions."""
    if isinstance(model, DQN):
        return list(model.q_net.q_net)
    return [*model.policy.mlp_extractor.policy_net, model.policy.action_net]


def actor_weights(model: PPO | DQN, actions: torch.Tensor, **options: Any) -> PolicyWeights:
    """Return the actor's weights for inference.

    Args:
        model: the model.
        actions: (A, 3) total_tokens, depth and top_k of the actions.
        options: see `PolicyWeights.from_modules`.
    """
    # ReLU with dropout is plain ReLU at inference.
    layers = [nn.ReLU() if isinstance(part, nn.ReLU) else part for part in actor_layers(model)]
    compression = compression_of(model)
    if compression is not None:
        first = layers[0]
        assert isinstance(first, nn.Linear)
        layers[0] = compression.fold_into(first)
    horizon = len(getattr(model.action_space, "nvec", (0,)))
    return PolicyWeights.from_modules(layers, actions, horizon=horizon, **options)


_Model = TypeVar("_Model", bound=PPO | DQN)


class Learner(ABC, Generic[_Model]):
    """A model that learns from single transitions.

    Attributes:
        model: the PPO or DQN.
        total_windows: transitions over which schedules run.
        drops_out: whether dropout applies to decisions as well.
    """

    drops_out = False

    def __init__(self, model: _Model, total_windows: int = 10_000) -> None:
        self.model = model
        self.total_windows = total_windows
        model.set_logger(Logger(None, []))
        model.policy.set_training_mode(False)

    @abstractmethod
    def act(self, observation: np.ndarray) -> tuple[int, ...]:
        """Return the exploring policy's actions at an observation (size,), one for each window."""

    @abstractmethod
    def add(
        self,
        observation: np.ndarray,
        actions: tuple[int, ...],
        reward: float,
        following: np.ndarray,
        done: bool,
    ) -> bool:
        """Learn from a transition; its actions are the last that `act` returned, at `observation`.

        Returns:
            Whether the parameters have changed.
        """

    def load_actor(self, weights: PolicyWeights) -> None:
        """Set the actor's parameters."""
        linears = [layer for layer in actor_layers(self.model) if isinstance(layer, nn.Linear)]
        matrices = (*weights.hidden_weights, weights.output_weight)
        biases = (*weights.hidden_biases, weights.output_bias)
        layers = list(zip(linears, matrices, biases, strict=True))
        if (compression := compression_of(self.model)) is not None:
            first, matrix, bias = layers.pop(0)
            compression.unfold(matrix, bias, first)
        with torch.no_grad():
            for linear, matrix, bias in layers:
                linear.weight.copy_(matrix)
                linear.bias.copy_(bias)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors and JSON values of a checkpoint."""
        return model_state(self.model)

    def load_state(self, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ValueError: the tensors are of another network.
        """
        load_model_state(self.model, tensors, info)

    def _count(self) -> None:
        self.model.num_timesteps += 1
        done = min(self.model.num_timesteps, self.total_windows)
        self.model._update_current_progress_remaining(done, self.total_windows)

    def _train(self, **options: int) -> bool:
        self.model.train(**options)
        self.model.policy.set_training_mode(self.drops_out)
        return True


class PPOLearner(Learner[PPO]):
    """PPO: learns whenever its rollout buffer is full."""

    def __init__(self, model: PPO, **options: Any) -> None:
        super().__init__(model, **options)
        self._starts = np.ones(1, dtype=bool)
        self._values = self._log_probs = torch.zeros(1)

    def act(self, observation: np.ndarray) -> tuple[int, ...]:
        """Return a draw of the stochastic policy."""
        with torch.no_grad():
            row = torch.from_numpy(observation[None]).to(self.model.device)
            actions, self._values, self._log_probs = self.model.policy(row)
        return tuple(actions.flatten().tolist())

    def add(
        self,
        observation: np.ndarray,
        actions: tuple[int, ...],
        reward: float,
        following: np.ndarray,
        done: bool,
    ) -> bool:
        """See `Learner`."""
        buffer, dones = self.model.rollout_buffer, np.array([done])
        buffer.add(
            observation[None],
            np.array([actions]),
            np.array([reward], dtype=np.float32),
            self._starts,
            self._values,
            self._log_probs,
        )
        self._starts = dones
        self._count()
        if not buffer.full:
            return False
        with torch.no_grad():
            row = torch.from_numpy(following[None]).to(self.model.device)
            last = self.model.policy.predict_values(row)
        buffer.compute_returns_and_advantage(last_values=last, dones=dones)
        self._train()
        buffer.reset()
        return True

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See `Learner`."""
        tensors, info = super().state()
        return tensors, {**info, "starts": bool(self._starts[0])}

    def load_state(self, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> None:
        """See `Learner`."""
        super().load_state(tensors, info)
        self._starts = np.array([info["starts"]])


class DQNLearner(Learner[DQN]):
    """DQN: learns from every transition once its replay buffer holds a batch.

    Attributes:
        epsilon: probability of exploring.
    """

    def __init__(
        self,
        model: DQN,
        *,
        epsilon: tuple[float, float, float],
        temperature: float | None = None,
        reference: bool = False,
        **options: Any,
    ) -> None:
        """Set up.

        Args:
            model: the model.
            epsilon: at the start, at the end, and its factor per update.
            temperature: of the softmax over the values that exploration draws from; None draws
                uniformly.
            reference: draw when not exploring too, from a softmax of half the temperature.
            options: see `Learner`.
        """
        super().__init__(model, **options)
        self.epsilon, self._lowest, self._decay = epsilon
        self._temperature = temperature
        self._reference = self.drops_out = reference
        model.policy.set_training_mode(reference)

    def act(self, observation: np.ndarray) -> tuple[int, ...]:
        """Return the best action, or with probability epsilon a drawn one."""
        explores = np.random.random() < self.epsilon
        if explores and self._temperature is None:
            return (int(self.model.action_space.sample()),)
        with torch.no_grad():
            row = torch.from_numpy(observation[None]).to(self.model.device)
            values = self.model.q_net(row)[0]
        if explores or self._reference:
            assert self._temperature is not None  # the reference always has one
            temperature = self._temperature * (1.0 if explores else 0.5)
            return (int(torch.multinomial(torch.softmax(values / temperature, -1), 1)),)
        return (int(values.argmax()),)

    def add(
        self,
        observation: np.ndarray,
        actions: tuple[int, ...],
        reward: float,
        following: np.ndarray,
        done: bool,
    ) -> bool:
        """See `Learner`."""
        model, memory = self.model, self.model.replay_buffer
        assert memory is not None  # made with the model
        memory.add(
            observation[None],
            following[None],
            np.array([actions]),
            np.array([reward], dtype=np.float32),
            np.array([done]),
            [{}],
        )
        self._count()
        model._on_step()
        if memory.size() < model.batch_size:
            return False
        self.epsilon = max(self._lowest, self.epsilon * self._decay)
        return self._train(gradient_steps=1, batch_size=model.batch_size)

    def load_actor(self, weights: PolicyWeights) -> None:
        """See `Learner`; the target network gets them too."""
        super().load_actor(weights)
        self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See `Learner`."""
        tensors, info = super().state()
        return tensors, {**info, "epsilon": self.epsilon}

    def load_state(self, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]) -> None:
        """See `Learner`."""
        super().load_state(tensors, info)
        self.epsilon = info["epsilon"]
