"""The CPU path of targets in the precision of their weights: one native call runs a whole pass.

A pass of a few rows takes as long as reading the weights. SmolLM2-135M is stored in 97 MB, in
blocks of 4 and 8 bits; expanded to float32 it has 538 MB. Here the blocks are decoded in registers,
so that a pass reads 97 MB.

With float32 activations (`precision="native"`) the function is that of the expanded model, to
float32 rounding. With activations in bfloat16 (`precision="bfloat16"`) the inputs of every product
are rounded, and with 8-bit activations (`precision="int8"`) it is llama.cpp's arithmetic. In all,
the result of a row does not depend on the other rows of its pass, bit by bit, for passes of any
size: a token that is verified in a tree gets the logits that plain decoding gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedConfig

from eaglerl._ext import C, thread_count
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.rope import Angles, RopeTables, config_angles
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_embedding import BlockEmbedding
from eaglerl.eagle3.target.block_weights import DecoderWeights
from eaglerl.eagle3.target.target_model import LogitsRows, TargetModel, TargetOutput
from eaglerl.ops.cached_attention import cache_dtype_number

Precision = Literal["native", "bfloat16", "int8"]


class BlockTarget(TargetModel):
    """Dense Llama-family models on the CPU, in the blocks of their files or as numbers."""

    mixes_slots = True

    def __init__(
        self,
        config: PreTrainedConfig,
        generation_config: Any,
        weights: DecoderWeights,
        feature_layers: Sequence[int] | None = None,
        *,
        precision: Precision = "native",
        kv_cache_dtype: torch.dtype = torch.float32,
        scale: float | None = None,
        angles: Angles | None = None,
    ) -> None:
        """Build the decoder.

        Args:
            config: of the model.
            generation_config: of the model.
            weights: see `read_decoder_weights` and `pack_decoder_weights`.
            feature_layers: see `TargetModel`.
            precision: "native" multiplies with float32 activations, "bfloat16" with activations in
                bfloat16, "int8" with 8-bit ones. Sums, norms, attention and what layers pass on are
                float32 in all.
            kv_cache_dtype: float32, bfloat16 or float16. Keys and values are rounded to it when
                they are written, and attention computes with them in float32.
            scale: of attention's scores; head_dim**-0.5 by default.
            angles: of the rotary embedding; as the config says by default.

        Raises:
            ValueError: the sizes of the weights are not those of the config.
            TypeError: the kernels read no caches of this dtype.
        """
        cache_dtype_number("kv_cache_dtype", kv_cache_dtype)
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
        super().__init__(config, generation_config, torch.device("cpu"), feature_layers)
        self.precision = precision
        self.kv_cache_dtype = kv_cache_dtype
        self._embedding = BlockEmbedding(weights.embedding)
        self._decoder = C.BlockDecoder(
            intermediate=config.intermediate_size,
            query_heads=config.num_attention_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            eps=float(config.rms_norm_eps),
            scale=self.head_dim**-0.5 if scale is None else scale,
            activations="float32" if precision == "native" else precision,
            embedding=weights.embedding,
            layers=[
                (
                    layer.input_norm, layer.post_norm, layer.query_norm, layer.key_norm,
                    layer.qkv, layer.out, layer.gate_up, layer.down,
                )
                for layer in weights.layers
            ],
            norm=weights.norm,
            head=weights.head,
        )  # fmt: skip
        self._rope = RopeTables(angles or config_angles(config, self.head_dim))

    @property
    def embed_tokens(self) -> torch.Tensor:
        """(vocab_size, hidden_size) float32 embedding table, expanded when first asked for."""
        return self.embedding.table()

    @property
    def embedding(self) -> BlockEmbedding:
        """The embedding table in blocks."""
        return self._embedding

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @torch.inference_mode()
    def forward(self, rows: RowBatch, cache: KVCache, logits: LogitsRows = "all") -> TargetOutput:
        """Run one pass; see `TargetModel.forward`. Rows of several slots may share a pass."""
        cache.check_model(self.num_layers, self.num_kv_heads, self.head_dim)
        count = len(rows)
        wanted = {"all": count, "last": min(count, 1), "none": 0}[logits]
        features = torch.empty(count, len(self.feature_layers) * self.hidden_size)
        last = torch.empty(count, self.hidden_size)
        result = torch.empty(wanted, self.vocab_size)
        data = cache.data if rows.slots is not None else cache.data[rows.slot : rows.slot + 1]
        mask = None if rows.mask is None or not rows.block_length else rows.mask.contiguous()
        cos, sin = self._rope.first(min(cache.capacity, self.max_positions))
        self._decoder.run(
            rows.token_ids.data_ptr(),
            count,
            cos.data_ptr(),
            sin.data_ptr(),
            min(cos.shape[0], self.max_positions),
            rows.positions.data_ptr(),
            rows.cache_rows.data_ptr(),
            0 if rows.slots is None else rows.slots.data_ptr(),
            data.data_ptr(),
            data.shape[0],
            data.stride(0),
            data.stride(1),
            data.stride(2),
            cache.capacity,
            cache_dtype_number("cache", data.dtype),
            rows.prefix_lengths.data_ptr(),
            0 if mask is None else mask.data_ptr(),
            0 if mask is None else mask.shape[1],
            rows.block_length,
            list(self.feature_layers),
            features.data_ptr(),
            last.data_ptr(),
            result.data_ptr(),
            wanted,
            thread_count(),
        )
        return TargetOutput(
            logits=None if logits == "none" else result,
            features=features,
            last_hidden_state=last,
        )
