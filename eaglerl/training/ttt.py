"""Training-time test: the draft is trained on its own outputs, as decoding will feed them back.

EAGLE-3, https://arxiv.org/abs/2503.01840, section 3.2. At step s a row t predicts token t + s + 2
(see `DraftUnroll`); the loss is the cross-entropy against the target's distribution over the
draft's vocabulary.
"""

from dataclasses import dataclass

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.training.batches import PackedBatch
from eaglerl.training.layers import rms_norm, take_rows
from eaglerl.training.soft_cross_entropy import Teacher, soft_cross_entropy
from eaglerl.training.unroll import DraftUnroll

TEACHER_BLOCK_ROWS = 256


@dataclass(frozen=True)
class TTTResult:
    """Loss of a batch, and the rows that its metrics count.

    Attributes:
        loss: scalar, differentiable: the sum over steps of ``decay ** s`` times the mean loss.
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
    """The loss of packed batches for one head."""

    def __init__(
        self,
        head: Eagle3DraftHead,
        target_lm_head: torch.Tensor,
        *,
        steps: int = 4,
        decay: float = 0.8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare the loss.

        Args:
            head: the head, with its vocabulary and the target's embedding table set. Its
                parameters stay in their own dtype (fp32, or fp64 in tests).
            target_lm_head: (V, k) output layer of the target.
            steps: number S of training-time-test steps.
            decay: weight of a step relative to the one before.
            dtype: dtype of matrix products.

        Raises:
            ValueError: ``steps`` is not positive, or the head is of a kind not trained here.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.head = head
        self.steps = steps
        self.decay = decay
        self.dtype = dtype
        self._master_dtype = head.fc.weight.dtype
        kept = head.draft_to_target
        table = target_lm_head.detach()
        self._teacher_weight = (table if kept is None else table[kept]).to(dtype)
        self._target_lm_head = table
        self._target_to_draft = _inverse(kept, head.config.vocab_size)
        self._unroll = DraftUnroll(head, steps=steps, dtype=dtype)

    def __call__(
        self,
        batch: PackedBatch,
        *,
        deep_fraction: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> TTTResult:
        """Run all steps on a batch.

        Args:
            batch: the batch, packed with a margin of at least ``steps``.
            deep_fraction: fraction of the rows, drawn at random, that continue after step 0.
            generator: source of that draw.
        """
        teacher = self._teach(batch)
        outputs, kept = self._unroll(batch, deep_fraction, generator)
        counted = torch.zeros(len(batch.draft_rows), self.steps, dtype=torch.bool)
        learnt: list[torch.Tensor] = []
        chosen: list[torch.Tensor] = []
        for step, (output, rows) in enumerate(zip(outputs, kept, strict=True)):
            inside = batch.steps_left[rows] > step
            counted[rows, step] = inside
            # Nothing to learn where the draft's vocabulary lacks the target's token.
            known = teacher.draft_ids[(rows + step).clamp_max(len(teacher.draft_ids) - 1)] >= 0
            places = (inside & known).nonzero()[:, 0]
            chosen.append(take_rows(output, places))
            learnt.append(rows[places])
        return self._result(teacher, chosen, learnt, counted)

    def _result(
        self,
        teacher: Teacher,
        outputs: list[torch.Tensor],
        learnt: list[torch.Tensor],
        counted: torch.Tensor,
    ) -> TTTResult:
        """Compare each step's outputs (M_s, h) of the draft rows ``learnt`` with the teacher."""
        sizes = [len(rows) for rows in learnt]
        weights = torch.cat(
            [
                torch.full((size,), self.decay**step / max(size, 1), dtype=self._master_dtype)
                for step, size in enumerate(sizes)
            ]
        )
        eps = self.head.config.rms_norm_eps
        normed = rms_norm(torch.cat(outputs), self.head.norm.weight, eps, self.dtype)
        teacher_rows = torch.cat([rows + step for step, rows in enumerate(learnt)])
        loss, losses, hits = soft_cross_entropy(
            normed, self.head.lm_head.weight, teacher, teacher_rows, weights
        )
        correct = torch.zeros_like(counted)
        for step, (rows, hit) in enumerate(zip(learnt, hits.split(sizes), strict=True)):
            correct[rows, step] = hit
        step_losses = torch.stack([part.mean() for part in losses.split(sizes)])
        return TTTResult(loss, step_losses, correct, counted)

    @torch.no_grad()
    def _teach(self, batch: PackedBatch) -> Teacher:
        """Return the target's distribution at every teacher row.

        The target's most probable token is looked for among the draft's tokens and the token that
        it wrote; the whole vocabulary would cost six times as much and hardly ever differ.
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


def _inverse(draft_to_target: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """Return the draft id of every target id (V,), -1 where there is none."""
    if draft_to_target is None:
        return torch.arange(vocab_size)
    inverse = torch.full((vocab_size,), -1)
    inverse[draft_to_target] = torch.arange(len(draft_to_target))
    return inverse
