"""PPO that chooses the draft tree, under the name that Re-SpS gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eaglerl.resps.policies.policy_settings import PolicySettings, split_options
from eaglerl.resps.policies.resps_policy import ReSpSPolicy

if TYPE_CHECKING:
    from eaglerl.resps.policies.sb3_learner import Learner

#: Entropy coefficient of the standard mode of Re-SpS, whatever `ent_coef` is.
_RESPS_STANDARD_ENTROPY = 0.01
#: Left out of a policy's options, so that checkpoints from before there was a choice resume.
_DEFAULT_ACTIVATION = "tanh"


class OptimizedSB3DiscretePPOOnlineTreePolicy(ReSpSPolicy):
    """PPO (Schulman et al. 2017) over draft trees, that of stable-baselines3.

    A decision serves a window of ``action_cache_steps`` cycles, which is one transition. In
    max-entropy mode the entropy bonus is ``max_entropy_ent_coef``, and actions are drawn at
    inference too; in standard mode it is ``ent_coef``.

    Corrected faults of Re-SpS; ``reference=True`` restores what "Reference" says:

    - A cycle's time includes drafting, and its reward goes to the decision that drafted its tree.
      Reference: without drafting, to the decision of the cycle after.
    - A window's reward comes from the sums of its tokens and seconds; by default it is tokens -
      rate x seconds, whose maximum is that of all tokens over all seconds. Reference: the mean of
      the cycles' tokens per second.
    - A sequence's windows follow each other: what comes after one counts, discounted by ``gamma``.
      Reference: every window is an episode, so that ``gamma`` and
      ``gae_lambda`` have no effect.
    - The draft head's own reduction turns low, mid and high features into the state. Reference:
      their mean.
    - The first tree is the policy's own. Reference: (96, 8, 20), where that is an action.
    - ``ent_coef`` is honoured. Reference: it is 0.01 in standard mode.
    - The action cache can be turned off, so that every cycle is decided.

    What Re-SpS leaves to future work is in the settings: ``similarity_threshold`` (a
    window ends where the context changes), ``compressed_size`` (learned compression of the
    features) and ``horizon`` (the trees of the next windows at once: a head of the actor for each).

    Inference has no dropout and needs no stable-baselines3. `fused` returns a policy that decides
    without overhead in the decoding loop.
    """

    algorithm = "ppo"

    # The first arguments and their order are those of Re-SpS, with the names of PPO of
    # stable-baselines3, so that code written for either can call this.
    def __init__(
        self,
        learning_rate: float = 3e-4,
        n_steps: int = 64,
        batch_size: int = 32,
        n_epochs: int = 4,
        gamma: float = 0.95,
        gae_lambda: float = 0.9,
        clip_range: float = 0.2,
        ent_coef: float = 0.1,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        *,
        max_entropy_ent_coef: float = 0.1,
        net_arch: Sequence[int] | Mapping[str, Sequence[int]] = (64, 64),
        activation: str = "tanh",
        settings: PolicySettings | None = None,
        **options: Any,
    ) -> None:
        """Set up.

        Args:
            learning_rate: of Adam.
            n_steps: windows between two updates.
            batch_size: windows of an optimizer step.
            n_epochs: passes over the windows in an update.
            gamma: discount per window.
            gae_lambda: of the generalised advantage estimate.
            clip_range: of the probability ratio.
            ent_coef: entropy bonus in standard mode.
            vf_coef: weight of the value loss.
            max_grad_norm: gradients are clipped to it.
            max_entropy_ent_coef: entropy bonus in max-entropy mode.
            net_arch: hidden layers of actor and critic; both the same, or {"pi": ..., "vf": ...}.
            activation: "tanh", as in the OFL version, or "relu", as in the standard one.
            settings: see `PolicySettings`; its fields may be given by name instead.
            options: these fields, and arguments of `ReSpSPolicy`.

        Raises:
            ValueError: a value is out of its range.
            TypeError: an option is unknown, or fields are given besides `settings`.
        """
        settings, options = split_options(settings, options)
        nets = net_arch if isinstance(net_arch, Mapping) else {"pi": net_arch, "vf": net_arch}
        model = {
            "learning_rate": learning_rate,
            "n_steps": n_steps,
            "batch_size": batch_size,
            "n_epochs": n_epochs,
            "gamma": gamma,
            "gae_lambda": gae_lambda,
            "clip_range": clip_range,
            "ent_coef": ent_coef,
            "vf_coef": vf_coef,
            "max_grad_norm": max_grad_norm,
            "max_entropy_ent_coef": max_entropy_ent_coef,
            "net_arch": {name: list(layers) for name, layers in nets.items()},
        } | ({} if activation == _DEFAULT_ACTIVATION else {"activation": activation})
        super().__init__(settings, model, **options)

    @property
    def entropy_coefficient(self) -> float:
        """Entropy bonus of the mode."""
        if self.settings.enable_max_entropy:
            return self._model_options["max_entropy_ent_coef"]
        if self.settings.reference:
            return _RESPS_STANDARD_ENTROPY
        return self._model_options["ent_coef"]

    def new_model(self, env: Any, **changes: Any) -> Any:
        """See `ReSpSPolicy`."""
        from stable_baselines3 import PPO
        from torch import nn

        from eaglerl.resps.policies.compression import extractor_options

        options = dict(self._model_options)
        net_arch = options.pop("net_arch")
        options.pop("max_entropy_ent_coef")
        options |= {"ent_coef": self.entropy_coefficient, "seed": self.settings.seed, **changes}
        activation = options.pop("activation", _DEFAULT_ACTIVATION)
        policy = {
            "net_arch": net_arch,
            "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[activation],
            **extractor_options(self.settings),
        }
        return PPO("MlpPolicy", env, policy_kwargs=policy, device="cpu", **options)

    def _make_learner(self) -> Learner:
        from eaglerl.resps.policies.sb3_learner import PPOLearner, SpacesOnly

        settings = self.settings
        spaces = SpacesOnly(settings.spec.size, len(settings.actions), settings.horizon)
        return PPOLearner(self.new_model(spaces))
