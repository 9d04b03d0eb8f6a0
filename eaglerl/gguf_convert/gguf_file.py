"""Reader of GGUF files, versions 2 and 3, little-endian: metadata and tensors.

`gguf.GGUFReader` trusts every length in a file, and a damaged one can keep it busy for minutes.
Here each length is checked against the rest of the file before it is used, so nothing larger than
the file is ever allocated.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from eaglerl.regular_file import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_REQUIRED = object()


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's description and its place in the file.

    Attributes:
        name: its name in the file.
        shape: as torch has it, rows first.
        kind: number of its type among `gguf.GGMLQuantizationType`.
        offset: its first byte in the file.
        size: its bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class GGUFFile:
    """A file's metadata and tensors; see `read_gguf`.

    Attributes:
        path: the file.
        metadata: values by key; an array is a list of texts or a numpy array.
        tensors: by name, in the order of the file.
    """

    path: Path
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, GGUFTensor] = field(repr=False)

    def error(self, message: str) -> ValueError:
        """Make an error that names the file."""
        return ValueError(f"{self.path}: {message}")

    def integer(self, key: str, default: Any = _REQUIRED, *, lowest: int = 1) -> Any:
        """Return a whole number; an array that repeats one number counts as that number.

        Raises:
            ValueError: it is missing and has no default, or is no whole number from `lowest` on.
        """
        value = self._value(key, default)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "iu" or not len(value) or (value != value[0]).any():
                raise self.error(f"{key} must be one number for all layers, got {_shown(value)}")
            value = int(value[0])
        if value is default:
            return default
        if type(value) is not int or not lowest <= value < 1 << 31:
            raise self.error(f"{key} must be a whole number >= {lowest}, got {_shown(value)}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a finite number above 0.

        Raises:
            ValueError: it is missing and has no default, or is another value.
        """
        value = self._value(key, default)
        if value is default:
            return default
        if type(value) not in (int, float) or not isfinite(value) or value <= 0:
            raise self.error(f"{key} must be a number above 0, got {_shown(value)}")
        return float(value)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a text.

        Raises:
            ValueError: it is missing and has no default, or is another value.
        """
        value = self._value(key, default)
        if value is not default and not isinstance(value, str):
            raise self.error(f"{key} must be a text, got {_shown(value)}")
        return value

    def _value(self, key: str, default: Any) -> Any:
        if key in self.metadata:
            return self.metadata[key]
        if default is _REQUIRED:
            raise self.error(f"there is no metadata field {key!r}")
        return default

    def expand(self, name: str) -> np.ndarray:
        """Return a tensor in fp32, in its shape.

        Raises:
            ValueError: `gguf` cannot expand its type, or a value is not finite.
        """
        import gguf

        tensor = self.tensors[name]
        data = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.size,))
        kind = gguf.GGMLQuantizationType(tensor.kind)
        plain = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
        if kind.name in plain:
            values = data.view(plain[kind.name]).astype(np.float32)
        else:
            block, bytes_of_block = gguf.GGML_QUANT_SIZES[kind]
            rows = data.reshape(-1, tensor.shape[-1] // block * bytes_of_block)
            try:
                values = gguf.dequantize(rows, kind)
            except NotImplementedError as error:
                raise self.error(
                    f"tensor {name!r} is of type {kind.name}, which the package gguf does not "
                    "expand"
                ) from error
        if not np.isfinite(values).all():
            raise self.error(f"tensor {name!r} holds values that are not finite")
        return np.ascontiguousarray(values.reshape(tensor.shape), dtype=np.float32)


def read_gguf(path: str | Path) -> GGUFFile:
    """Read a file's metadata and the places of its tensors; their data stay on the disk.

    Raises:
        ValueError: it is not a GGUF file of these versions and this byte order, it is one part of
            several, or it is damaged; the message names it.
    """
    path = Path(path)
    with open_regular(path, "GGUF file") as file:
        if file.read(4) != _MAGIC:
            raise ValueError(f"{path}: this is not a GGUF file: it does not begin with 'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()


class _Reader:
    """A cursor over the bytes of a file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._place = len(_MAGIC)

    def read(self) -> GGUFFile:
        version = self._number("<I")
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0
            found = "a big-endian file" if swapped else f"version {version}"
            raise self._error(
                f"GGUF files of versions 2 and 3, little-endian, are read; got {found}"
            )
        tensors, fields = self._number("<Q"), self._number("<Q")
        # Checked against the least bytes that a field takes: a key's length, a type, one byte. A
        # tensor takes a name's length, a number of dimensions, one of them, a type and an offset.
        self._check_count(fields, 8 + 4 + 1, "fields")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self._text("a key")
            if key in metadata:
                raise self._error(f"the field {key!r} is there twice")
            metadata[key] = self._value(self._number("<I"), key)
        if metadata.get("split.count", 0) not in (0, 1):
            raise self._error(
                "this is one of several files of a model (split.count); join them first"
            )
        self._check_count(tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        described = [self._tensor() for _ in range(tensors)]
        return GGUFFile(self._path, metadata, self._placed(described, metadata))

    def _placed(
        self, described: list[GGUFTensor], metadata: dict[str, Any]
    ) -> dict[str, GGUFTensor]:
        """Return the tensors with their places in the file, which must not overlap."""
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment must be a power of two, got {_shown(alignment)}")
        start = -(-self._place // alignment) * alignment
        placed: dict[str, GGUFTensor] = {}
        for tensor in described:
            if tensor.name in placed:
                raise self._error(f"the tensor {tensor.name!r} is there twice")
            if tensor.offset % alignment:
                raise self._error(f"the tensor {tensor.name!r} is not aligned to {alignment} bytes")
            placed[tensor.name] = GGUFTensor(
                tensor.name, tensor.shape, tensor.kind, start + tensor.offset, tensor.size
            )
        end = start
        for tensor in sorted(placed.values(), key=lambda one: one.offset):
            if tensor.offset < end:
                raise self._error(f"the tensor {tensor.name!r} overlaps another one")
            end = tensor.offset + tensor.size
            if end > len(self._data):
                raise self._error(
                    f"the tensor {tensor.name!r} ends at byte {end:,}, behind the end of the file "
                    f"at {len(self._data):,}: was it cut short?"
                )
        return placed

    def _tensor(self) -> GGUFTensor:
        """Read a tensor's description; its offset counts from the start of all tensors' data."""
        import gguf

        name = self._text("a tensor's name")
        count = self._number("<I")
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise self._error(f"the tensor {name!r} has {count} dimensions; 1 to 4 are possible")
        shape = tuple(self._number("<Q") for _ in range(count))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        try:
            block, bytes_of_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise self._error(f"the tensor {name!r} is of the unknown type {kind}") from error
        if min(shape) < 1 or shape[-1] % block:
            raise self._error(
                f"the tensor {name!r} has shape {shape}, which blocks of {block} do not fill"
            )
        return GGUFTensor(name, shape, kind, offset, prod(shape) // block * bytes_of_block)

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._error(f"the field {key!r} is of the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self, key: str) -> list[str] | np.ndarray:
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            self._check_count(count, 8, f"texts of {key!r}")
            return [self._text(key) for _ in range(count)]
        if kind not in _SCALARS:
            raise self._error(f"the field {key!r} is an array of the type {kind}, which is unknown")
        dtype = np.dtype(_SCALARS[kind])
        self._check_count(count, dtype.itemsize, f"numbers of {key!r}")
        values = np.frombuffer(self._data, dtype, count, self._place).copy()
        self._place += values.nbytes
        return values

    def _text(self, what: str) -> str:
        length = self._number("<Q")
        self._check_count(length, 1, f"bytes of {what}")
        raw = self._data[self._place : self._place + length]
        self._place += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"{what} is not UTF-8 at byte {self._place - length:,}") from error

    def _number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._check_count(1, size, "values")
        (value,) = struct.unpack_from(form, self._data, self._place)
        self._place += size
        return value

    def _check_count(self, count: int, size: int, what: str) -> None:
        """Check that the file is long enough for so many, each of at least `size` bytes."""
        left = len(self._data) - self._place
        if count * size > left:
            raise self._error(
                f"it states {count:,} {what} at byte {self._place:,}, but only {left:,} bytes "
                "follow: it is damaged or was cut short"
            )

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self._path}: {message}")


def _shown(value: Any) -> str:
    """Format a value of the file, cut for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
