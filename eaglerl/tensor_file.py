"""Writing safetensors files, and reading those of unknown origin: header first, then the tensors.

The library checks that the header fits the file, so a tensor never takes more memory than the file
has bytes. Dtypes, shapes and values are checked here before they are used.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eaglerl.files import atomic_path
from eaglerl.json_file import Schema, check_json, parse_json, read_json
from eaglerl.regular_file import check_regular, open_regular, unreadable

#: Largest index of a checkpoint of several files, in bytes.
_MAX_INDEX_BYTES = 1 << 25
#: Files from this size on have their length checked before they are mapped; and the longest
#: header that the format allows.
_LARGE_BYTES, _MAX_HEADER_BYTES = 1 << 28, 100_000_000


def write_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, the whole or nothing.

    The library's own `save_file` writes a file of another name beside the given one first, which a
    killed process would leave behind.

    Args:
        path: the file.
        tensors: contiguous tensors on the CPU by their names.
        metadata: strings for the file's header.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


@contextmanager
def open_tensors(path: str | Path, what: str) -> Iterator[Any]:
    """Open a safetensors file.

    The block should only read the file: errors of the library in it are reported as the file's.

    Args:
        path: the file.
        what: the file in words, such as "trace".

    Yields:
        The handle of ``safetensors.safe_open``.

    Raises:
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
        ValueError: it is no regular file or no safetensors file.
    """
    if check_regular(path, what) > _LARGE_BYTES:
        _check_length(path, what)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise unreadable(error, path, what) from None


def _check_length(path: str | Path, what: str) -> None:
    """Check that a file is no longer than its tensors, since all of it would be mapped."""
    with open_regular(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        data = file.read(length) if length <= min(size, _MAX_HEADER_BYTES) else b""
    where = f"the header of the {what} {str(path)!r}"
    header = parse_json(data, dict[str, JsonValue], where)
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    ends = [check_json(entry, _TensorSchema, where).data_offsets[1] for entry in entries]
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        raise ValueError(
            f"the {what} {str(path)!r} must have {expected:,} bytes, as its header says, got "
            f"{size:,}"
        )


def read_tensors(path: str | Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, on the CPU and by name, and its metadata.

    Args:
        path: the file.
        what: the file in words.

    Raises:
        MissingFileError: see `open_tensors`.
        ValueError: see `open_tensors`.
    """
    with open_tensors(path, what) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that no tensor holds NaN or an infinite value.

    Args:
        tensors: by name, of any dtype and device; integers pass.
        where: what they are and where they lie, such as "the head 'path'".

    Raises:
        ValueError: one does; the message names it.
    """
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise ValueError(f"{name!r} of {where} must be finite, it holds infinite values or NaN")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:
        # 8-bit floats have no `aminmax`.
        tensor = tensor.float()
    # One NaN makes both bounds NaN, and unlike isfinite().all() this makes no copy.
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))


def check_tensor(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int | None], where: str
) -> None:
    """Check of a tensor's dtype and shape.

    Args:
        name: of the tensor.
        tensor: the tensor.
        dtype: that it must have.
        shape: that it must have, with None for any size.
        where: what it belongs to and where that lies.

    Raises:
        ValueError: another dtype or shape; the message says both.
    """
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        raise ValueError(
            f"{name!r} of {where} must be {dtype} of shape {tuple(shape)}, got {tensor.dtype} of "
            f"{tuple(tensor.shape)}"
        )


class _TensorSchema(Schema):
    model_config = ConfigDict(extra="ignore")

    data_offsets: tuple[int, int]


class _WeightIndex(Schema):
    """What Hugging Face's index of a checkpoint of several files holds."""

    model_config = ConfigDict(extra="ignore")

    weight_map: Annotated[dict[str, str], Field(min_length=1, max_length=1 << 18)]


def read_weight_index(path: str | Path) -> dict[str, list[str]]:
    """Read from a checkpoint's index which file holds which tensors.

    Args:
        path: such as ``model.safetensors.index.json``.

    Returns:
        The tensors' names by the file's, which lies beside the index and is a regular one.

    Raises:
        MissingFileError: there is no index.
        ValueError: it is none, or names what is not a file of weights in its folder.
    """
    path, what = Path(path), "index of weights"
    index = read_json(path, _WeightIndex, what, max_bytes=_MAX_INDEX_BYTES)
    ending = path.name.removesuffix(".index.json").rpartition(".")[2]
    files: dict[str, list[str]] = {}
    for tensor, name in index.weight_map.items():
        files.setdefault(name, []).append(tensor)
    for name in files:
        if Path(name).name != name or not name.endswith(f".{ending}"):
            raise ValueError(
                f"'weight_map' of the {what} {str(path)!r} must name files .{ending} in its "
                f"folder, got {name!r}"
            )
        check_regular(path.parent / name, "file of weights")
    return files
