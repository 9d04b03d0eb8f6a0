"""DQN that chooses the draft tree, under the name that Re-SpS gave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eaglerl.resps.policies.policy_settings import PolicySettings, split_options
from eaglerl.resps.policies.resps_policy import ReSpSPolicy

if TYPE_CHECKING:
    from eaglerl.resps.policies.sb3_learner import Learner

_DROPOUT = 0.2
#: Temperature of the standard mode of Re-SpS at inference.
_RESPS_STANDARD_TEMPERATURE = 0.5


class OptimizedOnlineTreePolicy(ReSpSPolicy):
    """DQN (Mnih et al. 2015) over draft trees, that of stable-baselines3.

    With ``gamma`` 0 nothing after a window counts: it is a contextual bandit, as `formulation`
    says. In max-entropy mode exploration draws from a softmax over the values.

    Corrected faults of Re-SpS, besides those that `OptimizedSB3DiscretePPOOnlineTreePolicy` lists;
    ``reference=True`` restores what "Reference" says of both:

    - It bootstraps from a target network that is used. Reference: the target is the reward alone.
    - When it does not explore, it takes the best action. Reference: it draws from a softmax of
      half the temperature.
    - In standard mode, exploration is uniform, and inference takes the best action. Reference:
      inference draws from a softmax of temperature 0.5.
    - There is no dropout. Reference: a fifth of the units of the first two layers is dropped, at
      inference too; initial weights are Xavier's, biases 0.1.

    The loss is that of stable-baselines3 (Huber) in both; Re-SpS has the squared error.
    ``entropy_weight``, which Re-SpS stores and never uses, is not an argument.
    """

    algorithm = "dqn"

    # The first arguments, their names and their order are those of Re-SpS.
    def __init__(
        self,
        learning_rate: float = 3e-4,
        epsilon_start: float = 0.9,
        epsilon_end: float = 0.05,
        epsilon_decay: float = 0.995,
        memory_size: int = 1000,
        batch_size: int = 32,
        target_update_freq: int = 100,
        temperature: float = 1.0,
        *,
        gamma: float = 0.95,
        max_grad_norm: float = 1.0,
        net_arch: Sequence[int] = (512, 256, 128),
        settings: PolicySettings | None = None,
        **options: Any,
    ) -> None:
        """Set up.

        Args:
            learning_rate: of Adam.
            epsilon_start: probability of exploring at the start.
            epsilon_end: its lower bound.
            epsilon_decay: its factor per update.
            memory_size: windows in the replay buffer.
            batch_size: windows of an update.
            target_update_freq: windows between two updates of the target network.
            temperature: of the softmax that exploration draws from in max-entropy mode.
            gamma: discount per window.
            max_grad_norm: gradients are clipped to it.
            net_arch: hidden layers.
            settings: see `PolicySettings`; its fields may be given by name instead.
            options: these fields, and arguments of `ReSpSPolicy`.

        Raises:
            ValueError: a value is out of its range, or the horizon is above 1: DQN values single
                actions, not combinations of them.
            TypeError: an option is unknown, or fields are given besides `settings`.
        """
        settings, options = split_options(settings, options)
        if settings.horizon > 1:
            raise ValueError(
                f"horizon must be 1, got {settings.horizon}: DQN values single actions, so that "
                f"{settings.horizon} windows at once would need {len(settings.actions)}^"
                f"{settings.horizon} values; PPO has a head for each window"
            )
        model = {
            "learning_rate": learning_rate,
            "epsilon_start": epsilon_start,
            "epsilon_end": epsilon_end,
            "epsilon_decay": epsilon_decay,
            "memory_size": memory_size,
            "batch_size": batch_size,
            "target_update_freq": target_update_freq,
            "temperature": temperature,
            "gamma": gamma,
            "max_grad_norm": max_grad_norm,
            "net_arch": list(net_arch),
        }
        super().__init__(settings, model, **options)

    def new_model(self, env: Any, **changes: Any) -> Any:
        """See `ReSpSPolicy`."""
        from stable_baselines3 import DQN

        from eaglerl.resps.policies.compression import extractor_options

        own = self._model_options
        options = {
            "learning_rate": own["learning_rate"],
            "buffer_size": own["memory_size"],
            "batch_size": own["batch_size"],
            "learning_starts": own["batch_size"],
            "target_update_interval": own["target_update_freq"],
            "exploration_initial_eps": own["epsilon_start"],
            "exploration_final_eps": own["epsilon_end"],
            "gamma": own["gamma"],
            "max_grad_norm": own["max_grad_norm"],
            "seed": self.settings.seed,
        }
        policy = {"net_arch": own["net_arch"], **extractor_options(self.settings)}
        model = DQN("MlpPolicy", env, policy_kwargs=policy, device="cpu", **{**options, **changes})
        if self.settings.reference:
            _restore_reference(model)
        return model

    def _make_learner(self) -> Learner:
        from eaglerl.resps.policies.sb3_learner import DQNLearner, SpacesOnly

        settings, own = self.settings, self._model_options
        size = settings.spec.size
        model = self.new_model(SpacesOnly(size, len(settings.actions)))
        drawn = settings.enable_max_entropy or settings.reference
        return DQNLearner(
            model,
            epsilon=(own["epsilon_start"], own["epsilon_end"], own["epsilon_decay"]),
            temperature=own["temperature"] if drawn else None,
            reference=settings.reference,
        )

    def _temperature(self) -> float:
        if self.settings.reference and not self.settings.max_entropy_inference:
            return _RESPS_STANDARD_TEMPERATURE
        return super()._temperature()

    def _infer(self, observation: np.ndarray) -> tuple[int, ...]:
        if not self.settings.reference:
            return super()._infer(observation)
        weights, row = self.weights, torch.from_numpy(observation)
        layers = zip(weights.hidden_weights, weights.hidden_biases, strict=True)
        for index, (matrix, bias) in enumerate(layers):
            row = torch.relu(matrix @ row + bias)
            if index < 2:
                row = torch.nn.functional.dropout(row, _DROPOUT)
        values = weights.output_weight @ row + weights.output_bias
        return (int(torch.multinomial(torch.softmax(values / self._temperature(), -1), 1)),)


def _restore_reference(model: Any) -> None:
    """Give a model the dropout and the initial parameters of Re-SpS."""
    from eaglerl.resps.policies.sb3_learner import ReLUDropout

    for net in (model.q_net, model.q_net_target):
        for index in (1, 3):
            if index < len(net.q_net) - 1:
                net.q_net[index] = ReLUDropout(_DROPOUT)
    for layer in model.q_net.q_net:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.constant_(layer.bias, 0.1)
    model.q_net_target.load_state_dict(model.q_net.state_dict())
