"""The weights of a decoder in a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eaglerl.eagle3.target.weight_files import EMBEDDING, HEAD, WeightFile, WeightFormat
from eaglerl.gguf_convert.float32_weights import rotate_half_order
from eaglerl.gguf_convert.gguf_file import GGUFFile, GGUFTensor
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES

if TYPE_CHECKING:
    import gguf


class GGUFWeights(WeightFile):
    """Reads the tensors of a GGUF file, whose names and shapes `read_config` has checked."""

    def __init__(self, file: GGUFFile, weights: WeightFormat = "stored") -> None:
        super().__init__(weights, str(file.path))
        self.file = file

    @property
    def head(self) -> str:
        """Name of the output layer's matrix."""
        return HEAD if HEAD in self.file.tensors else EMBEDDING

    def matrices(self) -> list[str]:
        """Return the names of all matrices."""
        return [name for name, tensor in self.file.tensors.items() if len(tensor.shape) == 2]

    def shape(self, name: str) -> tuple[int, int]:
        """Return a matrix's (outputs, inputs)."""
        outputs, inputs = self.file.tensors[name].shape
        return outputs, inputs

    def stored_format(self, name: str) -> str:
        """Return ggml's name of a matrix's type in the file."""
        return self._kind(self.file.tensors[name]).name

    def stored_bytes(self, name: str) -> np.ndarray:
        """Return a matrix as it lies in the file."""
        tensor = self.file.tensors[name]
        # A mapping of its own, which ends with the array: of one mapping of the whole file, every
        # page that was read would count as memory until the last matrix is packed.
        return np.memmap(self.file.path, np.uint8, "r", tensor.offset, (tensor.size,))

    def expand_rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return rows of a matrix in float32."""
        import gguf

        kind = self._kind(self.file.tensors[name])
        rows = self.stored_bytes(name).reshape(self.shape(name)[0], -1)[begin:end]
        if kind.name == "F64":
            return rows.view(np.float64).astype(np.float32)
        try:
            return np.asarray(gguf.dequantize(rows, kind), np.float32)
        except NotImplementedError as error:
            raise self.error(
                f"tensor {name!r} is of type {kind.name}, which the package gguf does not expand"
            ) from error

    def vector(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Return a norm or a bias in float32; None where the file has none."""
        if name not in self.file.tensors:
            return None
        values = self.file.expand(name)
        return values if rows is None else values[rows]

    def rotary_order(self, name: str, heads: int) -> np.ndarray | None:
        """Return the rows of a query or key projection in transformers' order; None if they are."""
        if not ARCHITECTURES[self.file.text("general.architecture")].interleaved:
            return None
        rows = np.arange(self.file.tensors[name].shape[0], dtype=np.int64)
        return rotate_half_order(rows, heads)

    @staticmethod
    def _kind(tensor: GGUFTensor) -> gguf.GGMLQuantizationType:
        import gguf

        return gguf.GGMLQuantizationType(tensor.kind)
