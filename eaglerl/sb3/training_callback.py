"""Metrics, validation and checkpoints during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from eaglerl.envs.trace_windows import TraceWindows
from eaglerl.ops import PolicyWeights
from eaglerl.ops._policy_fields import gather_fields
from eaglerl.runs.checkpoints import Checkpoint, resuming
from eaglerl.runs.policy_run import PolicyRun
from eaglerl.runs.sb3_state import load_model_state, model_state
from eaglerl.sb3.greedy_outcome import greedy_outcome

_BEST = "best."


@runtime_checkable
class _Resumable(Protocol):
    """Environments whose state can be saved."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TrainingCallback(BaseCallback):
    """Logging and saving between rollouts, when the model's state is complete.

    Attributes:
        best: tokens per second of the best policy so far on the held-out traces.
        best_weights: that policy; None without held-out traces.
    """

    def __init__(
        self,
        run: PolicyRun,
        env: VecEnv,
        weights: Callable[[], PolicyWeights],
        total_steps: int,
        interval: int,
        validate: TraceWindows | None,
        progress: Callable[[str, float], None] | None,
    ) -> None:
        """Set up.

        Args:
            run: where to save.
            env: the environments; their state is saved too, if they have a `state_dict`.
            weights: returns the current policy.
            total_steps: windows of the whole run.
            interval: windows between two records and checkpoints.
            validate: the held-out traces.
            progress: called with a stage and the fraction done.
        """
        super().__init__()
        self._run, self._env, self._weights = run, env, weights
        self._total, self._interval = total_steps, interval
        self._validate, self._progress = validate, progress
        self._next = interval
        self._sums = {"tokens": 0, "seconds": 0.0, "reward": 0.0, "windows": 0}
        self.best = -np.inf
        self.best_weights: PolicyWeights | None = None

    def resume(self, model: Any) -> None:
        """Resume from the newest checkpoint, if there is one.

        Raises:
            ValueError: the checkpoint is of another run.
        """
        self.model = model
        checkpoint = self._run.checkpoints.newest()
        if checkpoint is None:
            self._run.restore([])
            return
        with resuming(checkpoint):
            self._take_over(model, checkpoint)

    def _take_over(self, model: Any, checkpoint: Checkpoint) -> None:
        info, tensors = checkpoint.info, checkpoint.tensors
        # Makes the lists that load_model_state fills, as learn() would.
        model._setup_learn(self._total, reset_num_timesteps=True)
        load_model_state(model, tensors, info["model"])
        if info["env"] is None:
            # The sequence that was being decoded is lost; learn() begins another.
            model._last_obs = None
        elif isinstance(self._env, _Resumable):
            self._env.load_state_dict(info["env"])
        else:
            raise ValueError("it holds the state of environments, but these cannot be resumed")
        own = info["callback"]
        self._next, self._sums = own["next"], own["sums"]
        self._run.restore(own["records"])
        best = {
            name.removeprefix(_BEST): value
            for name, value in tensors.items()
            if name.startswith(_BEST)
        }
        if best:
            self.best = own["best"]
            self.best_weights = PolicyWeights(**gather_fields(best), **own["best_settings"])

    def finish(self, weights: PolicyWeights) -> None:
        """Record the end of the run, and save it."""
        if self._sums["windows"]:
            self._record(weights)
            self._save()

    def _on_step(self) -> bool:
        sums = self._sums
        for info in self.locals["infos"]:
            sums["tokens"] += info["tokens"]
            sums["seconds"] += info["seconds"]
        sums["reward"] += float(np.sum(self.locals["rewards"]))
        sums["windows"] += len(self.locals["infos"])
        return True

    def _on_rollout_start(self) -> None:
        if self._progress is not None:
            self._progress(
                f"{self.num_timesteps:,} windows{self._speed()}",
                min(self.num_timesteps / self._total, 1.0),
            )
        if self.num_timesteps < self._next:
            return
        self._next = self.num_timesteps + self._interval
        self._record(self._weights())
        self._save()

    def _speed(self) -> str:
        """Return the tokens per second since the last record, else those of that record."""
        if self._sums["seconds"]:
            speed = self._sums["tokens"] / self._sums["seconds"]
        elif self._run.records:
            speed = self._run.records[-1]["tokens_per_second"]
        else:
            return ""
        return f", {speed:.1f} tokens/s"

    def _record(self, weights: PolicyWeights) -> None:
        sums = self._sums
        record: dict[str, Any] = {
            "step": int(self.model.num_timesteps),
            "reward": sums["reward"] / sums["windows"],
            "tokens_per_second": sums["tokens"] / sums["seconds"],
        }
        if self._validate is not None:
            tokens, seconds = greedy_outcome(weights, self._validate)
            record["validation"] = tokens / seconds
            if record["validation"] > self.best:
                self.best, self.best_weights = record["validation"], weights
        self._run.log(record)
        logger = self.model.logger
        for name, value in record.items():
            logger.record(f"run/{name}", value)
        logger.dump(record["step"])
        for name in sums:
            sums[name] = type(sums[name])(0)

    def _save(self) -> None:
        tensors, model = model_state(self.model)
        own: dict[str, Any] = {
            "next": self._next,
            "sums": self._sums,
            "records": self._run.records,
        }
        if self.best_weights is not None:
            names = ("activation", "mlp_input", "norm_chunks", "eps", "horizon", "fallback_action")
            own["best"] = self.best
            own["best_settings"] = {name: getattr(self.best_weights, name) for name in names}
            tensors |= {_BEST + name: value for name, value in self.best_weights.tensors().items()}
        env = self._env.state_dict() if isinstance(self._env, _Resumable) else None
        info = {"model": model, "env": env, "callback": own}
        self._run.checkpoints.save(int(self.model.num_timesteps), tensors, info)
