"""What the folders of all training runs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from eaglerl.files import atomic_path
from eaglerl.runs.checkpoints import POLICY_FORMAT, CheckpointFolder, CheckpointFormat

#: Checkpoints that a run keeps: if the newest is broken, the one before it is used.
KEPT_CHECKPOINTS = 2


class RunFolder:
    """One run's folder, with ``checkpoints/``, ``metrics.jsonl`` and a picture of the curves.

    Attributes:
        path: the folder.
        checkpoints: its checkpoints.
    """

    def __init__(
        self,
        path: str | Path,
        configuration: Mapping[str, Any],
        *,
        keep: int = KEPT_CHECKPOINTS,
        form: CheckpointFormat = POLICY_FORMAT,
    ) -> None:
        """Name the folder, and make it if it does not exist.

        Args:
            path: the folder.
            configuration: see `CheckpointFolder`.
            keep: see `CheckpointFolder`.
            form: see `CheckpointFolder`.
        """
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", configuration, keep, form)
        self._metrics = self.path / "metrics.jsonl"

    def _replace_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        with atomic_path(self._metrics) as temporary:
            lines = (json.dumps(dict(record)) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")

    def _append_metrics(self, record: Mapping[str, Any]) -> None:
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def _replace_picture(self, name: str, draw: Callable[[Path], None]) -> None:
        with atomic_path(self.path / name) as temporary:
            draw(temporary)
