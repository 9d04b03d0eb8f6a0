"""Weights & Biases as an output of stable-baselines3's logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import wandb
from stable_baselines3.common.logger import KVWriter


class WandbOutput(KVWriter):
    """Sends what is logged to a run; WANDB_MODE, WANDB_DIR and the like say how."""

    def __init__(
        self, project: str, run_name: str | None, configuration: Mapping[str, Any] | None
    ) -> None:
        """Begin a run.

        Args:
            project: its project.
            run_name: its name; one that is made up without.
            configuration: settings that it shows.
        """
        self._run = wandb.init(project=project, name=run_name, config=dict(configuration or {}))

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Send what was recorded since the last time."""
        values = {
            name: wandb.Histogram(value.numpy()) if isinstance(value, torch.Tensor) else value
            for name, value in key_values.items()
        }
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
