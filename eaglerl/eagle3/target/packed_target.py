"""The fast CPU path of loaded models: their weights, packed for the block kernels.

A forward pass of a few rows is bound by reading the weights: 538 MB in float32 for SmolLM2-135M,
whose 121 products read 134 million of them. That is why further rows cost little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from eaglerl._ext import C, thread_count
from eaglerl.eagle3.layers.rope import module_angles
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.block_weights import DecoderWeights, LayerWeights, ProductWeights
from eaglerl.eagle3.target.target_files import embedding_table
from eaglerl.eagle3.target.target_model import head_dim_of
from eaglerl.ops.cached_attention import cache_dtype_number
from eaglerl.ops.undisturbed import undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PackedDtype = Literal["float32", "bfloat16"]
FAST_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_WIDEST_HEAD = 256
_FORMATS = {"float32": "F32", "bfloat16": "BF16"}
# Tokens on which a packed model is compared with the model itself, and the largest difference that
# counts as rounding, as a share of the range of the logits.
_COMPARED = 8
_ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}


class NotPackedError(ValueError):
    """A model that the packed path cannot run.

    Attributes:
        reason: why not.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the packed CPU path cannot run this model: {reason}")
        self.reason = reason


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Return why the packed path cannot run a model; None if it can."""
    if model.device.type != "cpu":
        return f"its weights are on {model.device}"
    if model.dtype != torch.float32:
        return f"its dtype is {model.dtype}"
    return why_not_fast(model.config)


def why_not_fast(config: PreTrainedConfig) -> str | None:
    """Return why the CPU's own kernels cannot run a model with this config; None if they can."""
    if config.model_type not in FAST_FAMILIES:
        supported = ", ".join(FAST_FAMILIES)
        return f"model_type is {config.model_type!r}, the packed path supports {supported}"
    if config.hidden_act not in ("silu", "swish"):
        return f"hidden_act is {config.hidden_act!r}"
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return "some layers have a sliding window"
    if config.model_type == "mistral" and config.sliding_window is not None:
        return "its attention has a sliding window"
    rope = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in _STATIC_ROPE:
        return f"its rotary embedding of type {rope_type!r} changes with the length"
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        return f"its rotary embedding rotates {rope['partial_rotary_factor']} of each head"
    if (head_dim := head_dim_of(config)) > _WIDEST_HEAD:
        return f"its heads are {head_dim} wide, the packed path supports up to {_WIDEST_HEAD}"
    return None


class _Attention(Protocol):
    """The projections of one attention; Qwen3 has norms of q and k, too."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    scaling: float


class _MLP(Protocol):
    """The projections of one gated MLP."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


class _DecoderLayer(Protocol):
    """A decoder layer of one of `FAST_FAMILIES`, as transformers builds it."""

    self_attn: _Attention
    mlp: _MLP
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module


def pack_decoder_weights(model: PreTrainedModel, dtype: PackedDtype = "float32") -> DecoderWeights:
    """Copy the weights of a loaded model into the panels of the block kernels.

    Args:
        model: a model for which `why_not_packed` returns None.
        dtype: of the matrices.

    Raises:
        NotPackedError: a weight is not finite.
    """
    decoder = model.get_decoder()
    table, head = embedding_table(model), model.get_output_embeddings()
    embedding = _pack(table, dtype)
    tied = head.weight.data_ptr() == table.data_ptr()
    return DecoderWeights(
        embedding=embedding,
        layers=[_pack_layer(layer, dtype) for layer in decoder.layers],
        norm=_values(decoder.norm.weight),
        head=ProductWeights(
            [embedding if tied else _pack(head.weight, dtype)],
            None if head.bias is None else _values(head.bias),
        ),
    )


def _pack_layer(layer: _DecoderLayer, dtype: PackedDtype) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))

    def product(*modules: nn.Linear) -> ProductWeights:
        biases = [_values(module.bias) for module in modules if module.bias is not None]
        matrices = [_pack(module.weight, dtype) for module in modules]
        return ProductWeights(matrices, np.concatenate(biases) if biases else None)

    return LayerWeights(
        input_norm=_values(layer.input_layernorm.weight),
        post_norm=_values(layer.post_attention_layernorm.weight),
        query_norm=None if q_norm is None else _values(q_norm.weight),
        key_norm=None if k_norm is None else _values(k_norm.weight),
        qkv=product(attention.q_proj, attention.k_proj, attention.v_proj),
        out=product(attention.o_proj),
        gate_up=product(mlp.gate_proj, mlp.up_proj),
        down=product(mlp.down_proj),
    )


def _values(weight: torch.Tensor | nn.Module) -> np.ndarray:
    """Return a norm's weights or biases in float32, which are the decoder's own copy."""
    assert isinstance(weight, torch.Tensor), "a norm of these families has a weight"
    return weight.detach().float().numpy()


def _pack(weight: torch.Tensor, dtype: PackedDtype) -> C.BlockMatrix:
    weight = weight.detach().to(getattr(torch, dtype)).contiguous()
    try:
        return C.BlockMatrix(
            format=C.block_formats()[_FORMATS[dtype]],
            outputs=weight.shape[0],
            inputs=weight.shape[1],
            file=weight.view(torch.uint8).numpy(),
            rows=None,
            threads=thread_count(),
        )
    except ValueError as error:
        raise NotPackedError(f"a weight cannot be packed: {error}") from error


def packed_target(
    model: PreTrainedModel,
    feature_layers: Sequence[int] | None = None,
    *,
    dtype: PackedDtype = "float32",
    kv_cache_dtype: torch.dtype = torch.float32,
) -> BlockTarget:
    """Pack the weights of a loaded model, which is not needed afterwards.

    Args:
        model: a model for which `why_not_packed` returns None.
        feature_layers: see `TargetModel`.
        dtype: of the matrices and of the rows that they are multiplied with. bfloat16 halves the
            memory, takes less time on CPUs with instructions for it, and changes the logits.
        kv_cache_dtype: see `BlockTarget`.

    Raises:
        NotPackedError: the packed path cannot run the model; or in evaluation mode the model
            computes something other than its weights say, because of an adapter, a hook or a
            changed module. A ValueError.
        ValueError: the feature layers are not three distinct layers of the model, or its generation
            config asks for something that is not supported.
        TypeError: the kernels read no caches of `kv_cache_dtype`.
    """
    cache_dtype_number("kv_cache_dtype", kv_cache_dtype)
    reason = why_not_packed(model)
    if reason is not None:
        raise NotPackedError(reason)
    decoder = model.get_decoder()
    target = BlockTarget(
        model.config,
        model.generation_config,
        pack_decoder_weights(model, dtype),
        feature_layers,
        precision="native" if dtype == "float32" else "bfloat16",
        scale=float(decoder.layers[0].self_attn.scaling),
        angles=module_angles(decoder.rotary_emb, head_dim_of(model.config)),
    )
    target.precision = dtype
    # With the default, a float32 cache.
    _compare(target, model)
    target.kv_cache_dtype = kv_cache_dtype
    return target


@torch.inference_mode()
def _compare(target: BlockTarget, model: PreTrainedModel) -> None:
    """Compare with the model itself, since adapters and hooks leave no trace in the weights."""
    count = min(_COMPARED, target.max_positions)
    # Spread evenly over the vocabulary.
    tokens = torch.arange(1, count + 1) * target.vocab_size // (count + 1)
    with undisturbed([model]):
        expected = model(tokens[None], use_cache=False).logits[0].float()
    found = target.forward(RowBatch.causal(tokens, 0), target.new_cache(count)).logits
    assert found is not None  # all rows' are the default
    spread = expected.amax(-1) - expected.amin(-1)
    off = (found - expected).abs().amax(-1)
    # A NaN of the model itself compares false: there is nothing to compare.
    if bool((off > _ROUNDING[target.precision] * spread).any()):
        raise NotPackedError(
            f"its logits are off by up to {float((off / spread).max()):.1%} of their range from "
            "those that its weights give: an adapter, a hook or a module of another kind changes "
            "its output"
        )
