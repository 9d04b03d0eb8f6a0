"""Folder of a run that trains a draft head: settings, checkpoints, metrics, learning curve."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, Schema, parse_json, read_json, read_lines
from eaglerl.runs.checkpoints import HEAD_FORMAT
from eaglerl.runs.extras import check_train_extra
from eaglerl.runs.learning_curve import plot_curves
from eaglerl.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_MAX_BYTES = 1 << 26


class _MetricsSchema(Schema):
    # A run that diverges logs NaN.
    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    step: Count
    kind: str
    rows: Count | None = None
    step_losses: Items[float] = ()
    accuracy: Items[float] = ()


class _SettingsSchema(Schema):
    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    rows: Items[str]


class HeadRun(RunFolder):
    """The folder of one run.

    It holds ``run.json`` (settings), ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``,
    ``learning_curve.png`` and, when the run is done, ``head/``.
    """

    def __init__(self, path: str | Path) -> None:
        """Name the folder, and make it if it does not exist."""
        # The configuration is checked by `check_settings`, before there is a checkpoint.
        super().__init__(path, {}, form=HEAD_FORMAT)
        self._board: SummaryWriter | None = None

    @property
    def head_path(self) -> Path:
        """Folder of the trained head."""
        return self.path / "head"

    def check_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Record the settings of a new run, or compare them with those of the run to resume.

        Args:
            settings: JSON values. "rows" names the data; it may differ when a run is resumed.

        Returns:
            The settings of the run, with the "rows" that it was started with.

        Raises:
            ValueError: a setting other than "rows" differs.
        """
        file = self.path / "run.json"
        given: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        if not os.path.lexists(file):
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(given) + "\n", encoding="utf-8")
            return given
        recorded: dict[str, Any] = read_json(
            file, _SettingsSchema, "run's settings", max_bytes=_MAX_BYTES, allow_nan=True
        ).model_dump(mode="json")
        for key in sorted((recorded.keys() | given.keys()) - {"rows"}):
            if recorded.get(key) != given.get(key):
                raise ValueError(
                    f"{key} must be {recorded.get(key)!r}, as in the run that {self.path} holds, "
                    f"got {given.get(key)!r}; choose another folder for a new run"
                )
        return recorded

    def open_logs(self, first_step: int) -> None:
        """Open the logs, and drop what an interrupted run logged after `first_step`.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        check_train_extra()
        from torch.utils.tensorboard import SummaryWriter

        self._replace_metrics(r for r in self.read_metrics() if r["step"] <= first_step)
        self._board = SummaryWriter(self.path / "tensorboard", purge_step=first_step + 1)

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append a record to the metrics and to TensorBoard.

        Args:
            step: steps done.
            kind: "train" or "validation".
            values: numbers, or lists of numbers with one for each training-time-test step.
        """
        self._append_metrics({"step": step, "kind": kind, **values})
        if self._board is None:
            return
        for name, value in values.items():
            if isinstance(value, list):
                for index, number in enumerate(value):
                    self._board.add_scalar(f"{kind}/{name}_{index}", number, step)
            else:
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all complete records."""
        if not os.path.lexists(self._metrics):
            return []
        # What follows the last line break was cut short when a process was killed.
        return [
            parse_json(line.data, _MetricsSchema, line.where, allow_nan=True).model_dump(
                exclude_unset=True
            )
            for line in read_lines(self._metrics, "metrics")
            if line.ended
        ]

    def plot(self) -> None:
        """Draw the learning curve again, with all records so far."""
        records = self.read_metrics()
        self._replace_picture("learning_curve.png", lambda path: plot_curves(records, path))

    def close(self) -> None:
        """Close the logs."""
        if self._board is not None:
            self._board.close()
            self._board = None
