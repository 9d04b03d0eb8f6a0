"""The learning curve of a draft head as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eaglerl.runs.extras import new_figure


def plot_curves(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw loss and accuracy over the steps.

    Args:
        records: the run's metrics, see `HeadRun.log`.
        path: PNG file to write.
    """
    train = [record for record in records if record["kind"] == "train"]
    validation = [record for record in records if record["kind"] == "validation"]
    # The last validation reads all held-out rows, the others some of them: it is not on the curve.
    validation = [record for record in validation if record["rows"] == validation[0]["rows"]]
    figure = new_figure(11, 4.2)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    loss_axes.plot(*_series(train, "step_losses", 0), color="0.7", label="training")
    loss_axes.plot(*_series(validation, "step_losses", 0), color="tab:red", label="held out")
    loss_axes.set(xlabel="step", ylabel="cross-entropy of step 0")
    accuracy_axes.plot(*_series(train, "accuracy", 0), color="0.7", label="training, step 0")
    for index in range(len(validation[-1]["accuracy"]) if validation else 0):
        label = f"held out, step {index}"
        accuracy_axes.plot(*_series(validation, "accuracy", index), label=label)
    accuracy_axes.set(xlabel="step", ylabel="top-1 accuracy")
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, format="png", dpi=110)


def _series(
    records: Sequence[Mapping[str, Any]], key: str, index: int
) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record[key][index] for record in records]
