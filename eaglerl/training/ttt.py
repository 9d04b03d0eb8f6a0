"""Training-time test: the draft is trained on its own outputs, as decoding will feed them back.

EAGLE-3, https://arxiv.org/abs/2503.01840, section 3.2. Row t starts from the target's feature of token t
and, at step s, takes token t + s + 1 and its own output of step s - 1, attends to the step-0 keys up to
t and to its own keys of steps 1..s, stands at rotary position t + s, and predicts token t + s + 2.
The loss is the cross-entropy against the target's distribution over the draft's vocabulary.

Prompts cost little: their rows only supply keys and values.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from eaglerl.eagle3.draft import Eagle3DraftHead
from eaglerl.eagle3.rope import rope_tables
from eaglerl.training.batches import PackedBatch
from eaglerl.training.layers import rms_norm, rotate, take_rows
from eaglerl.training.soft_cross_entropy import Teacher, soft_cross_entropy
from eaglerl.training.ttt_attention import AttentionSpan, make_span, ttt_attention

TEACHER_BLOCK_ROWS = 256


@dataclass(frozen=True)
class TTTResult:
    """Loss of a batch and what its metrics are made of.

    Attributes:
        loss: Scalar, differentiable: the sum over steps of ``decay ** s`` times the mean loss.
        step_losses: (S,) mean loss of each step's rows.
        correct: (R, S) bool, the draft's most probable token is the target's. False where the row
            was not computed, and where the draft's vocabulary lacks the target's token.
        counted: (R, S) bool, rows that were computed and have a token to predict.
    """

    loss: torch.Tensor
    step_losses: torch.Tensor
    correct: torch.Tensor
    counted: torch.Tensor


class TrainingTimeTest:
    """Computes the loss of packed batches for one head."""

    def __init__(
        self,
        head: Eagle3DraftHead,
        target_lm_head: torch.Tensor,
        *,
        steps: int = 4,
        decay: float = 0.8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepares the loss.

        Args:
            head: The head, with its vocabulary and the target's embedding table set. Its
                parameters stay in their own dtype (fp32, or fp64 in tests).
            target_lm_head: (V, k) output layer of the target.
            steps: Number S of training-time-test steps.
            decay: Weight of a step relative to the one before.
            dtype: Dtype of matrix products.

        Raises:
            ValueError: ``steps`` is not positive, or the head is of a kind that is not trained here.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        config = head.config
        if config.norm_before_fc or config.norm_before_residual or not config.norm_output:
            raise ValueError(
                "head must have norm_output, and neither norm_before_fc nor norm_before_residual: "
                f"other kinds are not trained here, got {config}"
            )
        if config.norm_feedback:
            raise ValueError("head must feed back its raw output: norm_feedback is not trained here")
        self.head = head
        self.steps = steps
        self.decay = decay
        self.dtype = dtype
        self._master_dtype = head.fc.weight.dtype
        kept = head.draft_to_target
        table = target_lm_head.detach()
        self._teacher_weight = (table if kept is None else table[kept]).to(dtype)
        self._target_lm_head = table
        self._target_to_draft = _inverse(kept, config.vocab_size)
        self._rope = rope_tables(
            config.head_dim,
            config.rope_parameters,
            config.max_position_embeddings,
            max_position_embeddings=config.max_position_embeddings,
        )

    def __call__(
        self,
        batch: PackedBatch,
        *,
        deep_fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> TTTResult:
        """Runs all steps on a batch.

        Args:
            batch: The batch, packed with a margin of at least ``steps``.
            deep_fraction: Fraction of the rows, drawn at random, that go on after step 0.
            generator: Source of that draw.
        """
        teacher = self._teach(batch)
        outputs, kept = self._unroll(batch, deep_fraction, generator)
        hidden, teacher_rows, owners, sizes = [], [], [], []
        counted = torch.zeros(len(batch.draft_rows), self.steps, dtype=torch.bool)
        for step, (output, rows) in enumerate(zip(outputs, kept, strict=True)):
            inside = batch.steps_left[rows] > step
            counted[rows, step] = inside
            # Where the target prefers a token that the draft cannot say, there is nothing to learn.
            known = teacher.draft_ids[(rows + step).clamp_max(len(teacher.draft_ids) - 1)] >= 0
            learnt = (inside & known).nonzero()[:, 0]
            hidden.append(take_rows(output, learnt))
            teacher_rows.append(rows[learnt] + step)
            owners.append(rows[learnt])
            sizes.append(len(learnt))
        weights = torch.cat(
            [
                torch.full((size,), self.decay**step / max(size, 1), dtype=self._master_dtype)
                for step, size in enumerate(sizes)
            ]
        )
        config = self.head.config
        normed = rms_norm(
            torch.cat(hidden), self.head.norm.weight, config.rms_norm_eps, self.dtype
        )
        loss, losses, hits = soft_cross_entropy(
            normed, self.head.lm_head.weight, teacher, torch.cat(teacher_rows), weights
        )
        correct = torch.zeros_like(counted)
        for step, (owner, hit) in enumerate(zip(owners, hits.split(sizes), strict=True)):
            correct[owner, step] = hit
        step_losses = torch.stack([part.mean() for part in losses.split(sizes)])
        return TTTResult(loss, step_losses, correct, counted)

    @torch.no_grad()
    def _teach(self, batch: PackedBatch) -> Teacher:
        """Returns the target's distribution at every teacher row.

        What the target prefers is looked for among the draft's tokens and the token that it wrote
        there; the whole vocabulary would cost six times as much and hardly ever differ.
        """
        hidden = batch.teacher_hidden.to(self.dtype)
        probabilities = torch.empty(len(hidden), len(self._teacher_weight), dtype=self.dtype)
        draft_ids = torch.empty(len(hidden), dtype=torch.int64)
        best = torch.empty(len(hidden), dtype=self._master_dtype)
        for start in range(0, len(hidden), TEACHER_BLOCK_ROWS):
            block = slice(start, start + TEACHER_BLOCK_ROWS)
            logits = (hidden[block] @ self._teacher_weight.t()).to(self._master_dtype)
            best[block], draft_ids[block] = logits.max(-1)
            probabilities[block] = torch.softmax(logits, -1)
        unknown = (self._target_to_draft[batch.written_ids] < 0).nonzero()[:, 0]
        if len(unknown):
            weight = self._target_lm_head[batch.written_ids[unknown]].to(self._master_dtype)
            written = torch.linalg.vecdot(hidden[unknown].to(self._master_dtype), weight)
            draft_ids[unknown[written > best[unknown]]] = -1
        return Teacher(probabilities, draft_ids)

    def _unroll(
        self, batch: PackedBatch, deep_fraction: float, generator: torch.Generator | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns every step's outputs (R_s, h), and the draft rows (R_s,) that they belong to."""
        head, config = self.head, self.head.config
        attention, mlp = head.midlayer.self_attn, head.midlayer.mlp
        width, kv_width = config.hidden_size, config.num_key_value_heads * config.head_dim
        qkv = torch.cat(
            [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        ).to(self.dtype)
        # The layer reads [embedding | feature]. A token's embedding is the input of several steps,
        # so its half of the product is computed once for all of them.
        from_embedding = F.linear(self._embed(batch.token_ids), qkv[:, :width])
        from_feature = qkv[:, width:]
        output_weight = attention.o_proj.weight.to(self.dtype)
        mlp_weights = [
            part.weight.to(self.dtype) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        ]

        feature = self._reduce(batch.taps)
        normed = self._norm(feature, head.midlayer.hidden_norm)
        shared = F.linear(normed, from_feature[-2 * kv_width :])
        shared = shared + from_embedding[1 : len(feature) + 1, -2 * kv_width :]
        key, value = self._keys_and_values(shared, batch.positions)

        rows = torch.arange(len(batch.draft_rows))
        spans = self._spans(batch, rows)
        feature = take_rows(feature, batch.draft_rows)
        own_keys, own_values, outputs, kept = [], [], [], []
        for step in range(self.steps):
            if step == 1 and deep_fraction < 1:
                chosen = torch.rand(len(rows), generator=generator) < deep_fraction
                rows = chosen.nonzero()[:, 0]
                spans = self._spans(batch, rows)
                feature = take_rows(feature, rows)
            tokens = batch.draft_rows[rows] + step + 1
            positions = batch.positions[batch.draft_rows[rows]] + step
            normed = self._norm(feature, head.midlayer.hidden_norm)
            if step == 0:
                query = F.linear(normed, from_feature[: -2 * kv_width])
                query = query + take_rows(from_embedding[:, : -2 * kv_width], tokens)
            else:
                mixed = F.linear(normed, from_feature) + take_rows(from_embedding, tokens)
                query, own = mixed.split([mixed.shape[1] - 2 * kv_width, 2 * kv_width], dim=1)
                own_key, own_value = self._keys_and_values(own, positions)
                own_keys.append(own_key)
                own_values.append(own_value)
            query = self._rotate(query, positions)
            grouped = query.view(len(rows), config.num_key_value_heads, -1, config.head_dim)
            attended = ttt_attention(grouped, key, value, spans, own_keys, own_values)
            residual = feature + F.linear(attended.to(self.dtype), output_weight)
            normed = self._norm(residual, head.midlayer.post_attention_layernorm)
            gate, up, down = mlp_weights
            feature = residual + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)
            outputs.append(feature)
            kept.append(rows)
        return outputs, kept

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Returns the normed embeddings (N + margin, h)."""
        embeddings = self.head.embed(token_ids)
        return self._norm(embeddings, self.head.midlayer.input_layernorm)

    def _reduce(self, taps: torch.Tensor) -> torch.Tensor:
        """Maps features (N, 3k) to the draft's width (N, h)."""
        taps = taps.to(self._master_dtype)
        if self.head.fc_norm is None:
            normed = taps.to(self.dtype)
        else:
            chunks = zip(taps.chunk(3, dim=1), self.head.fc_norm, strict=True)
            normed = torch.cat([self._norm(chunk, norm) for chunk, norm in chunks], dim=1)
        return F.linear(normed, self.head.fc.weight.to(self.dtype)).to(self._master_dtype)

    def _norm(self, x: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
        return rms_norm(x, module.weight, self.head.config.rms_norm_eps, self.dtype)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotates (R, heads * D); returns (R, heads, D) in the dtype of the weights."""
        cos, sin = (table[positions].to(self._master_dtype) for table in self._rope)
        return rotate(x.unflatten(1, (-1, self.head.config.head_dim)), cos, sin)

    def _keys_and_values(
        self, joint: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits (R, 2 * Hkv * D) into rotated keys and values (R, Hkv, D)."""
        key, value = joint.chunk(2, dim=1)
        heads = value.unflatten(1, (-1, self.head.config.head_dim))
        return self._rotate(key, positions), heads.to(self._master_dtype)

    def _spans(self, batch: PackedBatch, rows: torch.Tensor) -> list[AttentionSpan]:
        """Returns where each sequence's part of the draft rows ``rows`` attends."""
        config = self.head.config
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


def _inverse(draft_to_target: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """Returns the draft id of every target id (V,), -1 where there is none."""
    if draft_to_target is None:
        return torch.arange(vocab_size)
    inverse = torch.full((vocab_size,), -1)
    inverse[draft_to_target] = torch.arange(len(draft_to_target))
    return inverse
