"""What a policy writes while it learns: checkpoints and logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eaglerl.resps.policies.policy_statistics import PolicyStatistics
from eaglerl.runs.checkpoints import CheckpointFolder
from eaglerl.runs.run_log import RunLog

#: Windows between two histograms of actions in the log.
_HISTOGRAM_INTERVAL = 100


class PolicyOutputs:
    """Checkpoints and logs of one policy.

    Attributes:
        log: TensorBoard, Weights & Biases, or none.
        checkpoints: the folder of checkpoints; None for none.
        checkpoint_freq: windows between two checkpoints.
    """

    def __init__(
        self,
        configuration: Mapping[str, Any],
        *,
        checkpoint_dir: str | Path | None = None,
        checkpoint_freq: int = 100,
        max_checkpoints: int = 3,
        tensorboard_dir: str | Path | None = None,
        use_wandb: bool = False,
        wandb_project: str = "eaglerl",
        wandb_run_name: str | None = None,
    ) -> None:
        """Choose the outputs.

        Args:
            configuration: JSON values that a resumed run must share.
            checkpoint_dir: where to save every `checkpoint_freq` windows; None for nowhere.
            checkpoint_freq: windows between two checkpoints.
            max_checkpoints: number of checkpoints to keep.
            tensorboard_dir: where to log for TensorBoard; None for nowhere.
            use_wandb: log to Weights & Biases, which reads WANDB_MODE and the like.
            wandb_project: its project.
            wandb_run_name: its run.

        Raises:
            ValueError: a value is out of its range.
            ImportError: an output that was asked for is not installed.
        """
        if not isinstance(checkpoint_freq, int) or checkpoint_freq < 1:
            raise ValueError(f"checkpoint_freq must be an int of at least 1, got {checkpoint_freq}")
        self.log = RunLog(
            tensorboard_dir,
            wandb_project=wandb_project if use_wandb else None,
            wandb_run_name=wandb_run_name,
            configuration=configuration,
        )
        self.checkpoints: CheckpointFolder | None = None
        if checkpoint_dir is not None:
            self.checkpoints = CheckpointFolder(checkpoint_dir, configuration, max_checkpoints)
        self.checkpoint_freq = checkpoint_freq

    def checkpoint_is_due(self, windows: int) -> bool:
        """Return whether to save a checkpoint after so many windows."""
        return self.checkpoints is not None and windows % self.checkpoint_freq == 0

    def log_window(self, statistics: PolicyStatistics, values: Mapping[str, Any]) -> None:
        """Log one window.

        Args:
            statistics: of the policy, with this window.
            values: of the window.
        """
        windows = statistics.counts["windows"]
        histogram = statistics.actions if windows % _HISTOGRAM_INTERVAL == 0 else None
        own = {
            "policy/mean_reward": statistics.mean_reward,
            "policy/hit_rate": statistics.hit_rate,
        }
        self.log.write(windows, {**own, **values}, histogram)
