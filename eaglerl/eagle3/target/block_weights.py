"""The weights of a decoder in blocks, packed for the CPU's block kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedConfig

from eaglerl._ext import C
from eaglerl.eagle3.target.weight_files import WeightFile


class ProductWeights(NamedTuple):
    """The matrices of one product, whose outputs follow one another, and all of its biases."""

    matrices: list[C.BlockMatrix]
    bias: np.ndarray | None = None


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one decoder layer; norms and biases in float32."""

    input_norm: np.ndarray
    post_norm: np.ndarray
    query_norm: np.ndarray | None
    key_norm: np.ndarray | None
    qkv: ProductWeights
    out: ProductWeights
    gate_up: ProductWeights
    down: ProductWeights


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of a decoder. The head's matrix is `embedding` where the two are tied."""

    embedding: C.BlockMatrix
    layers: list[LayerWeights]
    norm: np.ndarray
    head: ProductWeights


def read_decoder_weights(weights: WeightFile, config: PreTrainedConfig) -> DecoderWeights:
    """Pack all weights of a Llama-family decoder.

    Args:
        weights: whose tensors have the shapes that the config implies.
        config: of the model.

    Raises:
        ValueError: see `WeightFile.matrix`.
    """
    embedding = weights.matrix(weights.embedding)
    tied = weights.head == weights.embedding
    return DecoderWeights(
        embedding=embedding,
        layers=[_read_layer(weights, config, i) for i in range(config.num_hidden_layers)],
        norm=weights.norm("output_norm.weight"),
        head=ProductWeights([embedding if tied else weights.matrix(weights.head)]),
    )


def _read_layer(weights: WeightFile, config: PreTrainedConfig, index: int) -> LayerWeights:
    stem = f"blk.{index}"

    def product(heads: dict[str, int | None]) -> ProductWeights:
        matrices, biases = [], []
        for part, count in heads.items():
            name = f"{stem}.{part}"
            order = None if count is None else weights.rotary_order(f"{name}.weight", count)
            matrices.append(weights.matrix(f"{name}.weight", order))
            biases.append(weights.vector(f"{name}.bias", order))
        present = [bias for bias in biases if bias is not None]
        return ProductWeights(matrices, np.concatenate(present) if present else None)

    query_heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return LayerWeights(
        input_norm=weights.norm(f"{stem}.attn_norm.weight"),
        post_norm=weights.norm(f"{stem}.ffn_norm.weight"),
        query_norm=weights.vector(f"{stem}.attn_q_norm.weight"),
        key_norm=weights.vector(f"{stem}.attn_k_norm.weight"),
        qkv=product({"attn_q": query_heads, "attn_k": kv_heads, "attn_v": None}),
        out=product({"attn_output": None}),
        gate_up=product({"ffn_gate": None, "ffn_up": None}),
        down=product({"ffn_down": None}),
    )
