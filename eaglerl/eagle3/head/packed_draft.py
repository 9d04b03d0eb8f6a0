"""The fast CPU runner of a draft head: packed products, fused ops, preallocated buffers.

A pass runs five matrix products. For SmolLM2-135M's head they read 8.8 million weights, 35 MB in
fp32 and 9 MB in int8, more than half of them in the LM head. A pass takes about 1 ms, so
the time between the products counts: addresses are looked up once, the native ops are called
without a second check of their arguments, and a pass with a number of rows that was seen before
makes no buffers. With AVX2 a pass takes 1.10 to 1.16 times its products in fp32
(``benchmarks/bench_draft_pass.py``, 1 to 16 rows behind 512).
"""

import numpy as np
import torch

from eaglerl._ext import C, thread_count
from eaglerl.eagle3.head.attention_window import first_visible, scratch_window, stable_mask
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.head.packed_rows import AttentionCaches, NormWeight, Place, RowBuffers, Visible
from eaglerl.eagle3.layers.linear import LinearDtype, PackedLinear
from eaglerl.ops.cached_attention import cache_dtype_number

_FLOAT_BYTES = 4
_INT32_BYTES = 4
# Rows of one pass over a long prompt: bounds the buffers, 15 KB per row for SmolLM2's head.
_CHUNK_ROWS = 256
# Passes of up to this many rows keep their buffers, one set per number of rows. Rounds of drafting
# have a few widths only, but all 64 sets together would take 32 MB for SmolLM2's head.
_KEPT_BUFFER_ROWS = 64


def why_not_packed(head: Eagle3DraftHead) -> str | None:
    """Return why `PackedDraft` cannot run a head; None if it can."""
    if head.fc.weight.device.type != "cpu":
        return f"head must be on the CPU, got {head.fc.weight.device}"
    head_dim = head.config.head_dim
    if head_dim % 8 or head_dim > C.max_head_dim:
        return f"head_dim must be a multiple of 8 up to {C.max_head_dim}, got {head_dim}"
    return None


def products_dtype(draft: CachedDraft) -> LinearDtype:
    """Return the dtype of a draft's products, as traces and cost tables record it."""
    return draft.dtype if isinstance(draft, PackedDraft) else "float32"


def _float_table(head: Eagle3DraftHead) -> torch.Tensor:
    assert head.embed_tokens is not None, "checked by CachedDraft"
    return head.embed_tokens.float().contiguous()


class PackedDraft(CachedDraft):
    """A draft head on the CPU, its weights packed once in fp32, bf16 or int8.

    Everything but the products runs in fp32. Two threads must not use the same runner at once;
    `with_own_cache` gives each its own, over the same weights.
    """

    def __init__(
        self,
        head: Eagle3DraftHead,
        *,
        capacity: int,
        slots: int = 1,
        dtype: LinearDtype = "float32",
        rows_hint: int = 16,
    ) -> None:
        """Pack the head; later changes to its weights have no effect.

        Args:
            head: the head, on the CPU, with an embedding table.
            capacity: rows per slot: stable rows and the scratch rows of the widest tree,
                ``depth * top_k``.
            slots: number of sequences.
            dtype: the dtype of the products.
            rows_hint: number of rows for which the weights are laid out.

        Raises:
            ValueError: the head has no embedding table or is not on the CPU, or the native ops do
                not take its ``head_dim``.
        """
        reason = why_not_packed(head)
        if reason is not None:
            raise ValueError(f"the packed path cannot run this draft head: {reason}")
        super().__init__(head, capacity=capacity, slots=slots)
        self.dtype = dtype
        self._pack(head, dtype, rows_hint)
        self._source = head.embedding_source
        self._table = torch.empty(0) if self._source is not None else _float_table(head)
        self._table_address = self._table.data_ptr()

    def _allocate(self, capacity: int, slots: int) -> None:
        super()._allocate(capacity, slots)
        self._buffers: dict[int, RowBuffers] = {}
        # The ops read positions, cache rows and prefix lengths as int32 arrays. For consecutive
        # rows these are slices of 0, 1, 2, ..., so a pass only computes an address. The + 1 is
        # there since the prefix of row r, itself included, is r + 1 long.
        self._row_numbers = np.arange(capacity + 1, dtype=np.int32)
        # A round of drafting has one position and one prefix for all of its rows: these are filled.
        self._same_position, self._same_length = np.empty((2, capacity), dtype=np.int32)
        self._look_up_addresses()

    def _look_up_addresses(self) -> None:
        config, cache = self.head_config, self.cache
        self._row_numbers_address = self._row_numbers.ctypes.data
        self._same_position_address = self._same_position.ctypes.data
        self._same_length_address = self._same_length.ctypes.data
        heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
        qkv_width = (heads + 2 * key_value_heads) * config.head_dim
        tables = (self._cos.data_ptr(), self._sin.data_ptr(), self._cos.shape[0])
        self._attention_tables = (qkv_width, *tables)
        # A pass within one slot presents it as a cache of one slot: no slot array, stride 0.
        dtype = cache_dtype_number("cache", cache.data.dtype)
        self._attention_caches: list[AttentionCaches] = [
            (0, keys.data_ptr(), values.data_ptr(), 1, 0, cache.capacity, dtype)
            for keys, values in zip(cache.keys(0), cache.values(0), strict=True)
        ]
        self._row_bytes = _FLOAT_BYTES * config.head_dim
        self._heads = (heads, key_value_heads, config.head_dim)

    def _pack(self, head: Eagle3DraftHead, dtype: LinearDtype, rows_hint: int) -> None:
        layer = head.midlayer
        attention, mlp = layer.self_attn, layer.mlp

        def pack(*modules: torch.nn.Linear) -> PackedLinear:
            weight = torch.cat([module.weight.detach() for module in modules])
            return PackedLinear(weight, dtype=dtype, rows_hint=rows_hint)

        self._qkv = pack(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = pack(attention.o_proj)
        self._gate_up = pack(mlp.gate_proj, mlp.up_proj)
        self._down = pack(mlp.down_proj)
        self._lm_head = pack(head.lm_head)
        self._fc = pack(head.fc)
        norms = (attention.q_norm, attention.k_norm)
        self._qk_norms = [None if norm is None else NormWeight.of(norm) for norm in norms]
        addresses = [0 if norm is None else norm.address for norm in self._qk_norms]
        q_norm, k_norm = addresses
        self._qk = (q_norm, k_norm, head.config.rms_norm_eps, head.config.head_dim**-0.5)
        self._embedding_norm = NormWeight.of(layer.input_layernorm)
        self._hidden_norm = NormWeight.of(layer.hidden_norm)
        self._mlp_norm = NormWeight.of(layer.post_attention_layernorm)
        self._final_norm = NormWeight.of(head.norm)
        feature_norms = head.fc_norm if head.fc_norm is not None else [head.input_norm]
        self._feature_norms = [
            NormWeight.of(norm) for norm in feature_norms if isinstance(norm, RMSNorm)
        ]

    @torch.inference_mode()
    def extend(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        slot: int = 0,
        *,
        reduced: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows, which pair the features of token t with the embedding of token t + 1.

        Args:
            token_ids: (R,) int64 target ids of the tokens t + 1.
            features: (R, 3k) fp32 features of the tokens t, [low | mid | high]; or their reduction
                by `reduce`, (R, h) fp32.
            slot: the sequence; its rows grow by R.
            reduced: whether the features are reduced already.

        Returns:
            The last row's feature for the next draft pass (h,) and its draft logits (Vd,).

        Raises:
            ValueError: shapes or dtypes are wrong, an id is unknown, or the cache is full.
        """
        self._check_extend(token_ids, features, slot, reduced)
        rows = len(token_ids)
        for begin in range(0, rows, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, rows)
            attended, residual = self._attend(
                token_ids[begin:end].contiguous(),
                features[begin:end] if reduced else self.reduce(features[begin:end]),
                self._attention_caches[slot],
                *self._stable_view(self.lengths[slot], end - begin),
            )
            self.lengths[slot] += end - begin
        # The other rows leave nothing but keys and values: MLP and LM head run for the last alone.
        output, logits = self._finish(attended[-1:], residual[-1:])
        return output[0], logits[0]

    @torch.inference_mode()
    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the frontier of one round: K rows at one rotary position, in scratch rows.

        A row attends to all stable rows and, of the scratch rows, to its ancestors. Both are left
        out where a sliding window ends before them.

        Args:
            token_ids: (K,) int64 target ids.
            hidden: (K, h) fp32 feature of each row's parent, as returned for it.
            round: number of the round, from 0. Round i writes scratch rows ``i K`` to ``(i + 1) K``
                and has position ``lengths[slot] + i``.
            mask: (K, W) int64; bit j says whether the row sees scratch row j (itself included).
            slot: the sequence.

        Returns:
            Features for the next round (K, h) and draft logits (K, Vd).

        Raises:
            ValueError: shapes or dtypes are wrong, an id is unknown, or the cache is full.
        """
        self._check_expand(token_ids, hidden, round, mask, slot)
        rows, length = token_ids.shape[0], self.cache.lengths[slot]
        window = self.head_config.sliding_window
        # Stable rows before `first` are outside the window of the whole round. The op is given the
        # cache from there on, so cache rows and prefix lengths count from `first`.
        first = min(first_visible(length + round, window), length)
        within = None if window is None else scratch_window(round, rows, window)
        if within is not None:
            mask = mask[:, : len(within)] & within
        self._same_position[:rows] = length + round
        self._same_length[:rows] = length - first
        first_row = self._row_number(length + round * rows - first)
        mask = mask.contiguous()
        attended, residual = self._attend(
            token_ids.contiguous(),
            hidden.contiguous(),
            self._attention_caches[slot],
            Place(self._same_position_address, first_row, first),
            Visible(self._same_length_address, (round + 1) * rows, mask),
        )
        return self._finish(attended, residual)

    def _row_number(self, number: int) -> int:
        """Return the address of the int32 numbers from `number` on."""
        return self._row_numbers_address + _INT32_BYTES * number

    def _stable_view(self, length: int, rows: int) -> tuple[Place, Visible]:
        """Return the place of ``rows`` rows behind ``length`` stable ones, and what they see."""
        here, window = self._row_number(length), self.head_config.sliding_window
        if window is None or length + rows <= window:
            # Causal: row r sees the prefix of r + 1 rows, and no masked block.
            return Place(here, here, 0), Visible(here + _INT32_BYTES, 0, None)
        first, mask = stable_mask(length, rows, window)
        # The windows of the rows begin at different rows: there is no common prefix, only masks.
        self._same_length[:rows] = 0
        place = Place(here, self._row_number(length - first), first)
        return place, Visible(self._same_length_address, length + rows - first, mask)

    def _attend(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        caches: AttentionCaches,
        place: Place,
        visible: Visible,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer's first half: norms, q, k and v, attention.

        Args:
            token_ids: (M,) int64, contiguous.
            hidden: (M, h) fp32, contiguous.
            caches: the cache that they write and read.
            place: their positions and cache rows.
            visible: what they attend to.

        Returns:
            The heads' outputs (M, Hq D), a buffer, and the residual (M, h).
        """
        rows, width = hidden.shape
        eps, threads = self.head_config.rms_norm_eps, thread_count()
        buffers = self._buffers.get(rows) or self._make_buffers(rows)
        # The layer's input is [embedding | hidden], each normed. Both norms write into one buffer
        # with rows 2 h wide, so nothing is concatenated; the first also gathers the embeddings of a
        # table. Those of another source go where the MLP's input will be.
        source = (self._table_address, width, self.head_config.vocab_size, token_ids.data_ptr())
        if self._source is not None:
            ids, embeddings = token_ids.data_ptr(), buffers.normed_address
            self._source.write_rows(ids, rows, embeddings, threads)
            source = (embeddings, width, rows, 0)
        C.rms_norm(
            *source,
            self._embedding_norm.address, buffers.pair_left, 2 * width, rows, width, eps, threads,
        )  # fmt: skip
        C.rms_norm(
            hidden.data_ptr(), width, rows, 0,
            self._hidden_norm.address, buffers.pair_right, 2 * width, rows, width, eps, threads,
        )  # fmt: skip
        qkv = self._qkv(buffers.pair)
        row_slots, keys, values, slots, stride, capacity, dtype = caches
        skipped = place.first_row * self._row_bytes
        C.cached_attention(
            qkv.data_ptr(), *self._attention_tables, place.positions, place.cache_rows,
            row_slots, keys + skipped, values + skipped, slots, stride, capacity, dtype,
            *visible.arguments(), *self._qk,
            buffers.attended_address, self._out.in_features, rows, *self._heads, threads,
        )  # fmt: skip
        if self.head_config.norm_before_residual:
            hidden = buffers.pair[:, width:].contiguous()
        return buffers.attended, hidden

    def _finish(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer's second half and the LM head.

        Args:
            attended: (M, Hq D) outputs of the heads.
            residual: (M, h).

        Returns:
            Features for the next round (M, h) and draft logits (M, Vd).
        """
        config, threads = self.head_config, thread_count()
        (rows, width), inner, eps = residual.shape, config.intermediate_size, config.rms_norm_eps
        buffers = self._buffers.get(rows) or self._make_buffers(rows)
        normed = buffers.normed_address

        def norm(x: torch.Tensor, weight: NormWeight) -> torch.Tensor:
            C.rms_norm(
                x.data_ptr(), width, rows, 0,
                weight.address, normed, width, rows, width, eps, threads,
            )  # fmt: skip
            return buffers.normed

        x = self._out.add_to(attended, residual)
        gate_up = self._gate_up(norm(x, self._mlp_norm))
        C.silu_mul(gate_up.data_ptr(), 2 * inner, buffers.activated_address, rows, inner, threads)
        x = self._down.add_to(buffers.activated, x)
        if not config.norm_output:
            return x, self._lm_head(x)
        logits = self._lm_head(norm(x, self._final_norm))
        # A clone, since the next pass overwrites the buffer.
        return buffers.normed.clone() if config.norm_feedback else x, logits

    @torch.inference_mode()
    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map target features (R, 3k) to the draft's width (R, h), fp32."""
        features = features.float().contiguous()
        if not self._feature_norms:
            return self._fc(features)
        rows, width = features.shape
        chunk = width // len(self._feature_norms)
        eps, threads = self.head_config.rms_norm_eps, thread_count()
        normed = torch.empty_like(features)
        for i, norm in enumerate(self._feature_norms):
            x, out = (t.data_ptr() + _FLOAT_BYTES * i * chunk for t in (features, normed))
            C.rms_norm(x, width, rows, 0, norm.address, out, width, rows, chunk, eps, threads)
        return self._fc(normed)

    def _make_buffers(self, rows: int) -> RowBuffers:
        config = self.head_config
        pair, attended, normed, activated = (
            torch.empty(rows, columns)
            for columns in (
                2 * config.hidden_size,
                config.num_attention_heads * config.head_dim,
                config.hidden_size,
                config.intermediate_size,
            )
        )
        buffers = RowBuffers(
            pair,
            pair.data_ptr(),
            pair.data_ptr() + _FLOAT_BYTES * config.hidden_size,
            attended,
            attended.data_ptr(),
            normed,
            normed.data_ptr(),
            activated,
            activated.data_ptr(),
        )
        # Prompts have all lengths: keeping buffers for each would add up.
        if rows <= _KEPT_BUFFER_ROWS:
            self._buffers[rows] = buffers
        return buffers
