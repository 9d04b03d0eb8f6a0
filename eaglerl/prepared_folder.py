"""The marker of a prepared folder: its files with their sizes, and what they were made from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from eaglerl.files import atomic_path
from eaglerl.gguf_convert import GGUF_NAME, INDEX_NAME, WEIGHTS_NAME
from eaglerl.json_file import Count, Schema, read_json
from eaglerl.regular_file import check_regular

MARKER_NAME = "eaglerl.json"
# 1: config, tokenizer and float32 weights. 2: the GGUF file, with or without float32 weights.
_FORMAT = 2


class Marker(Schema):
    """What a marker says.

    Attributes:
        format: of the marker.
        source: the package or the file that the model is from; of a file, with its digest.
        files: sizes in bytes by name.
        gguf_modified: when the GGUF file was last changed, in nanoseconds of Unix time; None if
            unknown.
    """

    format: Literal[1, 2]
    source: str
    files: dict[str, Count]
    gguf_modified: int | None = None

    @property
    def has_gguf(self) -> bool:
        """Whether the folder has the GGUF file."""
        return GGUF_NAME in self.files

    @property
    def has_float32(self) -> bool:
        """Whether the folder has weights that transformers' `from_pretrained` takes."""
        return WEIGHTS_NAME in self.files or INDEX_NAME in self.files


def read_marker(folder: Path) -> Marker | None:
    """Return a folder's marker; None if there is none, or none that can be read."""
    try:
        return read_json(folder / MARKER_NAME, Marker, "marker")
    except ValueError:
        return None


def write_marker(folder: Path, source: str, files: Iterable[str] | None = None) -> None:
    """Mark a folder as prepared: record its files' sizes and what it was made from.

    Args:
        folder: the folder.
        source: what it was made from.
        files: names of its files; all that it has by default.
    """
    if files is None:
        files = (file.name for file in folder.iterdir())
    sizes = {name: (folder / name).stat().st_size for name in sorted({*files} - {MARKER_NAME})}
    marker: dict[str, Any] = {"format": _FORMAT, "source": source, "files": sizes}
    if GGUF_NAME in sizes:
        marker["gguf_modified"] = (folder / GGUF_NAME).stat().st_mtime_ns
    with atomic_path(folder / MARKER_NAME) as temporary:
        temporary.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Return whether a folder has all files that its marker lists, as the marker lists them."""
    marker = read_marker(folder)
    if marker is None:
        return False
    try:
        for name, size in marker.files.items():
            if check_regular(folder / name, "model's file") != size:
                return False
        if marker.gguf_modified is None:
            return True
        state = (folder / GGUF_NAME).stat()
    except (ValueError, FileNotFoundError):
        return False
    # Whoever writes into a file writes into all its hard links.
    return state.st_nlink == 1 or state.st_mtime_ns == marker.gguf_modified


def lacks_gguf(folder: Path) -> bool:
    """Return whether release 0.2 prepared a folder: with float32 weights, without the GGUF file."""
    marker = read_marker(folder)
    return marker is not None and not marker.has_gguf and is_prepared(folder)


def warn_if_without_gguf(folder: Path) -> None:
    """Warn that a folder of release 0.2 runs in float32, and say how to change that."""
    if lacks_gguf(folder):
        warnings.warn(
            f"{folder} was prepared by eaglerl 0.2, without its GGUF file, and runs in float32, "
            "which is slower: run the same `eaglerl prepare --gguf FILE` again to add the file",
            stacklevel=3,
        )
