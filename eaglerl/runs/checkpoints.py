"""Checkpoints of a training run. The newest readable one counts; broken ones are skipped."""

from __future__ import annotations

import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor

from eaglerl.files import atomic_path
from eaglerl.json_file import AnyObject, Count, Schema, VersionedSchema, parse_json
from eaglerl.tensor_file import read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        path: its file.
        step: steps done.
        tensors: the saved tensors.
        info: JSON values saved with them.
        configuration: settings of the run; empty where ``run.json`` holds them.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    configuration: dict[str, Any]


class CheckpointFormat(ABC):
    """How a checkpoint is named, and what its safetensors metadata holds.

    Args:
        digits: digits of the step in the file name.
    """

    def __init__(self, digits: int) -> None:
        self._digits = digits
        self._pattern = re.compile(rf"step-(\d{{{digits}}})\.safetensors")

    def file_name(self, step: int) -> str:
        """Return the name of the checkpoint after `step` steps."""
        return f"step-{step:0{self._digits}d}.safetensors"

    def step_of(self, file_name: str) -> int | None:
        """Return the step in a file name; None if it is not the name of a checkpoint."""
        match = self._pattern.fullmatch(file_name)
        return int(match[1]) if match else None

    @abstractmethod
    def metadata(
        self, step: int, info: Mapping[str, Any], configuration: Mapping[str, Any]
    ) -> dict[str, str]:
        """Return the metadata of a checkpoint."""

    @abstractmethod
    def parse(
        self, path: Path, metadata: Mapping[str, str]
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Return step, info and configuration of a checkpoint.

        Raises:
            ValueError: the metadata are not those of a checkpoint.
        """


class _PolicyHeader(VersionedSchema):
    step: Count
    info: AnyObject
    configuration: AnyObject


class _PolicyFormat(CheckpointFormat):
    """Checkpoints of a policy: everything is in one versioned header."""

    name, version = "eaglerl-policy-checkpoint", 1

    def metadata(
        self, step: int, info: Mapping[str, Any], configuration: Mapping[str, Any]
    ) -> dict[str, str]:
        header = {
            "format": self.name,
            "version": self.version,
            "step": step,
            "configuration": dict(configuration),
            "info": dict(info),
        }
        return {"header": json.dumps(header)}

    def parse(
        self, path: Path, metadata: Mapping[str, str]
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        header = parse_json(
            metadata.get("header", "null"),
            _PolicyHeader,
            f"the checkpoint {str(path)!r}",
            form=(self.name, self.version),
            allow_nan=True,
        )
        return header.step, header.info, header.configuration


class _HeadInfo(Schema):
    model_config = ConfigDict(extra="allow")

    seconds: Annotated[float, Field(ge=0.0)]


class _HeadFormat(CheckpointFormat):
    """Checkpoints of a draft head: the step is in the name, the configuration in ``run.json``."""

    def metadata(
        self, step: int, info: Mapping[str, Any], configuration: Mapping[str, Any]
    ) -> dict[str, str]:
        return {"info": json.dumps(dict(info))}

    def parse(
        self, path: Path, metadata: Mapping[str, str]
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        where = f"the entry 'info' of the checkpoint {str(path)!r}"
        info = parse_json(metadata.get("info", ""), _HeadInfo, where, allow_nan=True)
        step = self.step_of(path.name)
        if step is None:
            raise ValueError(
                f"the checkpoint {str(path)!r} must have a name such as {self.file_name(4)!r}"
            )
        return step, info.model_dump(), {}


POLICY_FORMAT: CheckpointFormat = _PolicyFormat(digits=10)
HEAD_FORMAT: CheckpointFormat = _HeadFormat(digits=8)


class CheckpointFolder:
    """A folder of checkpoints, one safetensors file each, written whole or not at all."""

    def __init__(
        self,
        path: str | Path,
        configuration: Mapping[str, Any],
        keep: int = 3,
        form: CheckpointFormat = POLICY_FORMAT,
    ) -> None:
        """Name the folder; it is made when the first checkpoint is saved.

        Args:
            path: the folder.
            configuration: JSON values that a run must share with a checkpoint to resume from it.
            keep: number of checkpoints to keep; older ones are removed.
            form: file names and metadata.

        Raises:
            ValueError: `keep` is below 1.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path = Path(path)
        # Through JSON and back, as it will be read: tuples become lists.
        self._configuration: dict[str, Any] = json.loads(json.dumps(dict(configuration)))
        self._keep = keep
        self._form = form

    def save(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, and remove the checkpoints beyond `keep`."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / self._form.file_name(step)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = self._form.metadata(step, info, self._configuration)
        with atomic_path(path) as temporary:
            save_file(contiguous, temporary, metadata=metadata)
        for old in self.files()[: -self._keep]:
            # A broken checkpoint that was skipped may have a later step than the one just saved.
            if old != path:
                old.unlink()
        return path

    def files(self) -> list[Path]:
        """Return the checkpoints' files, oldest first."""
        if not self.path.is_dir():
            return []
        names = (file for file in self.path.iterdir() if self._form.step_of(file.name) is not None)
        return sorted(names)

    def newest(self) -> Checkpoint | None:
        """Return the newest readable checkpoint; None if there is none.

        One that cannot be read is skipped with a warning that names it.

        Raises:
            ValueError: the checkpoint belongs to a run with another configuration.
        """
        for path in reversed(self.files()):
            try:
                checkpoint = read_checkpoint(path, self._form)
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
                    f"{name} must be {saved.get(name)!r}, as in the run of the checkpoint "
                    f"{str(checkpoint.path)!r}, got {own.get(name)!r}"
                )


def read_checkpoint(path: str | Path, form: CheckpointFormat = POLICY_FORMAT) -> Checkpoint:
    """Read one checkpoint.

    Args:
        path: its file.
        form: see `CheckpointFolder`.

    Raises:
        ValueError: it cannot be read, or is not a checkpoint; the message names the file.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path, "checkpoint")
    step, info, configuration = form.parse(path, metadata)
    return Checkpoint(path, step, tensors, info, configuration)


@contextmanager
def resuming(checkpoint: Checkpoint) -> Iterator[None]:
    """Name the checkpoint in any error of the block that restores a run from it.

    A file that can be read may still hold the state of something else.

    Raises:
        ValueError: the block failed; the message names the file and the error.
    """
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise ValueError(
            f"cannot resume from the checkpoint {str(checkpoint.path)!r}: {kind}{error}"
        ) from error
