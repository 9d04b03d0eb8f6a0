"""Folder of a run that trains a policy: checkpoints, metrics, and the curve as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eaglerl.runs.extras import check_train_extra, new_figure
from eaglerl.runs.run_folder import KEPT_CHECKPOINTS, RunFolder


class PolicyRun(RunFolder):
    """The folder of one run.

    It holds ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``reward_curve.png`` and, when
    the run is done, the policy in ``policy/``.

    Attributes:
        records: metrics so far, oldest first.
    """

    def __init__(
        self, path: str | Path, configuration: Mapping[str, Any], keep: int = KEPT_CHECKPOINTS
    ) -> None:
        """Name the folder, and make it if it does not exist.

        Args:
            path: the folder.
            configuration: see `CheckpointFolder`.
            keep: see `CheckpointFolder`.

        Raises:
            ImportError: what logs or draws the metrics is not installed.
        """
        check_train_extra()
        super().__init__(path, configuration, keep=keep)
        self.records: list[dict[str, Any]] = []

    @property
    def policy_path(self) -> Path:
        """Folder of the trained policy."""
        return self.path / "policy"

    def restore(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Start with the records of a checkpoint, or with none; drop what was logged later."""
        self.records = [dict(record) for record in records]
        self._replace_metrics(self.records)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record: "step" and numbers."""
        self.records.append(dict(record))
        self._append_metrics(record)

    def plot(self, *, constant: float | None = None) -> None:
        """Draw the curves again, with all records so far.

        Args:
            constant: tokens per second of the best constant tree, drawn as a line.
        """
        self._replace_picture(
            "reward_curve.png", lambda path: plot_rewards(self.records, path, constant=constant)
        )


def plot_rewards(
    records: Sequence[Mapping[str, Any]], path: str | Path, *, constant: float | None = None
) -> None:
    """Draw rewards and tokens per second over the steps.

    Args:
        records: see `PolicyRun`.
        path: PNG file to write.
        constant: tokens per second of the best constant tree.
    """
    figure = new_figure(11, 4.2)
    reward_axes, speed_axes = figure.subplots(1, 2)
    reward_axes.plot(*_series(records, "reward"), color="tab:blue", label="exploring")
    reward_axes.set(xlabel="windows", ylabel="mean reward of a window")
    speed_axes.plot(*_series(records, "tokens_per_second"), color="0.7", label="exploring")
    speed_axes.plot(*_series(records, "validation"), color="tab:red", label="best action, held out")
    if constant is not None:
        speed_axes.axhline(constant, color="0.3", linestyle="--", label="best constant, held out")
    speed_axes.set(xlabel="windows", ylabel="tokens per second")
    for axes in (reward_axes, speed_axes):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=110)


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    found = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in found], [record[key] for record in found]
