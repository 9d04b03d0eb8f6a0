"""The weights of a decoder in blocks, packed for the CPU's block kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedConfig

from eaglerl._ext import C
from eaglerl.eagle3.target.weight_files import WeightFile


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
        head=embedding if tied else weights.matrix(weights.head),
    )


def _read_layer(weights: WeightFile, config: PreTrainedConfig, index: int) -> LayerWeights:
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
