"""The weights of a decoder in the safetensors files of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig

from eaglerl.eagle3.target.target_model import head_dim_of
from eaglerl.eagle3.target.weight_files import EMBEDDING, HEAD, WeightFile, WeightFormat
from eaglerl.gguf_convert.tensor_names import Sizes, layer_shapes, weight_name
from eaglerl.tensor_file import open_tensors, read_weight_index

_WHAT = "target's file of weights"
_FORMATS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
}
# GGUF's architecture of a family; Mistral's tensors are named as Llama's.
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ATTENTION, _MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")


def safetensors_of(folder: Path) -> list[Path]:
    """Return a folder's files of weights: one, those of its index, or none.

    Raises:
        ValueError: the index is damaged, or names what is no file.
    """
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(one):
        return [one]
    if os.path.lexists(index):
        return [folder / name for name in read_weight_index(index)]
    return []


class SafetensorsWeights(WeightFile):
    """Reads the tensors of a folder; the files are mapped, so that only what is used is read."""

    def __init__(
        self, folder: Path, config: PreTrainedConfig, weights: WeightFormat = "stored"
    ) -> None:
        """Read the headers.

        Args:
            folder: with one or several safetensors files, see `safetensors_of`.
            config: of the model, of one of `FAST_FAMILIES`.
            weights: see `WeightFile`.

        Raises:
            ValueError: a file is damaged, or a tensor is missing or of another shape or dtype than
                the config implies.
        """
        super().__init__(weights, str(folder))
        self._architecture = _ARCHITECTURES[config.model_type]
        self._tensors: dict[str, torch.Tensor] = {}
        for path in safetensors_of(folder):
            with open_tensors(path, _WHAT) as file:
                for name in file.keys():  # noqa: SIM118
                    self._tensors[name] = file.get_tensor(name)
        self._embedding, self._head = self._ends(bool(config.tie_word_embeddings))
        self._shapes = self._checked_shapes(config)

    def _ends(self, tied: bool) -> tuple[str, str]:
        """Return the names of the embedding table and of the output layer."""
        if not tied:
            return EMBEDDING, HEAD
        table, head = (self._tensors.get(self.own_name(name)) for name in (EMBEDDING, HEAD))
        if head is None:
            return EMBEDDING, EMBEDDING
        if table is None:
            return HEAD, HEAD
        # As in transformers, both are tied only if they are the same.
        return EMBEDDING, EMBEDDING if torch.equal(table, head) else HEAD

    def _checked_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        shapes = self._wanted_shapes(config)
        missing = [name for name in map(self.own_name, shapes) if name not in self._tensors]
        if missing:
            raise self.error(
                f"the target lacks {len(missing)} of its weights, such as {missing[0]!r}"
            )
        for name, shape in shapes.items():
            own, tensor = self.own_name(name), self._tensors[self.own_name(name)]
            if tuple(tensor.shape) != shape:
                raise self.error(
                    f"tensor {own!r} must have shape {shape}, as the config says, got "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.dtype not in _FORMATS:
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FORMATS)
                raise self.error(
                    f"tensor {own!r} must be {names}, got "
                    f"{str(tensor.dtype).removeprefix('torch.')}"
                )
        return shapes

    def _wanted_shapes(self, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
        sizes = Sizes(
            vocab=config.vocab_size,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads or config.num_attention_heads,
            head_dim=head_dim_of(config),
            layers=config.num_hidden_layers,
        )
        table = (sizes.vocab, sizes.hidden)
        shapes: dict[str, tuple[int, ...]] = {self._embedding: table, self._head: table}
        shapes["output_norm.weight"] = (sizes.hidden,)
        each = layer_shapes(self._architecture, sizes, biased_parts(config))
        for layer in range(sizes.layers):
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in each.items()}
        return shapes

    @property
    def embedding(self) -> str:
        """Name of the embedding table."""
        return self._embedding

    @property
    def head(self) -> str:
        """Name of the output layer's matrix."""
        return self._head

    def matrices(self) -> list[str]:
        """Return the names of all matrices."""
        return [name for name, shape in self._shapes.items() if len(shape) == 2]

    def shape(self, name: str) -> tuple[int, int]:
        """Return a matrix's (outputs, inputs)."""
        outputs, inputs = self._shapes[name]
        return outputs, inputs

    def stored_format(self, name: str) -> str:
        """Return ggml's name of a matrix's type in the file."""
        return _FORMATS[self._tensor(name).dtype]

    def stored_bytes(self, name: str) -> np.ndarray:
        """Return a matrix as it lies in the file."""
        return self._tensor(name).view(torch.uint8).numpy()

    def expand_rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """Return rows of a matrix in float32."""
        return self._tensor(name)[begin:end].float().numpy()

    def vector(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Return a norm or a bias in float32; None where the config has none."""
        if name not in self._shapes:
            return None
        values = self._tensor(name).float().numpy()
        if not np.isfinite(values).all():
            raise self.error(f"tensor {self.own_name(name)!r} holds values that are not finite")
        return values if rows is None else values[rows]

    def rotary_order(self, name: str, heads: int) -> None:
        """Return None: the rows are in transformers' order."""

    def _tensor(self, name: str) -> torch.Tensor:
        return self._tensors[self.own_name(name)]

    def own_name(self, name: str) -> str:
        """Return transformers' name of a tensor."""
        return weight_name(name, self._architecture)


def biased_parts(config: PreTrainedConfig) -> frozenset[str]:
    """Return the parts of a layer that have a bias, by GGUF's names."""
    if config.model_type == "qwen2":
        return frozenset(_ATTENTION[:3])
    parts = _ATTENTION if getattr(config, "attention_bias", False) else ()
    return frozenset(parts + (_MLP if getattr(config, "mlp_bias", False) else ()))
