"""The fast CPU path of the target: packed weights, fused operations, preallocated buffers.

A forward pass of a few rows is bound by reading the weights: 538 MB in fp32 for SmolLM2-135M, whose
121 products read 134 million of them. That is why further rows cost little: on the machine of
docs/results/policy-log.md a pass takes 22 ms for one row and 27 for 8. Everything else is kept
small. Weights are packed once for oneDNN, the products add the residuals themselves, and between
two products there is a single native call: norm, attention, or the MLP's activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig

from eaglerl._ext import C
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.linear import LinearDtype, PackedLinear
from eaglerl.eagle3.layers.rope import RopeTables, module_angles
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_files import embedding_table
from eaglerl.eagle3.target.target_model import LogitsRows, TargetModel, TargetOutput
from eaglerl.ops.cached_attention import cache_dtype_number
from eaglerl.ops.undisturbed import undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAST_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
# Tokens on which a packed model is compared with the model itself, and the largest difference that
# counts as rounding, as a share of the range of the logits.
_COMPARED = 8
_ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}


class DifferentModulesError(ValueError):
    """A model whose output differs from what the weights of its modules give."""


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


class _Layer:
    """The packed weights of one decoder layer.

    The projections of q, k and v are one product, and so are gate and up: four calls per layer
    instead of seven.
    """

    def __init__(self, layer: _DecoderLayer, dtype: LinearDtype, rows_hint: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = _norm_weight(layer.input_layernorm)
        self.post_norm = _norm_weight(layer.post_attention_layernorm)
        q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        self.q_norm = None if q_norm is None else _norm_weight(q_norm)
        self.k_norm = None if k_norm is None else _norm_weight(k_norm)
        self.qkv = _join((attention.q_proj, attention.k_proj, attention.v_proj), dtype, rows_hint)
        self.out = _join((attention.o_proj,), dtype, rows_hint)
        self.gate_up = _join((mlp.gate_proj, mlp.up_proj), dtype, rows_hint)
        self.down = _join((mlp.down_proj,), dtype, rows_hint)


def _norm_weight(norm: nn.Module) -> torch.Tensor:
    weight = norm.weight
    assert isinstance(weight, torch.Tensor), "a norm of these families has a weight"
    return weight.detach().float().contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _join(modules: Sequence[nn.Linear], dtype: LinearDtype, rows_hint: int) -> PackedLinear:
    weight = torch.cat([module.weight.detach() for module in modules])
    biases = [module.bias for module in modules]
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    return PackedLinear(weight, bias, dtype=dtype, rows_hint=rows_hint)


# Room for most trees and short prompts from the start: 1.3 MB for SmolLM2-135M.
_LEAST_BUFFER_ROWS = 64


class _Buffers:
    """Intermediate results of up to `rows` rows, for the passes over one cache.

    They belong to the cache, not to the model: sequences may run passes side by side.

    Attributes:
        widths: columns of the hidden state, of all heads and of the MLP, and number of feature
            layers; buffers of other widths are not used again.
        normed: (rows, hidden) input of the next product.
        attended: (rows, heads) output of the attention.
        activated: (rows, intermediate) input of the MLP's second product.
        features: (rows, features * hidden) inputs of the feature layers, side by side.
        last: (rows, hidden) output of the final norm.
    """

    def __init__(
        self, rows: int, hidden: int, heads: int, intermediate: int, features: int
    ) -> None:
        self.rows, self.widths = rows, (hidden, heads, intermediate, features)
        self.normed = torch.empty(rows, hidden)
        self.attended = torch.empty(rows, heads)
        self.activated = torch.empty(rows, intermediate)
        self.features = torch.empty(rows, features * hidden)
        self.last = torch.empty(rows, hidden)


class PackedTarget(TargetModel):
    """Dense Llama-family models on the CPU; activations are float32."""

    def __init__(
        self,
        model: PreTrainedModel,
        feature_layers: Sequence[int] | None = None,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        rows_hint: int = 16,
        kv_cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Pack the weights of a loaded model, which is not needed afterwards.

        Args:
            model: a model for which `why_not_packed` returns None.
            feature_layers: see `TargetModel`.
            dtype: of the packed weights. bfloat16 halves the time of large batches on CPUs with
                instructions for it, and changes the logits.
            rows_hint: number of rows for which oneDNN lays out the weights.
            kv_cache_dtype: see `BlockTarget`.

        Raises:
            ValueError: the packed path cannot run the model.
            DifferentModulesError: in evaluation mode the model computes something other than its
                weights say, because of an adapter, a hook or a changed module. A ValueError.
            TypeError: the kernels read no caches of `kv_cache_dtype`.
        """
        cache_dtype_number("kv_cache_dtype", kv_cache_dtype)
        reason = why_not_packed(model)
        if reason is not None:
            raise ValueError(f"the packed CPU path cannot run this model: {reason}")
        super().__init__(model.config, model.generation_config, model.device, feature_layers)
        self.precision = dtype
        decoder = model.get_decoder()
        self.eps = float(self.config.rms_norm_eps)
        self.num_heads = self.config.num_attention_heads
        self.intermediate_size = self.config.intermediate_size
        self._embedding = embedding_table(model).float()
        self._layers = [_Layer(layer, dtype, rows_hint) for layer in decoder.layers]
        self._norm = _norm_weight(decoder.norm)
        self._head = _join((model.get_output_embeddings(),), dtype, rows_hint)
        self._rope = RopeTables(module_angles(decoder.rotary_emb, self.head_dim))
        self._scale = float(decoder.layers[0].self_attn.scaling)
        # Compared with the default, a float32 cache.
        self._check_against(model, dtype)
        self.kv_cache_dtype = kv_cache_dtype

    @torch.inference_mode()
    def _check_against(self, model: PreTrainedModel, dtype: str) -> None:
        """Compare with the model itself, since adapters and hooks leave no trace in the weights."""
        count = min(_COMPARED, self.max_positions)
        # Spread evenly over the vocabulary.
        tokens = torch.arange(1, count + 1) * self.vocab_size // (count + 1)
        with undisturbed([model]):
            expected = model(tokens[None], use_cache=False).logits[0].float()
        found = self.forward(RowBatch.causal(tokens, 0), self.new_cache(count)).logits
        spread = expected.amax(-1) - expected.amin(-1)
        off = (found - expected).abs().amax(-1)
        # A NaN of the model itself compares false: there is nothing to compare.
        if bool((off > _ROUNDING[dtype] * spread).any()):
            raise DifferentModulesError(
                "the packed CPU path cannot run this model: its logits are off by up to "
                f"{float((off / spread).max()):.1%} of their range from those that its weights "
                "give: an adapter, a hook or a module of another kind changes its output"
            )

    @property
    def embed_tokens(self) -> torch.Tensor:
        """(vocab_size, hidden_size) float32 embedding table."""
        return self._embedding

    def packed_products(self) -> list[PackedLinear]:
        """Return all matrix products of a pass, in the order in which they run."""
        products: list[PackedLinear] = []
        for layer in self._layers:
            products += [layer.qkv, layer.out, layer.gate_up, layer.down]
        return [*products, self._head]

    def _buffers_of(self, cache: KVCache, rows: int) -> _Buffers:
        """Return buffers for `rows` rows: the cache's own if they are large enough, or new ones."""
        heads, features = self.num_heads * self.head_dim, len(self.feature_layers)
        widths = (self.hidden_size, heads, self.intermediate_size, features)
        buffers = cache.workspace
        if isinstance(buffers, _Buffers) and buffers.widths == widths and rows <= buffers.rows:
            return buffers
        buffers = cache.workspace = _Buffers(max(rows, _LEAST_BUFFER_ROWS), *widths)
        return buffers

    @torch.inference_mode()
    def forward(self, rows: RowBatch, cache: KVCache, logits: LogitsRows = "all") -> TargetOutput:
        """Run one pass; see `TargetModel.forward`. Rows of several slots may share a pass."""
        cache.check_model(self.num_layers, self.num_kv_heads, self.head_dim)
        count = len(rows)
        buffers = self._buffers_of(cache, count)
        threads = torch.get_num_threads()
        hidden_size = self.hidden_size
        hidden = self._embedding[rows.token_ids]
        attend = self._attention_call(rows, cache, threads)
        normed = buffers.normed[:count]
        attended = buffers.attended[:count]
        activated = buffers.activated[:count]
        norm_pointer = normed.data_ptr()
        for index, layer in enumerate(self._layers):
            if index in self.feature_layers:
                # Side by side, as the head's FC reads them.
                column = self.feature_layers.index(index) * hidden_size
                buffers.features[:count, column : column + hidden_size] = hidden
            self._rms_norm(hidden, layer.input_norm, norm_pointer, count, threads)
            attend(index, layer, layer.qkv(normed), attended)
            hidden = layer.out.add_to(attended, hidden)
            self._rms_norm(hidden, layer.post_norm, norm_pointer, count, threads)
            gate_up = layer.gate_up(normed)
            C.silu_mul(
                gate_up.data_ptr(),
                2 * self.intermediate_size,
                activated.data_ptr(),
                count,
                self.intermediate_size,
                threads,
            )
            hidden = layer.down.add_to(activated, hidden)
        last = buffers.last[:count]
        self._rms_norm(hidden, self._norm, last.data_ptr(), count, threads)
        wanted = {"all": last, "last": last[-1:], "none": None}[logits]
        return TargetOutput(
            logits=None if wanted is None else self._head(wanted),
            features=buffers.features[:count],
            last_hidden_state=last,
        )

    def _attention_call(
        self, rows: RowBatch, cache: KVCache, threads: int
    ) -> Callable[[int, _Layer, torch.Tensor, torch.Tensor], None]:
        """Bind the arguments that all layers of a pass share, for one native call per layer."""
        # Rows of one slot get a view of that slot alone, so that they need no slot numbers.
        data = cache.data if rows.slots is not None else cache.data[rows.slot : rows.slot + 1]
        element = data.element_size()
        layer_bytes, half_bytes = (data.stride(axis) * element for axis in (1, 2))
        first = data.data_ptr()
        mask = None if rows.mask is None or not rows.block_length else rows.mask.contiguous()
        # No position exceeds the capacity of the cache, so its length of cos and sin is enough.
        cos, sin = self._rope.first(min(cache.capacity, self.max_positions))
        before = (
            cos.data_ptr(),
            sin.data_ptr(),
            min(cos.shape[0], self.max_positions),
            rows.positions.data_ptr(),
            rows.cache_rows.data_ptr(),
            0 if rows.slots is None else rows.slots.data_ptr(),
        )
        sizes = (
            data.shape[0],
            data.stride(0),
            cache.capacity,
            cache_dtype_number("cache", data.dtype),
            rows.prefix_lengths.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            0 if mask is None else mask.shape[1],
            rows.block_length,
        )
        shape = (len(rows), self.num_heads, self.num_kv_heads, self.head_dim, threads)

        # The op takes addresses, which do not keep a tensor alive: the closure has to.
        kept = (cos, sin, mask)

        def attend(
            index: int, layer: _Layer, qkv: torch.Tensor, out: torch.Tensor, _kept: tuple = kept
        ) -> None:
            keys = first + index * layer_bytes
            C.cached_attention(
                qkv.data_ptr(),
                qkv.stride(0),
                *before,
                keys,
                keys + half_bytes,
                *sizes,
                _address(layer.q_norm),
                _address(layer.k_norm),
                self.eps,
                self._scale,
                out.data_ptr(),
                out.stride(0),
                *shape,
            )

        return attend

    def _rms_norm(
        self, x: torch.Tensor, weight: torch.Tensor, out: int, count: int, threads: int
    ) -> None:
        size = self.hidden_size
        source = (x.data_ptr(), size, count, 0)
        C.rms_norm(*source, weight.data_ptr(), out, size, count, size, self.eps, threads)
