"""Where training tells what it does: TensorBoard and Weights & Biases, both if asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class RunLog:
    """A logger that models of stable-baselines3 write to as well; made when it is first needed."""

    def __init__(
        self,
        tensorboard_dir: str | Path | None = None,
        *,
        wandb_project: str | None = None,
        wandb_run_name: str | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        """Set up.

        Args:
            tensorboard_dir: folder of TensorBoard's files; None for none.
            wandb_project: project of Weights & Biases; None for none.
            wandb_run_name: name of its run.
            configuration: settings that it shows.

        Raises:
            ImportError: Weights & Biases was asked for and is not installed.
        """
        if wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ImportError(
                "Weights & Biases is not installed: install the extra with "
                "pip install 'eaglerl[wandb]'"
            )
        self._folder = None if tensorboard_dir is None else str(tensorboard_dir)
        self._wandb = (wandb_project, wandb_run_name, configuration)
        self._logger: Any = None

    @property
    def logger(self) -> Any:
        """stable-baselines3's logger."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

            outputs: list[Any] = []
            if self._folder is not None:
                outputs.append(TensorBoardOutputFormat(self._folder))
            if self._wandb[0] is not None:
                from eaglerl.runs.wandb_output import WandbOutput

                outputs.append(WandbOutput(*self._wandb))
            self._logger = Logger(self._folder, outputs)
        return self._logger

    def write(
        self, step: int, values: Mapping[str, Any], actions: Mapping[int, int] | None = None
    ) -> None:
        """Write values, with what a model has recorded.

        Args:
            step: their step.
            values: numbers and short texts.
            actions: how often each action was chosen, for a histogram.
        """
        logger = self.logger
        if not logger.output_formats:
            # Nobody reads it, and the model's records would pile up.
            logger.name_to_value.clear()
            return
        for name, value in values.items():
            logger.record(name, value)
        if actions:
            counts = [torch.full((count,), action) for action, count in actions.items()]
            logger.record("policy/actions", torch.cat(counts))
        logger.dump(step)

    def close(self) -> None:
        """Close what was opened."""
        if self._logger is not None:
            self._logger.close()
            self._logger = None
