"""Checkpoints of a training run: the newest that can be read counts, broken ones are named."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from eaglerl.files import atomic_path
from eaglerl.json_file import AnyObject, Count, VersionedSchema, parse_json
from eaglerl.tensor_file import read_tensors

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


class _HeaderSchema(VersionedSchema):
    step: Count
    info: AnyObject
    configuration: AnyObject


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
    tensors, metadata = read_tensors(path, "checkpoint")
    header = parse_json(
        metadata.get("header", "null"),
        _HeaderSchema,
        f"the checkpoint {str(path)!r}",
        form=(FORMAT, VERSION),
        allow_nan=True,
    )
    return Checkpoint(path, header.step, tensors, header.info, header.configuration)


@contextmanager
def resuming(checkpoint: Checkpoint) -> Iterator[None]:
    """While a run takes a checkpoint over: what it holds may not be what its name says.

    Raises:
        ValueError: the block failed; the message names the file, and the error.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise ValueError(
            f"the checkpoint {str(checkpoint.path)!r} cannot be gone on with: {kind}{error}"
        ) from error
