"""Settings of all policies of Re-SpS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, cast, get_args

from pydantic import Field

from eaglerl.actions import ActionSpace, ActionsSchema
from eaglerl.eagle3.policy import TreeParams
from eaglerl.envs.action_repeat import check_keeping
from eaglerl.envs.observations import TEXT_MODEL, TEXT_WIDTH, ObservationSchema, ObservationSpec
from eaglerl.envs.rewards import RewardName
from eaglerl.json_file import Schema, check_json, shortly
from eaglerl.ops.action_cache import CacheModeName
from eaglerl.ops.limits import MAX_HORIZON, MAX_WIDTH

#: The tree of Re-SpS without a state.
RESPS_TREE = TreeParams(96, 8, 20)


class SettingsSchema(Schema):
    """The settings in a policy's card; see `PolicySettings`."""

    hidden_size: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    use_eagle3_features: bool
    use_context_only_state: bool
    observation: ObservationSchema
    actions: ActionsSchema
    action_cache_steps: Annotated[int, Field(ge=1, le=1 << 20)]
    action_cache_enabled: bool
    similarity_threshold: float | None
    horizon: Annotated[int, Field(ge=1, le=MAX_HORIZON)]
    compressed_size: Annotated[int, Field(ge=1, le=MAX_WIDTH)] | None
    enable_max_entropy: bool
    max_entropy_inference: bool
    inference_temperature: Annotated[float, Field(gt=0.0)]
    reward: RewardName
    reference: bool
    text_model: Annotated[str, Field(min_length=1, max_length=4096)] = TEXT_MODEL
    seed: Annotated[int, Field(ge=0, lt=1 << 32)]


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Settings that are saved with a policy, and that a resumed run must share.

    Attributes:
        hidden_size: k, width of the features.
        use_eagle3_features: read the target's features; otherwise the context's text, projected to
            their width.
        use_context_only_state: read the embedding of the context's text instead.
        observation: what is observed, if it is something else.
        actions: the trees; the 177 of Re-SpS by default.
        action_cache_steps: cycles per decision.
        action_cache_enabled: False decides in every cycle.
        similarity_threshold: decide earlier once the cosine similarity of the features to those of
            the decision falls below this; None never does.
        horizon: windows of `action_cache_steps` cycles per decision, which has a tree for each.
        compressed_size: k', linear combinations of the features that are trained with the policy
            and replace them; None reads the features as they are.
        enable_max_entropy: explore for entropy: PPO with the larger entropy bonus, DQN with draws
            from a softmax.
        max_entropy_inference: draw actions at inference too.
        inference_temperature: temperature of these draws.
        reward: see `WindowReward`.
        reference: behave as Re-SpS does, faults included.
        text_model: what embeds the context's text, see `sentence_encoder`.
        seed: of initial parameters and all draws.

    Raises:
        ValueError: a value is out of its range, or two contradict each other.
    """

    hidden_size: int = 4096
    use_eagle3_features: bool = True
    use_context_only_state: bool = False
    observation: ObservationSpec | None = None
    actions: ActionSpace = field(default_factory=ActionSpace.resps)
    action_cache_steps: int = 10
    action_cache_enabled: bool = True
    similarity_threshold: float | None = None
    horizon: int = 1
    compressed_size: int | None = None
    enable_max_entropy: bool = True
    max_entropy_inference: bool = True
    inference_temperature: float = 1.5
    reward: RewardName = "tokens"
    reference: bool = False
    text_model: str = TEXT_MODEL
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("hidden_size", 1), ("action_cache_steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise ValueError(f"{name} must be an int of at least {minimum}, got {value!r}")
        if not self.inference_temperature > 0:
            raise ValueError(
                f"inference_temperature must be positive, got {self.inference_temperature}; "
                "max_entropy_inference=False takes the best action"
            )
        if self.reward not in get_args(RewardName):
            raise ValueError(f"reward must be one of {get_args(RewardName)}, got {self.reward!r}")
        if not isinstance(self.text_model, str) or not self.text_model:
            raise ValueError(f"text_model must be a name or a folder, got {self.text_model!r}")
        if not isinstance(self.actions, ActionSpace):
            raise ValueError(f"actions must be an ActionSpace, got {self.actions!r}")
        self._check_future_work()

    def _check_future_work(self) -> None:
        """Check the settings that Re-SpS leaves to future work."""
        check_keeping(self.similarity_threshold, self.horizon)
        size, width = self.compressed_size, self.spec.width
        integer = isinstance(size, int) and not isinstance(size, bool)
        if size is not None and not (integer and 1 <= size < width):
            raise ValueError(
                f"compressed_size must be an int in 1..{width - 1}, below the width of the "
                f"features, or None, got {size!r}"
            )
        keeps = self.similarity_threshold is not None or self.horizon > 1
        if keeps and not self.action_cache_enabled:
            raise ValueError(
                "similarity_threshold and horizon say how long a decision is kept: "
                f"action_cache_enabled must be True, got {self.action_cache_enabled}"
            )
        if self.reference and (keeps or size is not None):
            raise ValueError(
                "reference must be False with similarity_threshold, horizon or compressed_size, "
                "which Re-SpS does not have"
            )

    @property
    def spec(self) -> ObservationSpec:
        """What is observed."""
        if self.observation is not None:
            return self.observation
        if self.use_context_only_state:
            return ObservationSpec("context", TEXT_WIDTH)
        return ObservationSpec("features", self.hidden_size)

    @property
    def reads_text(self) -> bool:
        """Whether the context's text is observed, as an embedding or projected."""
        return self.spec.source == "context" or not self.use_eagle3_features

    @property
    def interval(self) -> int:
        """Cycles per decision."""
        return self.action_cache_steps if self.action_cache_enabled else 1

    @property
    def cache_mode(self) -> CacheModeName:
        """Mode of an `ActionCache` that keeps decisions as these settings do."""
        if self.horizon > 1:
            return "scheduled"
        return "fixed" if self.similarity_threshold is None else "adaptive"

    @property
    def fallback_action(self) -> int:
        """The action without a state, or if a score is not finite."""
        return self.actions.index(RESPS_TREE) if RESPS_TREE in self.actions else 0

    def to_dict(self) -> dict[str, Any]:
        """Return a description that JSON can hold."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["actions"] = self.actions.to_dict()
        values["observation"] = self.spec.to_dict()
        if self.text_model == TEXT_MODEL:
            # Left out, as before there was a choice, so that older runs resume.
            del values["text_model"]
        return values

    @classmethod
    def from_dict(cls, content: object) -> PolicySettings:
        """Make the settings that `to_dict` described.

        Raises:
            ValueError: `content` is not such a description; the message says where.
        """
        given = check_json(content, SettingsSchema, "the entry 'settings'")
        values = {item.name: getattr(given, item.name) for item in fields(cls)}
        # The validator of `TreeRow` has made each row a tree.
        trees = cast("tuple[TreeParams, ...]", given.actions.actions)
        return cls(
            **{
                **values,
                "actions": ActionSpace(trees),
                "observation": ObservationSpec(**dict(given.observation)),
            }
        )


def split_options(
    settings: PolicySettings | None, options: Mapping[str, Any]
) -> tuple[PolicySettings, dict[str, Any]]:
    """Return the settings, and the options that are not among their fields.

    Raises:
        TypeError: fields are given besides `settings`.
    """
    names = {item.name for item in fields(PolicySettings)}
    given = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    if settings is None:
        return PolicySettings(**given), rest
    if given:
        raise TypeError(f"give settings or {sorted(given)}, not both")
    return settings, rest


#: Most windows in a buffer or an update, and the largest network.
_MOST = 1 << 20
_MOST_LAYERS, _WIDEST_LAYER = 16, 1 << 13
_COUNTS = {"n_steps", "batch_size", "n_epochs", "memory_size", "target_update_freq"}
_SHARES = {"gamma", "gae_lambda", "epsilon_start", "epsilon_end", "epsilon_decay"}
_POSITIVE = {"learning_rate", "clip_range", "max_grad_norm", "temperature"}


def check_model_options(options: Mapping[str, Any]) -> None:
    """Check that an algorithm's options are in their ranges.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in options.items():
        if name == "net_arch":
            _check_layers(value)
            continue
        if name == "activation":
            if value not in ("tanh", "relu"):
                raise ValueError(f"activation must be 'tanh' or 'relu', got {value!r}")
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _COUNTS and not (isinstance(value, int) and number and value >= 1):
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if name in _COUNTS and value > _MOST:
            raise ValueError(f"{name} must be at most {_MOST}, got {value!r}")
        if name in _SHARES and not (number and 0 <= value <= 1):
            raise ValueError(f"{name} must lie in 0..1, got {value!r}")
        if name in _POSITIVE and not (number and 0 < value < math.inf):
            raise ValueError(f"{name} must be positive, got {value!r}")
        if not (number and 0 <= value < math.inf):
            raise ValueError(f"{name} must not be negative, got {value!r}")


def _check_layers(value: object) -> None:
    given = list(value.values()) if isinstance(value, Mapping) else [value]
    named = not isinstance(value, Mapping) or value.keys() <= {"pi", "vf"}
    parts = [part for part in given if isinstance(part, list | tuple)]
    if not named or len(parts) < len(given):
        raise ValueError(f"net_arch must be widths, or those of pi and vf, got {shortly(value)}")
    layers = [width for part in parts for width in part]
    if not layers or not all(type(width) is int and width > 0 for width in layers):
        raise ValueError(f"net_arch must be widths of at least 1, got {shortly(value)}")
    if max(map(len, parts)) > _MOST_LAYERS or max(layers) > _WIDEST_LAYER:
        raise ValueError(
            f"net_arch must be at most {_MOST_LAYERS} layers of at most {_WIDEST_LAYER} units, "
            f"got {shortly(value)}"
        )
