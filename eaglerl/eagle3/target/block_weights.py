"""The weights of a decoder in the blocks of its GGUF file, packed for the CPU's block kernels."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
import numpy as np
import torch
from transformers import PreTrainedConfig

from eaglerl._ext import C
from eaglerl.gguf_convert.float32_weights import rotate_half_order
from eaglerl.gguf_convert.gguf_file import GGUFFile, GGUFTensor
from eaglerl.gguf_convert.tensor_names import ARCHITECTURES

#: Types of tensors that the kernels read, by ggml's names.
BLOCK_FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def tensor_format(tensor: GGUFTensor) -> str:
    """Return ggml's name of a tensor's type."""
    return gguf.GGMLQuantizationType(tensor.kind).name


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one decoder layer; norms and biases in float32."""

    input_norm: np.ndarray
    post_norm: np.ndarray
    query_norm: np.ndarray | None
    key_norm: np.ndarray | None
    qkv: list[C.BlockMatrix]
    qkv_bias: np.ndarray | None
    out: list[C.BlockMatrix]
    gate_up: list[C.BlockMatrix]
    down: list[C.BlockMatrix]


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of a decoder. `head` is `embedding` where the two are tied."""

    embedding: C.BlockMatrix
    layers: list[LayerWeights]
    norm: np.ndarray
    head: C.BlockMatrix


class GGUFWeights:
    """Reads matrices of a GGUF file as block matrices, and vectors as float32."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._data = np.memmap(file.path, np.uint8, "r")

    def matrix(self, name: str, rows: np.ndarray | None = None) -> C.BlockMatrix:
        """Pack a matrix.

        Args:
            name: of the tensor, (outputs, inputs).
            rows: (outputs,) int64, the row of the file for each output; None for their own order.

        Raises:
            ValueError: its type is none of `BLOCK_FORMATS`, or its rows fill no whole blocks.
        """
        tensor = self._file.tensors[name]
        kind = tensor_format(tensor)
        if kind not in BLOCK_FORMATS:
            raise self._file.error(
                f"tensor {name!r} is of type {kind}; native precision reads "
                f"{', '.join(BLOCK_FORMATS)}"
            )
        outputs, inputs = tensor.shape
        try:
            return C.BlockMatrix(
                format=tensor.kind,
                outputs=outputs,
                inputs=inputs,
                file=self._bytes(tensor),
                rows=rows,
                threads=torch.get_num_threads(),
            )
        except ValueError as error:
            raise self._file.error(f"tensor {name!r} cannot be packed: {error}") from error

    def norm(self, name: str) -> np.ndarray:
        """Return a norm's weights in float32."""
        return self._file.expand(name)

    def vector(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Return a bias or an optional norm in float32; None where the file has none.

        Args:
            name: of the tensor.
            rows: see `matrix`.
        """
        if name not in self._file.tensors:
            return None
        values = self._file.expand(name)
        return values if rows is None else values[rows]

    def rotary_order(self, name: str, heads: int) -> np.ndarray | None:
        """Return the rows of a query or key projection in transformers' order; None if they are."""
        if not ARCHITECTURES[self._file.text("general.architecture")].interleaved:
            return None
        rows = np.arange(self._file.tensors[name].shape[0], dtype=np.int64)
        return rotate_half_order(rows, heads)

    def _bytes(self, tensor: GGUFTensor) -> np.ndarray:
        return self._data[tensor.offset : tensor.offset + tensor.size]


def read_decoder_weights(file: GGUFFile, config: PreTrainedConfig) -> DecoderWeights:
    """Pack all weights of a Llama-family decoder.

    Args:
        file: whose tensors have the shapes that the config implies, as `read_config` checks.
        config: of the model.

    Raises:
        ValueError: a tensor's type is not supported.
    """
    weights = GGUFWeights(file)
    embedding = weights.matrix("token_embd.weight")
    tied = "output.weight" not in file.tensors
    return DecoderWeights(
        embedding=embedding,
        layers=[_read_layer(weights, config, i) for i in range(config.num_hidden_layers)],
        norm=weights.norm("output_norm.weight"),
        head=embedding if tied else weights.matrix("output.weight"),
    )


def _read_layer(weights: GGUFWeights, config: PreTrainedConfig, index: int) -> LayerWeights:
    stem = f"blk.{index}"
    parts = {
        "attn_q": config.num_attention_heads,
        "attn_k": config.num_key_value_heads,
        "attn_v": None,
    }
    orders = {
        part: None if heads is None else weights.rotary_order(f"{stem}.{part}.weight", heads)
        for part, heads in parts.items()
    }
    biases = [weights.vector(f"{stem}.{part}.bias", order) for part, order in orders.items()]
    present = [bias for bias in biases if bias is not None]
    return LayerWeights(
        input_norm=weights.norm(f"{stem}.attn_norm.weight"),
        post_norm=weights.norm(f"{stem}.ffn_norm.weight"),
        query_norm=weights.vector(f"{stem}.attn_q_norm.weight"),
        key_norm=weights.vector(f"{stem}.attn_k_norm.weight"),
        qkv=[weights.matrix(f"{stem}.{part}.weight", order) for part, order in orders.items()],
        qkv_bias=np.concatenate(present) if present else None,
        out=[weights.matrix(f"{stem}.attn_output.weight")],
        gate_up=[weights.matrix(f"{stem}.{part}.weight") for part in ("ffn_gate", "ffn_up")],
        down=[weights.matrix(f"{stem}.ffn_down.weight")],
    )
