"""The fast CPU runner of a draft head: packed products, fused ops, buffers made once.

A pass takes a few hundred microseconds, so that the time between the products counts: addresses are
looked up once, the ops are called without a second check of their arguments, and no tensor is
sliced in a pass whose number of rows was seen before.
"""

from dataclasses import dataclass

import numpy as np
import torch

from eaglerl._ext import C
from eaglerl.eagle3.draft import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.draft_runner import CachedDraft
from eaglerl.eagle3.linear import LinearDtype, PackedLinear

_FLOAT_BYTES = 4
_INT32_BYTES = 4
# Rows of one pass over a long prompt.
_CHUNK_ROWS = 256


@dataclass(slots=True)
class _RowBuffers:
    """Buffers of one number of rows M, with the addresses that a pass needs."""

    pair: torch.Tensor
    pair_left: int
    pair_right: int
    attended: torch.Tensor
    attended_address: int
    normed: torch.Tensor
    normed_address: int
    activated: torch.Tensor
    activated_address: int


@dataclass(slots=True)
class _Norm:
    """A norm's weight, kept alive, and its address."""

    weight: torch.Tensor
    address: int

    @classmethod
    def of(cls, norm: RMSNorm) -> "_Norm":
        weight = norm.weight.detach().float().contiguous()
        return cls(weight, weight.data_ptr())


class PackedDraft(CachedDraft):
    """A draft head on the CPU with weights packed once in fp32, bf16 or int8.

    Everything but the products runs in fp32. Not for use from two threads at once.
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
        """Packs the head; later changes of its weights are not seen.

        Args:
            head: The head, on the CPU, with an embedding table.
            capacity: Rows per slot: stable rows and the scratch rows of the widest tree,
                ``depth * top_k``.
            slots: Number of sequences.
            dtype: What the products run in. With "int8", ``fc`` runs in bf16: the target's features
                have outliers that leave 8 bits nothing for the rest.
            rows_hint: Number of rows for which the weights are laid out.

        Raises:
            ValueError: The head has no embedding table or is not on the CPU, or RoPE has no table
                of ``capacity`` rows, or the native ops do not take its ``head_dim``.
        """
        config = head.config
        if head.fc.weight.device.type != "cpu":
            raise ValueError(f"head must be on the CPU, got {head.fc.weight.device}")
        if config.head_dim % 8 or config.head_dim > C.max_head_dim:
            raise ValueError(
                f"head_dim must be a multiple of 8 up to {C.max_head_dim} for packed drafting, got "
                f"{config.head_dim}"
            )
        super().__init__(head, capacity=capacity, slots=slots)
        self.dtype = dtype
        self._pack(head, dtype, rows_hint)
        self._table = head.embed_tokens.float().contiguous()
        self._scale = config.head_dim**-0.5
        # Row numbers, from which positions and cache rows of consecutive rows are read in place.
        self._row_numbers = np.arange(capacity + 1, dtype=np.int32)
        self._row_numbers_address = self._row_numbers.ctypes.data
        self._same_position = np.empty(capacity, dtype=np.int32)
        self._same_length = np.empty(capacity, dtype=np.int32)
        self._buffers: dict[int, _RowBuffers] = {}

    def _pack(self, head: Eagle3DraftHead, dtype: LinearDtype, rows_hint: int) -> None:
        layer = head.midlayer
        attention, mlp = layer.self_attn, layer.mlp

        def pack(*modules: torch.nn.Linear, dtype: LinearDtype = dtype) -> PackedLinear:
            weight = torch.cat([module.weight.detach() for module in modules])
            return PackedLinear(weight, dtype=dtype, rows_hint=rows_hint)

        self._qkv = pack(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = pack(attention.o_proj)
        self._gate_up = pack(mlp.gate_proj, mlp.up_proj)
        self._down = pack(mlp.down_proj)
        self._lm_head = pack(head.lm_head)
        self._fc = pack(head.fc, dtype="bfloat16" if dtype == "int8" else dtype)
        self._embedding_norm = _Norm.of(layer.input_layernorm)
        self._hidden_norm = _Norm.of(layer.hidden_norm)
        self._mlp_norm = _Norm.of(layer.post_attention_layernorm)
        self._final_norm = _Norm.of(head.norm)
        feature_norms = head.fc_norm if head.fc_norm is not None else [head.input_norm]
        self._feature_norms = [_Norm.of(norm) for norm in feature_norms if norm is not None]

    @torch.inference_mode()
    def extend(
        self, token_ids: torch.Tensor, features: torch.Tensor, slot: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in stable rows, which pair features of token t with the embedding of token t + 1.

        Args:
            token_ids: (R,) int64 target ids of the tokens t + 1.
            features: (R, 3k) fp32 features of the tokens t, [low | mid | high].
            slot: The sequence; its rows grow by R.

        Returns:
            The last row's feature for the next draft step (h,) and its draft logits (Vd,).

        Raises:
            ValueError: Shapes or dtypes are wrong, an id is unknown, or the cache is full.
        """
        self._check_extend(token_ids, features, slot)
        rows = len(token_ids)
        for begin in range(0, rows, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, rows)
            hidden = self._reduce(features[begin:end])
            start = self.lengths[slot]
            attended, residual = self._attend_stable(token_ids[begin:end], hidden, start, slot)
            self.lengths[slot] = start + end - begin
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
        """Runs the frontier of one round: K rows at one rotary position, in scratch rows.

        Args:
            token_ids: (K,) int64 target ids.
            hidden: (K, h) fp32 feature of each row's parent, as returned for it.
            round: Number of the round, from 0. Round i writes scratch rows ``i K`` to ``(i + 1) K``
                and stands at position ``lengths[slot] + i``.
            mask: (K, W) int64; bit j says whether the row sees scratch row j (itself included).
            slot: The sequence.

        Returns:
            Features for the next round (K, h) and draft logits (K, Vd).

        Raises:
            ValueError: Shapes or dtypes are wrong, an id is unknown, or the cache is full.
        """
        self._check_expand(token_ids, hidden, round, mask, slot)
        token_ids, hidden, mask = token_ids.contiguous(), hidden.contiguous(), mask.contiguous()
        rows, length = token_ids.shape[0], self.cache.lengths[slot]
        self._same_position[:rows] = length + round
        self._same_length[:rows] = length
        attended, residual = self._attend(
            token_ids,
            hidden,
            slot,
            positions=self._same_position.ctypes.data,
            cache_rows=self._row_numbers_address + _INT32_BYTES * (length + round * rows),
            prefix_lengths=self._same_length.ctypes.data,
            mask=mask.data_ptr(),
            mask_words=mask.shape[1],
            block_length=(round + 1) * rows,
        )
        return self._finish(attended, residual)

    def _attend_stable(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, start: int, slot: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Causal rows from position ``start`` on; see `_attend`."""
        address = self._row_numbers_address + _INT32_BYTES * start
        return self._attend(
            token_ids.contiguous(),
            hidden,
            slot,
            positions=address,
            cache_rows=address,
            prefix_lengths=address + _INT32_BYTES,
            mask=0,
            mask_words=0,
            block_length=0,
        )

    def _attend(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        slot: int,
        *,
        positions: int,
        cache_rows: int,
        prefix_lengths: int,
        mask: int,
        mask_words: int,
        block_length: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From tokens and features to the heads' outputs (M, Hq D) and the residual (M, h)."""
        config = self.head_config
        rows, width, eps = token_ids.shape[0], config.hidden_size, config.rms_norm_eps
        threads = torch.get_num_threads()
        buffers = self._buffers.get(rows) or self._make_buffers(rows)
        C.rms_norm(
            self._table.data_ptr(), width, self._table.shape[0], token_ids.data_ptr(),
            self._embedding_norm.address, buffers.pair_left, 2 * width, rows, width, eps, threads,
        )  # fmt: skip
        C.rms_norm(
            hidden.data_ptr(), width, rows, 0,
            self._hidden_norm.address, buffers.pair_right, 2 * width, rows, width, eps, threads,
        )  # fmt: skip
        qkv = self._qkv(buffers.pair)
        keys, values = self.cache.data[slot, 0]
        C.cached_attention(
            qkv.data_ptr(), qkv.shape[1],
            self._cos.data_ptr(), self._sin.data_ptr(), self._cos.shape[0],
            positions, cache_rows, 0,
            keys.data_ptr(), values.data_ptr(), 1, 0, self.cache.capacity,
            prefix_lengths, mask, mask_words, block_length,
            0, 0, eps, self._scale,
            buffers.attended_address, buffers.attended.shape[1], rows,
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, threads,
        )  # fmt: skip
        if config.norm_before_residual:
            hidden = buffers.pair[:, width:].contiguous()
        return buffers.attended, hidden

    def _finish(
        self, attended: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From the heads' outputs to the next step's features (M, h) and the logits (M, Vd)."""
        config = self.head_config
        rows, width, eps = attended.shape[0], config.hidden_size, config.rms_norm_eps
        inner = config.intermediate_size
        threads = torch.get_num_threads()
        buffers = self._buffers.get(rows) or self._make_buffers(rows)
        normed = buffers.normed_address
        x = self._out.add_to(attended, residual)
        mlp_norm, final_norm = self._mlp_norm.address, self._final_norm.address
        C.rms_norm(x.data_ptr(), width, rows, 0, mlp_norm, normed, width, rows, width, eps, threads)
        gate_up = self._gate_up(buffers.normed)
        activated = buffers.activated_address
        C.silu_mul(gate_up.data_ptr(), 2 * inner, activated, rows, inner, threads)
        x = self._down.add_to(buffers.activated, x)
        if not config.norm_output:
            return x, self._lm_head(x)
        C.rms_norm(
            x.data_ptr(), width, rows, 0, final_norm, normed, width, rows, width, eps, threads
        )
        logits = self._lm_head(buffers.normed)
        return buffers.normed.clone() if config.norm_feedback else x, logits

    def _reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features (R, 3k) to the draft's width (R, h)."""
        features = features.float().contiguous()
        if not self._feature_norms:
            return self._fc(features)
        rows, width = features.shape
        chunk = width // len(self._feature_norms)
        eps, threads = self.head_config.rms_norm_eps, torch.get_num_threads()
        normed = torch.empty_like(features)
        for i, norm in enumerate(self._feature_norms):
            x, out = (t.data_ptr() + _FLOAT_BYTES * i * chunk for t in (features, normed))
            C.rms_norm(x, width, rows, 0, norm.address, out, width, rows, chunk, eps, threads)
        return self._fc(normed)

    def _make_buffers(self, rows: int) -> _RowBuffers:
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
        self._buffers[rows] = _RowBuffers(
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
        return self._buffers[rows]
