"""Checkpoints of a training run: the newest that can be read counts, broken ones are named."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eaglerl.files import atomic_path

FORMAT = "eaglerl-policy-checkpoint"
VERSION = 1
_NAME = re.compile(r"step-(\d{10})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        path: its file.
        step: steps done.
        tensors: what was saved.
        info: JSON values beside them.
        configuration: settings of the run.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    configuration: dict[str, Any]


class CheckpointFolder:
    """A folder of checkpoints: one safetensors file each, which a reader finds whole or not."""

    def __init__(self, path: str | Path, configuration: Mapping[str, Any], keep: int = 3) -> None:
        """Name the folder; it is made when the first checkpoint is saved.

        Args:
            path: the folder.
            configuration: JSON values that a run must share with a checkpoint to go on from it.
            keep: checkpoints that are kept; older ones are removed.

        Raises:
            ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = Path(path)
        # As it will be read back: tuples become lists.
        self._configuration: dict[str, Any] = json.loads(json.dumps(dict(configuration)))
        self._keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, and remove what is older than the kept ones."""
        self.path.mkdir(parents=True, exist_ok=True)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "configuration": self._configuration,
            "info": dict(info),
        }
        path = self.path / f"step-{step:010d}.safetensors"
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, metadata={"header": json.dumps(header)})
        for old in self.files()[: -self._keep]:
            old.unlink()
        return path

    def files(self) -> list[Path]:
        """The checkpoints' files, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(file for file in self.path.iterdir() if _NAME.fullmatch(file.name))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; None if there is none.

        One that cannot is skipped with a warning that names it.

        Raises:
            ValueError: the newest one is of a run with another configuration.
        """
        for path in reversed(self.files()):
            try:
                checkpoint = read_checkpoint(path)
            except ValueError as error:
                warnings.warn(f"skipped a broken checkpoint: {error}", stacklevel=2)
                continue
            self._check_configuration(checkpoint)
            return checkpoint
        return None

    def _check_configuration(self, checkpoint: Checkpoint) -> None:
        saved, own = checkpoint.configuration, self._configuration
        for name in sorted(saved.keys() | own.keys()):
            if saved.get(name) != own.get(name):
                raise ValueError(
                    f"{name} must be {saved.get(name)!r}, as in the run that "
                    f"{str(checkpoint.path)!r} is of, got {own.get(name)!r}"
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        ValueError: it cannot be read, or is none; the message names the file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads((file.metadata() or {}).get("header", "null"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f'{str(path)!r} is no checkpoint: "format" must be "{FORMAT}"')
    if header.get("version") != VERSION:
        raise ValueError(
            f"version of the checkpoint {str(path)!r} must be {VERSION}, got "
            f"{header.get('version')!r}"
        )
    for name, kind in (("step", int), ("info", dict), ("configuration", dict)):
        if not isinstance(header.get(name), kind):
            raise ValueError(
                f"{name!r} of the checkpoint {str(path)!r} must be of type {kind.__name__}, got "
                f"{header.get(name)!r}"
            )
    return Checkpoint(path, header["step"], tensors, header["info"], header["configuration"])
