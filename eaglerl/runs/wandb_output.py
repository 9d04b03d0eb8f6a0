"""Weights & Biases as an output of stable-baselines3's logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import wandb
from stable_baselines3.common.logger import KVWriter


class WandbOutput(KVWriter):
    """Output to a run of Weights & Biases, which reads WANDB_MODE, WANDB_DIR and the like."""

    def __init__(
        self, project: str, run_name: str | None, configuration: Mapping[str, Any] | None
    ) -> None:
        """Start a run.

        Args:
            project: its project.
            run_name: its name; None lets Weights & Biases make one up.
            configuration: settings shown with the run.
        """
        self._run = wandb.init(project=project, name=run_name, config=dict(configuration or {}))

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Send the values recorded since the last call."""
        values = {
            name: wandb.Histogram(value.numpy()) if isinstance(value, torch.Tensor) else value
            for name, value in key_values.items()
        }
        self._run.log(values, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
