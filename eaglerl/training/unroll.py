"""The draft layer over all training-time-test steps of a packed batch.

Row t starts from the target's feature of token t. At step s it takes token t + s + 1 and its own
output of step s - 1 (at step 0 the feature), stands at rotary position t + s, attends to the step-0
keys up to t and to its own keys of steps 1..s, and its output predicts token t + s + 2: what
decoding computes when it drafts s tokens beyond the real context. Prompt rows only supply step-0
keys and values.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch.nn import functional

from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.layers.rope import check_rope_length, head_rope_tables
from eaglerl.training.batches import PackedBatch
from eaglerl.training.layers import rms_norm, rotate, take_rows
from eaglerl.training.ttt_attention import AttentionSpan, make_span, ttt_attention


class _Weights(NamedTuple):
    """The layer's matrices in the dtype of products, cast once for all steps.

    The layer reads [embedding | feature]; ``qkv`` is cut accordingly.
    """

    qkv_embedding: torch.Tensor
    qkv_feature: torch.Tensor
    output: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def check_trainable(config: Eagle3Config) -> None:
    """Check that heads of this configuration can be trained here.

    Raises:
        ValueError: the head is of another kind.
    """
    wanted: dict[str, bool | None] = {
        "norm_output": True,
        "norm_feedback": False,
        "norm_before_residual": False,
    }
    wanted |= {"norm_before_fc": False, "qk_norm": False, "sliding_window": None}
    got = {name: getattr(config, name) for name in wanted}
    if got != wanted:
        raise ValueError(f"head must have {wanted}, other kinds cannot be trained; got {got}")


class DraftUnroll:
    """A head's layer over all steps, differentiable."""

    def __init__(self, head: Eagle3DraftHead, *, steps: int, dtype: torch.dtype) -> None:
        """Prepare the tables.

        Args:
            head: the head, with the target's embedding table set.
            steps: number of steps.
            dtype: dtype of matrix products; all else is in the dtype of the head's parameters.

        Raises:
            ValueError: the head is of a kind that is not trained here.
        """
        config = head.config
        check_trainable(config)
        self._head = head
        self._layer = head.midlayer
        self._steps = steps
        self._dtype = dtype
        self._master_dtype = head.fc.weight.dtype
        self._kv_width = 2 * config.num_key_value_heads * config.head_dim
        self._rope = head_rope_tables(
            config.head_dim,
            config.rope_parameters,
            max_position_embeddings=config.max_position_embeddings,
        )

    def __call__(
        self, batch: PackedBatch, deep_fraction: float, generator: torch.Generator | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run all steps.

        Args:
            batch: the batch.
            deep_fraction: fraction of the rows, drawn at random, that continue after step 0.
            generator: source of that draw.

        Returns:
            For each step the outputs (R_s, h) before the final norm, and which of the batch's
            draft rows (R_s,) they belong to. Rows whose prediction would lie beyond the end of
            their sequence are included; their outputs mean nothing.
        """
        weights = self._weights()
        embeddings = self._norm(self._head.embed(batch.token_ids), self._layer.input_layernorm)
        # A token is the input of several steps: its half of the product is computed once for all.
        from_tokens = functional.linear(embeddings, weights.qkv_embedding)
        feature = self._reduce(batch.features)
        key, value = self._shared_keys(feature, from_tokens, batch.positions, weights)

        rows = torch.arange(len(batch.draft_rows))
        spans = self._spans(batch, rows)
        feature = take_rows(feature, batch.draft_rows)
        own_keys: list[torch.Tensor] = []
        own_values: list[torch.Tensor] = []
        outputs, kept = [], []
        for step in range(self._steps):
            if step == 1 and deep_fraction < 1:
                rows = (torch.rand(len(rows), generator=generator) < deep_fraction).nonzero()[:, 0]
                spans = self._spans(batch, rows)
                feature = take_rows(feature, rows)
            places = batch.draft_rows[rows]
            positions = batch.positions[places] + step
            normed = self._norm(feature, self._layer.hidden_norm)
            tokens = take_rows(from_tokens, places + step + 1)
            if step == 0:
                # The row's own step-0 key is among the shared ones.
                query = functional.linear(normed, weights.qkv_feature[: -self._kv_width])
                query = query + tokens[:, : -self._kv_width]
            else:
                mixed = functional.linear(normed, weights.qkv_feature) + tokens
                query, own = mixed.tensor_split([mixed.shape[1] - self._kv_width], dim=1)
                own_key, own_value = self._keys_and_values(own, positions)
                own_keys.append(own_key)
                own_values.append(own_value)
            query = self._rotate(query, positions).unflatten(1, (key.shape[1], -1))
            attended = ttt_attention(query, key, value, spans, own_keys, own_values)
            feature = self._finish(feature, attended, weights)
            outputs.append(feature)
            kept.append(rows)
        return outputs, kept

    def _weights(self) -> _Weights:
        attention, mlp = self._layer.self_attn, self._layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([part.weight for part in projections]).to(self._dtype)
        width = self._head.config.hidden_size
        others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        return _Weights(
            qkv[:, :width], qkv[:, width:], *[part.weight.to(self._dtype) for part in others]
        )

    def _reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Reduce features (N, 3k) to the draft's width (N, h)."""
        features = features.to(self._master_dtype)
        if self._head.fc_norm is None:
            normed = features.to(self._dtype)
        else:
            # A ModuleList does not say what its modules are.
            norms = cast("Iterable[RMSNorm]", self._head.fc_norm)
            chunks = zip(features.chunk(3, dim=1), norms, strict=True)
            normed = torch.cat([self._norm(chunk, norm) for chunk, norm in chunks], dim=1)
        weight = self._head.fc.weight.to(self._dtype)
        return functional.linear(normed, weight).to(self._master_dtype)

    def _shared_keys(
        self,
        feature: torch.Tensor,
        from_tokens: torch.Tensor,
        positions: torch.Tensor,
        weights: _Weights,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the step-0 keys and values (N, Hkv, D) of every token."""
        normed = self._norm(feature, self._layer.hidden_norm)
        joint = functional.linear(normed, weights.qkv_feature[-self._kv_width :])
        joint = joint + from_tokens[1 : len(feature) + 1, -self._kv_width :]
        return self._keys_and_values(joint, positions)

    def _finish(
        self, feature: torch.Tensor, attended: torch.Tensor, weights: _Weights
    ) -> torch.Tensor:
        """Return the layer's output (R, h) from its residual and what attention read."""
        residual = feature + functional.linear(attended.to(self._dtype), weights.output)
        normed = self._norm(residual, self._layer.post_attention_layernorm)
        gate = functional.silu(functional.linear(normed, weights.gate))
        up = functional.linear(normed, weights.up)
        return residual + functional.linear(gate * up, weights.down)

    def _norm(self, x: torch.Tensor, module: RMSNorm) -> torch.Tensor:
        return rms_norm(x, module.weight, self._head.config.rms_norm_eps, self._dtype)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotate (R, heads * D); return (R, heads, D) in the dtype of the parameters."""
        config, rows = self._head.config, int(positions.max()) + 1
        check_rope_length(config.rope_parameters, rows, config.max_position_embeddings)
        tables = self._rope.first(rows)
        cos, sin = (table[positions].to(self._master_dtype) for table in tables)
        return rotate(x.unflatten(1, (-1, config.head_dim)), cos, sin)

    def _keys_and_values(
        self, joint: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Split (R, 2 * Hkv * D) into rotated keys and values (R, Hkv, D)."""
        key, value = joint.chunk(2, dim=1)
        heads = value.unflatten(1, (-1, self._head.config.head_dim))
        return self._rotate(key, positions), heads.to(self._master_dtype)

    def _spans(self, batch: PackedBatch, rows: torch.Tensor) -> list[AttentionSpan]:
        """Return where each sequence's part of the draft rows ``rows`` attends."""
        config = self._head.config
        group = config.num_attention_heads // config.num_key_value_heads
        positions = batch.positions[batch.draft_rows[rows]]
        ends = torch.tensor(batch.draft_counts).cumsum(0)
        bounds = [0, *torch.searchsorted(rows, ends).tolist()]
        spans, offset = [], 0
        for index, length in enumerate(batch.lengths):
            part = slice(bounds[index], bounds[index + 1])
            # Keys beyond the last query are never seen.
            keys = slice(offset, offset + length - 2)
            if part.stop > part.start:
                spans.append(make_span(part, keys, positions[part], group, self._master_dtype))
            offset += length
        return spans
