"""Matrices of a file as block matrices: as the file stores them, or quantised while loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np
import torch

from eaglerl._ext import C

WeightFormat = Literal["stored", "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"]
WEIGHT_FORMATS: tuple[str, ...] = get_args(WeightFormat)
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
# Numbers that are expanded to float32 at a time, 4 MB.
_CHUNK = 1 << 20


def check_weight_format(weights: str) -> None:
    """Check the name of a format of weights.

    Raises:
        ValueError: it is none of `WEIGHT_FORMATS`.
    """
    if weights not in WEIGHT_FORMATS:
        names = ", ".join(f'"{name}"' for name in WEIGHT_FORMATS)
        raise ValueError(f"weights must be one of {names}, got {weights!r}")


def has_blocks(format: str) -> bool:
    """Return whether a format of ggml has scales, which several weights share."""
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]][0] > 1


class WeightFile(ABC):
    """The weights of a decoder in files, by the names that GGUF gives its tensors.

    Attributes:
        weights: format that matrices are converted to; see `load_target`.
        where: the file or folder, for messages.
    """

    def __init__(self, weights: WeightFormat, where: str) -> None:
        check_weight_format(weights)
        self.weights = weights
        self.where = where

    @property
    @abstractmethod
    def head(self) -> str:
        """Name of the output layer's matrix; `embedding` where the two are tied."""

    @property
    def embedding(self) -> str:
        """Name of the embedding table."""
        return EMBEDDING

    def own_name(self, name: str) -> str:
        """Return the name that a tensor has in the file."""
        return name

    @abstractmethod
    def matrices(self) -> list[str]:
        """Return the names of all matrices."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, int]:
        """Return a matrix's (outputs, inputs)."""

    @abstractmethod
    def stored_format(self, name: str) -> str:
        """Return ggml's name of a matrix's type in the file."""

    @abstractmethod
    def stored_bytes(self, name: str) -> np.ndarray:
        """Return a matrix as it lies in the file, in uint8 and without a copy."""

    @abstractmethod
    def expand_rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return rows of a matrix, (end - begin, inputs) float32.

        Raises:
            ValueError: the type cannot be expanded.
        """

    @abstractmethod
    def vector(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Return a norm or a bias in float32; None where the file has none.

        Args:
            name: of the tensor.
            rows: see `matrix`.

        Raises:
            ValueError: a value is not finite.
        """

    @abstractmethod
    def rotary_order(self, name: str, heads: int) -> np.ndarray | None:
        """Return the rows of a query or key projection in transformers' order; None if they are."""

    def norm(self, name: str) -> np.ndarray:
        """Return a norm's weights in float32."""
        values = self.vector(name)
        assert values is not None, "the names of all norms were checked"
        return values

    def format_of(self, name: str) -> str:
        """Return ggml's name of the type in which a matrix is multiplied."""
        if self.weights == "stored":
            return self.stored_format(name)
        if self.weights in ("q4_0", "q4_1") and name in (self.embedding, self.head):
            # As llama.cpp does, with more bits: the output layer decides between tokens, and the
            # table is read a row at a time.
            return "Q8_0"
        return self.weights.upper()

    def matrix(self, name: str, rows: np.ndarray | None = None) -> C.BlockMatrix:
        """Pack a matrix.

        Args:
            name: of the tensor, (outputs, inputs).
            rows: (outputs,) int64, the row of the file for each output; None for their own order.

        Raises:
            ValueError: there are no products in its type, its rows fill no whole blocks, or a value
                is not finite.
        """
        formats = C.block_formats()
        format = self.format_of(name)
        if format not in formats:
            raise self.error(
                f"tensor {self.own_name(name)!r} is of type {format}; products read "
                f"{', '.join(formats)}"
            )
        outputs, inputs = self.shape(name)
        own = format == self.stored_format(name)
        try:
            return C.BlockMatrix(
                format=formats[format],
                outputs=outputs,
                inputs=inputs,
                file=self.stored_bytes(name) if own else self._converted(name, format),
                rows=rows,
                threads=torch.get_num_threads(),
            )
        except ValueError as error:
            text = str(error)
            if self.where in text:
                raise
            raise self.error(
                f"tensor {self.own_name(name)!r} cannot be packed as {format}: {text}"
            ) from error

    def _converted(self, name: str, format: str) -> np.ndarray:
        """Return a matrix in blocks of another type, (outputs, bytes of a row) uint8."""
        import gguf

        outputs, inputs = self.shape(name)
        kind = gguf.GGMLQuantizationType[format]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if inputs % block:
            raise ValueError(f"its {inputs} inputs are no multiple of {block}")
        data = np.empty((outputs, inputs // block * size), np.uint8)
        step = max(1, _CHUNK // inputs)

        def convert(begin: int) -> None:
            values = self.expand_rows(name, begin, min(begin + step, outputs))
            if not np.isfinite(values).all():
                raise ValueError("it holds values that are not finite")
            # A number too large for half precision becomes infinite, which packing refuses.
            with np.errstate(over="ignore", invalid="ignore"):
                blocks = gguf.quants.quantize(values, kind)
            data[begin : begin + step] = np.ascontiguousarray(blocks).view(np.uint8)

        # numpy does most of its work without the interpreter's lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(convert, range(0, outputs, step)))
        return data

    def error(self, message: str) -> ValueError:
        """Make an error that names the file."""
        return ValueError(f"{self.where}: {message}")
