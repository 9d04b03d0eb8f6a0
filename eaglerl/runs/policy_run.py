"""Files of a run that trains a policy: checkpoints, metrics, and the curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eaglerl.files import atomic_path
from eaglerl.runs.checkpoints import CheckpointFolder


class PolicyRun:
    """One run's folder.

    It holds ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``reward_curve.png`` and, in the
    end, the policy in ``policy/``.

    Attributes:
        path: the folder.
        checkpoints: its checkpoints.
        records: metrics so far, oldest first.
    """

    def __init__(self, path: str | Path, configuration: Mapping[str, Any], keep: int = 2) -> None:
        """Name the folder and make it if it is not there.

        Args:
            path: the folder.
            configuration: see `CheckpointFolder`.
            keep: see `CheckpointFolder`.
        """
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", configuration, keep)
        self.records: list[dict[str, Any]] = []

    @property
    def policy_path(self) -> Path:
        """Where the trained policy lies."""
        return self.path / "policy"

    def restore(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Begin with the records of a checkpoint, or with none: what came after is dropped."""
        self.records = [dict(record) for record in records]
        with atomic_path(self.path / "metrics.jsonl") as temporary:
            lines = (json.dumps(record) + "\n" for record in self.records)
            temporary.write_text("".join(lines), encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a record: "step" and numbers."""
        self.records.append(dict(record))
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def plot(self, *, constant: float | None = None) -> None:
        """Draw the curves anew.

        Args:
            constant: tokens per second of the best constant tree, for a line to compare with.
        """
        with atomic_path(self.path / "reward_curve.png") as temporary:
            plot_rewards(self.records, temporary, constant=constant)


def plot_rewards(
    records: Sequence[Mapping[str, Any]], path: str | Path, *, constant: float | None = None
) -> None:
    """Draw rewards and tokens per second over the steps.

    Args:
        records: see `PolicyRun`.
        path: PNG file to write.
        constant: tokens per second of the best constant tree.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
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
