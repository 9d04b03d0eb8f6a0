"""The flags of the evaluation command of Re-SpS, and checks that each of them has an effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from eaglerl.eagle3.policy import TreeParams
from eaglerl.resps.policies.policy_file import read_card

_TREE = ("total_token", "depth", "top_k")
#: Flags of every policy, of new policies, and of policies that learn.
_DECISIONS = (
    "action_cache_steps", "action_cache_enabled", "inference_temperature", "max_entropy_inference",
    "hidden_size",
)  # fmt: skip
_NEW = (
    "optimized_policy_version", "use_eagle3_features", "use_context_only_state", "ppo_net_arch",
    "actions", "text_model",
)  # fmt: skip
_LEARNING = (
    "training_seed", "checkpoint_dir", "online_policy_save_path", "enable_max_entropy",
    "wandb_project", "wandb",
)  # fmt: skip
_NAMES: dict[tuple[str, object], str] = {
    ("wandb", False): "--no-wandb",
    ("resume_training", False): "--no-resume",
    ("enable_max_entropy", False): "--disable-max-entropy",
}


class FlagError(ValueError):
    """A flag that has no effect, or that contradicts another.

    Attributes:
        flag: as it was given.
        reason: why it is refused.
    """

    def __init__(self, flag: str, reason: str) -> None:
        super().__init__(f"{flag}: {reason}")
        self.flag = flag
        self.reason = reason


@dataclass(frozen=True)
class ReSpSFlags:
    """The values of the flags; see ``eaglerl evaluate --help``.

    Attributes:
        given: names of those that were given, rather than left at their defaults.
        online_policy_path: a saved policy; None for a new one.
        online_inference_only: the policy does not learn.
    """

    use_optimized_sb3_discrete_ppo: bool = False
    use_optimized_dqn: bool = False
    optimized_policy_version: str = "standard"
    action_cache_steps: int = 10
    action_cache_enabled: bool = True
    use_eagle3_features: bool = True
    use_context_only_state: bool = False
    text_model: str | None = None
    hidden_size: int | None = None
    enable_max_entropy: bool = True
    max_entropy_inference: bool = True
    inference_temperature: float = 1.5
    ppo_net_arch: str = ""
    actions: str = "published"
    total_token: int = 60
    depth: int = 5
    top_k: int = 10
    training_seed: int = 42
    checkpoint_dir: Path | None = None
    resume_training: bool = True
    wandb_project: str | None = None
    wandb: bool = False
    online_policy_path: Path | None = None
    online_policy_save_path: Path | None = None
    online_inference_only: bool = False
    given: Collection[str] = ()

    def __post_init__(self) -> None:
        for name in sorted(self.given):
            reason = next(self._reasons_against(name), None)
            if reason is not None:
                raise FlagError(flag_name(name, getattr(self, name)), reason)

    @property
    def algorithm(self) -> str | None:
        """ "ppo" or "dqn"; None for a constant tree."""
        if self.use_optimized_sb3_discrete_ppo:
            return "ppo"
        if self.use_optimized_dqn:
            return "dqn"
        return read_card(self.online_policy_path)["algorithm"] if self.online_policy_path else None

    @property
    def learns(self) -> bool:
        """Whether a policy learns while it decodes."""
        return self.algorithm is not None and not self.online_inference_only

    @property
    def tree(self) -> TreeParams:
        """The constant tree of decoding without a policy.

        Raises:
            ValueError: there is no such tree.
        """
        return TreeParams(self.total_token, self.depth, self.top_k)

    @property
    def draws_at_inference(self) -> bool:
        """Whether actions are drawn at inference, unless a saved policy says otherwise."""
        if "max_entropy_inference" in self.given:
            return self.max_entropy_inference
        return self.enable_max_entropy

    def _reasons_against(self, name: str) -> Iterator[str]:
        """Yield the reasons why a flag that was given has no effect."""
        both = self.use_optimized_dqn and self.use_optimized_sb3_discrete_ppo
        if name == "use_optimized_dqn" and both:
            yield "it contradicts --use-optimized-sb3-discrete-ppo; give one of the two"
        new = self.online_policy_path is None
        if name == "online_inference_only" and self.online_inference_only and new:
            yield "it needs a trained policy: give --online-policy-path"
        policy = name in _DECISIONS + _NEW + _LEARNING
        if self.algorithm is None and policy:
            yield (
                "it has no effect without a policy: give --use-optimized-sb3-discrete-ppo, "
                "--use-optimized-dqn or --online-policy-path"
            )
        if self.algorithm is not None and name in _TREE:
            yield "it has no effect with a policy, which chooses the tree itself"
        if self.online_policy_path is not None and name in _NEW:
            yield "it has no effect on a saved policy: it sets up a new one"
        if self.online_inference_only and name in _LEARNING:
            yield "it has no effect with --online-inference-only: nothing is learned"
        if self.algorithm == "dqn" and name in ("optimized_policy_version", "ppo_net_arch"):
            yield "it has no effect on DQN: it is for --use-optimized-sb3-discrete-ppo"
        yield from self._contradictions(name)

    def _contradictions(self, name: str) -> Iterator[str]:
        if name == "action_cache_steps" and not self.action_cache_enabled:
            yield "it has no effect with --no-action-cache-enabled"
        if name == "inference_temperature" and not self.draws_at_inference:
            yield "it has no effect where the best action is taken: max-entropy inference is off"
        if self.use_context_only_state and name in ("use_eagle3_features", "hidden_size"):
            yield "it has no effect with --use-context-only-state, which reads a text's embedding"
        if name == "text_model" and self.use_eagle3_features and not self.use_context_only_state:
            yield "it has no effect without --use-context-only-state or --no-use-eagle3-features"
        if name == "wandb_project" and "wandb" in self.given and not self.wandb:
            yield "it contradicts --no-wandb"


def flag_name(name: str, value: object) -> str:
    """Return a flag as it is given on the command line."""
    dashed = name.replace("_", "-")
    return _NAMES.get((name, value), f"--no-{dashed}" if value is False else f"--{dashed}")
