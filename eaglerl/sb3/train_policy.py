"""Training of PPO and DQN policies, on traces or live; a killed run resumes as if never killed.

The training is `learn` of stable-baselines3; this module logs, validates and saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.envs.live_env import SpeculativeDecodingEnv
from eaglerl.envs.observations import ObservationSpec, draft_head_of
from eaglerl.envs.rewards import RewardName
from eaglerl.envs.standardize import Standardization, StandardizedVecEnv
from eaglerl.envs.trace_env import TraceVecEnv
from eaglerl.envs.trace_windows import TraceWindows, observation_size
from eaglerl.files import exclusive_folder
from eaglerl.fingerprints import head_id
from eaglerl.ops import PolicyWeights
from eaglerl.resps.policies.load_saved import POLICIES
from eaglerl.resps.policies.policy_settings import PolicySettings
from eaglerl.resps.policies.resps_policy import ReSpSPolicy
from eaglerl.runs.policy_run import PolicyRun
from eaglerl.runs.run_log import RunLog
from eaglerl.sb3.policy_card import write_policy_card
from eaglerl.sb3.training_callback import TrainingCallback
from eaglerl.traces.oracle import constant_seconds, trace_tables
from eaglerl.traces.recording import Prompt
from eaglerl.traces.trace_set import Trace

Algorithm = Literal["ppo", "dqn"]

#: Arguments of the models; the defaults of stable-baselines3 are meant for few environments.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 128, "n_epochs": 8, "ent_coef": 0.01},
    "dqn": {
        "buffer_size": 20_000,
        "batch_size": 128,
        "learning_starts": 1000,
        "train_freq": 1,
        "gradient_steps": 4,
        "target_update_interval": 500,
        "exploration_fraction": 0.5,
        # One array for observations and their successors: checkpoints of half the size.
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
}


@dataclass(frozen=True)
class TrainPolicyOptions:
    """How a policy is trained.

    Attributes:
        algorithm: "ppo" or "dqn".
        total_steps: cache windows to learn from.
        cache_steps: cycles of a window.
        n_envs: traces decoded side by side.
        extras: see `TraceEnv`.
        similarity_threshold: see `PolicySettings`.
        horizon: see `PolicySettings`; above 1, `total_steps` counts decisions.
        compressed_size: see `PolicySettings`.
        reward: see `WindowReward`.
        learning_rate: of Adam.
        gamma: discount per window.
        net_arch: hidden layers.
        seed: of all draws.
        checkpoint_steps: windows between two checkpoints, and between two points of the curve.
        wandb_project: project of Weights & Biases to log to as well; None for none.
        model: arguments of stable-baselines3's model besides or instead of `DEFAULTS`.

    Raises:
        ValueError: a value is out of its range.
    """

    algorithm: Algorithm = "ppo"
    total_steps: int = 200_000
    cache_steps: int = 10
    n_envs: int = 16
    extras: tuple[str, ...] = ()
    similarity_threshold: float | None = None
    horizon: int = 1
    compressed_size: int | None = None
    reward: RewardName = "tokens"
    learning_rate: float = 1e-3
    gamma: float = 0.9
    net_arch: tuple[int, ...] = (64, 64)
    seed: int = 0
    checkpoint_steps: int = 10_000
    wandb_project: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.algorithm not in POLICIES:
            raise ValueError(f"algorithm must be one of {sorted(POLICIES)}, got {self.algorithm!r}")
        for name in ("total_steps", "cache_steps", "n_envs", "checkpoint_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must lie in 0..1, got {self.gamma}")


class _WindowOptions(TypedDict):
    """What the environments and the validation share, see `TraceWindows`."""

    cache_steps: int
    extras: tuple[str, ...]
    similarity_threshold: float | None


@dataclass(frozen=True)
class TrainedPolicy:
    """The result of a run.

    Attributes:
        policy: the policy, ready for inference.
        path: its folder.
        records: metrics of the run.
        validation: tokens per second of its best actions on the held-out traces; None without any.
        constant: the same of the best constant tree, tuned on the other traces; None likewise.
    """

    policy: ReSpSPolicy
    path: Path
    records: list[dict[str, Any]]
    validation: float | None
    constant: float | None


def train_policy(
    traces: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    output: str | Path,
    options: TrainPolicyOptions,
    *,
    held_out: Sequence[Trace] = (),
    head: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> TrainedPolicy:
    """Train on traces; a run whose folder has checkpoints resumes.

    The policy that is best on the held-out traces is kept; without any, the last one.

    Args:
        traces: to learn from.
        actions: trees to choose from.
        cost: time of the cycles.
        output: the run's folder.
        options: see `TrainPolicyOptions`.
        held_out: traces to choose the best policy by.
        head: id of the draft head whose traces these are.
        progress: called with a stage and the fraction done.

    Raises:
        ValueError: see `TraceVecEnv`; or the folder holds a run with other options.
        AlreadyLockedError: another process uses the folder.
    """
    width = observation_size(traces[0].features.shape[1] if traces else 0, options.extras)
    windows: _WindowOptions = {
        "cache_steps": options.cache_steps,
        "extras": options.extras,
        "similarity_threshold": options.similarity_threshold,
    }
    env = TraceVecEnv(
        traces, actions, cost, n_envs=options.n_envs, reward=options.reward, seed=options.seed,
        horizon=options.horizon, **windows,
    )  # fmt: skip
    validate, constant = None, None
    if held_out:
        validate = TraceWindows(held_out, actions, cost, **windows)
        constant = _tuned_constant(traces, held_out, actions, cost)
    policy = _new_policy(options, actions, width - observation_size(0, options.extras))
    standardization = Standardization.of_traces(traces, width)
    data = {"traces": [trace.prompt_id for trace in traces], "cost": asdict(cost), "head": head}
    return _train(
        policy, env, standardization, output, options, data, head=head, validate=validate,
        constant=constant, progress=progress,
    )  # fmt: skip


def train_policy_live(
    decoder: SpeculativeDecoder,
    prompts: Sequence[Prompt],
    actions: ActionSpace,
    output: str | Path,
    options: TrainPolicyOptions,
    *,
    max_new_tokens: int = 128,
    cost: CostTable | None = None,
    standardization: Standardization | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> TrainedPolicy:
    """Train while decoding; a run whose folder has checkpoints resumes, with a new sequence.

    Args:
        decoder: decodes one sequence at a time; `options.n_envs` is ignored.
        prompts: to decode.
        actions: trees to choose from.
        output: the run's folder.
        options: see `TrainPolicyOptions`.
        max_new_tokens: longest continuation.
        cost: cost table used instead of the clock, see `SpeculativeDecodingEnv`.
        standardization: of the observations, from traces; None for none.
        progress: called with a stage and the fraction done.

    Raises:
        ValueError: see `SpeculativeDecodingEnv`; or the folder holds a run with other options.
        AlreadyLockedError: another process uses the folder.
    """
    env = SpeculativeDecodingEnv(
        decoder,
        prompts,
        actions,
        cache_steps=options.cache_steps,
        max_new_tokens=max_new_tokens,
        extras=options.extras,
        similarity_threshold=options.similarity_threshold,
        horizon=options.horizon,
        reward=options.reward,
        cost=cost,
    )
    policy = _new_policy(options, actions, env.observation_spec.width)
    head = head_id(draft_head_of(decoder))
    data = {"prompts": len(prompts), "max_new_tokens": max_new_tokens, "head": head}
    return _train(
        policy, DummyVecEnv([lambda: Monitor(env)]),
        standardization or Standardization.identity(env.observation_spec.size),
        output, options, data, head=head, progress=progress,
    )  # fmt: skip


def _new_policy(options: TrainPolicyOptions, actions: ActionSpace, width: int) -> ReSpSPolicy:
    settings = PolicySettings(
        hidden_size=width,
        observation=ObservationSpec("features", width, options.extras),
        actions=actions,
        action_cache_steps=options.cache_steps,
        similarity_threshold=options.similarity_threshold,
        horizon=options.horizon,
        compressed_size=options.compressed_size,
        enable_max_entropy=False,
        # The trained policy takes its best action.
        max_entropy_inference=False,
        reward=options.reward,
        seed=options.seed,
    )
    return POLICIES[options.algorithm](
        settings=settings,
        learning_rate=options.learning_rate,
        gamma=options.gamma,
        net_arch=options.net_arch,
    )


def _train(
    policy: ReSpSPolicy,
    env: VecEnv,
    standardization: Standardization,
    output: str | Path,
    options: TrainPolicyOptions,
    data: Mapping[str, Any],
    **further: Any,
) -> TrainedPolicy:
    with exclusive_folder(output):
        return _train_in(output, policy, env, standardization, options, data, **further)


def _train_in(
    output: str | Path,
    policy: ReSpSPolicy,
    env: VecEnv,
    standardization: Standardization,
    options: TrainPolicyOptions,
    data: Mapping[str, Any],
    *,
    head: str | None,
    validate: TraceWindows | None = None,
    constant: float | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> TrainedPolicy:
    settings = {**policy.configuration, **asdict(options), "data": dict(data)}
    # Logging does not change what a run learns.
    settings.pop("wandb_project")
    run = PolicyRun(output, settings)
    arguments = {**DEFAULTS[options.algorithm], **options.model}
    model = policy.new_model(StandardizedVecEnv(env, standardization), **arguments)
    log = RunLog(
        run.path / "tensorboard",
        wandb_project=options.wandb_project,
        wandb_run_name=run.path.name,
        configuration=policy.configuration,
    )
    model.set_logger(log.logger)

    def weights() -> PolicyWeights:
        policy.adopt(model, standardization, head_id=head)
        return policy.weights

    callback = TrainingCallback(
        run, env, weights, options.total_steps, options.checkpoint_steps, validate, progress
    )
    callback.resume(model)
    left = options.total_steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=callback, reset_num_timesteps=False)
    final = weights()
    callback.finish(final)
    best = callback.best_weights or final
    validation = callback.best if validate is not None else None
    training = {
        "steps": model.num_timesteps,
        "options": asdict(options),
        "prompts": len(data["traces"]) if "traces" in data else data["prompts"],
        "held_out_prompts": 0 if validate is None else len(validate.starts),
        "data": {name: value for name, value in data.items() if name != "traces"},
        "validation_tokens_per_second": validation,
        "constant_tokens_per_second": constant,
    }
    policy.adopt(model, standardization, head_id=head, training=training)
    policy.use_weights(best)
    policy.save(run.policy_path)
    write_policy_card(run.policy_path)
    run.plot(constant=constant)
    log.close()
    return TrainedPolicy(policy, run.policy_path, run.records, validation, constant)


def _tuned_constant(
    traces: Sequence[Trace], held_out: Sequence[Trace], actions: ActionSpace, cost: CostTable
) -> float:
    """Return the tokens per second on held-out traces of the tree that is best on the others."""
    start = np.zeros(len(actions))
    tuned = sum(map(constant_seconds, trace_tables(traces, actions, cost)), start)
    tables = trace_tables(held_out, actions, cost)
    seconds = sum(map(constant_seconds, tables), start)
    return sum(len(table) for table in tables) / float(seconds[int(tuned.argmin())])
