"""Files of a training run: settings, checkpoints, metrics and the learning curve."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter

from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, Schema, parse_json, read_json, read_lines
from eaglerl.runs.learning_curve import plot_curves
from eaglerl.tensor_file import read_tensors

KEPT_CHECKPOINTS = 2
_MAX_BYTES = 1 << 26
_CHECKPOINT = re.compile(r"step-(\d{8})\.safetensors")


class _InfoSchema(Schema):
    model_config = ConfigDict(extra="allow")

    seconds: Annotated[float, Field(ge=0.0)]


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


class RunFolder:
    """One run's folder.

    It holds ``run.json`` (settings), ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``,
    ``learning_curve.png`` and, in the end, ``head/``.
    """

    def __init__(self, path: str | Path) -> None:
        """Names the folder and makes it if it is not there."""
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"
        self._metrics = self.path / "metrics.jsonl"
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._board: SummaryWriter | None = None

    @property
    def head_path(self) -> Path:
        """Where the trained head lies."""
        return self.path / "head"

    def settle(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Records the settings of a new run, or compares them with those of a run to go on with.

        Args:
            settings: JSON values. "rows" names the data; it may differ now.

        Returns:
            The settings of the run, with the "rows" that it was started with.

        Raises:
            ValueError: A setting other than "rows" differs.
        """
        file = self.path / "run.json"
        settings = json.loads(json.dumps(settings))
        if not os.path.lexists(file):
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            return settings
        recorded = read_json(
            file, _SettingsSchema, "run's settings", max_bytes=_MAX_BYTES, allow_nan=True
        ).model_dump(mode="json")
        for key in sorted((recorded.keys() | settings.keys()) - {"rows"}):
            if recorded.get(key) != settings.get(key):
                raise ValueError(
                    f"{key} must be {recorded.get(key)!r}, as in the run that {self.path} holds, "
                    f"got {settings.get(key)!r}; choose another folder for a new run"
                )
        return recorded

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, torch.Tensor], info: Mapping[str, Any]
    ) -> None:
        """Writes the state after ``step`` steps and removes all but the last two checkpoints."""
        with atomic_path(self._checkpoints / f"step-{step:08d}.safetensors") as temporary:
            save_file(dict(tensors), temporary, metadata={"info": json.dumps(dict(info))})
        for _, file in self._list_checkpoints()[:-KEPT_CHECKPOINTS]:
            file.unlink()

    def load_checkpoint(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """Reads the newest checkpoint: steps done, tensors and info; None if there is none."""
        found = self._list_checkpoints()
        if not found:
            return None
        step, path = found[-1]
        tensors, metadata = read_tensors(path, "checkpoint")
        where = f"the entry 'info' of the checkpoint {str(path)!r}"
        info = parse_json(metadata.get("info", ""), _InfoSchema, where, allow_nan=True)
        return step, tensors, info.model_dump()

    def open_logs(self, first_step: int) -> None:
        """Opens the logs; what an interrupted run logged from ``first_step`` on is dropped."""
        kept = [record for record in self.read_metrics() if record["step"] <= first_step]
        with atomic_path(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._board = SummaryWriter(self.path / "tensorboard", purge_step=first_step + 1)

    def log(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Appends a record to the metrics and to TensorBoard.

        Args:
            step: Steps done.
            kind: "train" or "validation".
            values: Numbers, or lists of numbers with one for each training-time-test step.
        """
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        if self._board is None:
            return
        for name, value in values.items():
            parts = enumerate(value) if isinstance(value, list) else [("", value)]
            for index, number in parts:
                suffix = "" if index == "" else f"_{index}"
                self._board.add_scalar(f"{kind}/{name}{suffix}", number, step)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns all complete records."""
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
        """Draws the learning curve anew."""
        with atomic_path(self.path / "learning_curve.png") as temporary:
            plot_curves(self.read_metrics(), temporary)

    def close(self) -> None:
        """Closes the logs."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _list_checkpoints(self) -> list[tuple[int, Path]]:
        matches = ((_CHECKPOINT.fullmatch(file.name), file) for file in self._checkpoints.iterdir())
        return sorted((int(match[1]), file) for match, file in matches if match)
