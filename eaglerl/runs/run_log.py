"""Logs of training: TensorBoard, Weights & Biases, or both."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eaglerl.runs.extras import check_train_extra


class RunLog:
    """A stable-baselines3 logger, made when it is first needed; models write to it as well."""

    def __init__(
        self,
        tensorboard_dir: str | Path | None = None,
        *,
        wandb_project: str | None = None,
        wandb_run_name: str | None = None,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        """Choose the outputs.

        Args:
            tensorboard_dir: folder of TensorBoard's files; None for none.
            wandb_project: project of Weights & Biases; None for none.
            wandb_run_name: name of its run.
            configuration: settings that it shows.

        Raises:
            ImportError: an output that was asked for is not installed.
        """
        if tensorboard_dir is not None:
            check_train_extra("tensorboard")
        if wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ImportError(
                "Weights & Biases is not installed: install the extra with "
                "pip install 'eaglerl[wandb]'"
            )
        self._folder = None if tensorboard_dir is None else str(tensorboard_dir)
        self._wandb_project, self._wandb_run_name = wandb_project, wandb_run_name
        self._configuration = configuration
        self._logger: Any = None

    @property
    def logger(self) -> Any:
        """The logger of stable-baselines3."""
        if self._logger is None:
            from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat

            outputs: list[Any] = []
            if self._folder is not None:
                outputs.append(TensorBoardOutputFormat(self._folder))
            if self._wandb_project is not None:
                from eaglerl.runs.wandb_output import WandbOutput

                outputs.append(
                    WandbOutput(self._wandb_project, self._wandb_run_name, self._configuration)
                )
            self._logger = Logger(self._folder, outputs)
        return self._logger

    def write(
        self, step: int, values: Mapping[str, Any], actions: Mapping[int, int] | None = None
    ) -> None:
        """Write values, and what a model has recorded since the last call.

        Args:
            step: their step.
            values: numbers and short texts.
            actions: how often each action was chosen, for a histogram.
        """
        logger = self.logger
        if not logger.output_formats:
            # Without an output, the model's records would pile up.
            logger.name_to_value.clear()
            return
        for name, value in values.items():
            logger.record(name, value)
        if actions:
            counts = [torch.full((count,), action) for action, count in actions.items()]
            logger.record("policy/actions", torch.cat(counts))
        logger.dump(step)

    def close(self) -> None:
        """Close the outputs."""
        if self._logger is not None:
            self._logger.close()
            self._logger = None
