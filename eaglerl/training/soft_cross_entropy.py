"""Soft cross-entropy of a large output layer against teacher probabilities, without its logits.

For hidden states h, weights W and teacher probabilities p of a row, z = W h,
``loss = logsumexp(z) - p . z`` and ``d loss / d z = softmax(z) - p`` (p sums to 1). Forward works
in blocks that stay in the cache and leaves only the gradients of h and W, so the (rows, Vd) logits
of a batch never exist at once.
"""

from typing import Any, NamedTuple

import torch

# Logits of a block and a vocabulary of 8,192 take 8 MiB in fp32.
BLOCK_ROWS = 256
# The product for the gradient of W reads and writes all of it, so it serves several blocks at once.
GROUP_BLOCKS = 8


class Teacher(NamedTuple):
    """The target's predictions at the positions that the draft has to predict.

    Attributes:
        probabilities: (Rt, Vd), the target's softmax restricted to the draft's vocabulary, in the
            dtype of matrix products.
        draft_ids: (Rt,) int64 draft id of the target's most probable token, or -1 if the draft's
            vocabulary lacks it.
    """

    probabilities: torch.Tensor
    draft_ids: torch.Tensor


def soft_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    teacher: Teacher,
    teacher_rows: torch.Tensor,
    row_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weighted sum of the rows' losses, with gradients for ``hidden`` and ``weight``.

    Args:
        hidden: (M, h) normed draft outputs, in the dtype of matrix products.
        weight: (Vd, h) output layer, fp32 or fp64.
        teacher: what to predict.
        teacher_rows: (M,) int64 row of ``teacher`` for each row of ``hidden``.
        row_weights: (M,) weight of each row's loss.

    Returns:
        The weighted sum; each row's unweighted loss (M,), without gradient; and whether the row's
        most probable id is the target's (M,) bool.
    """
    return _SoftCrossEntropy.apply(hidden, weight, *teacher, teacher_rows, row_weights)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        probabilities: torch.Tensor,
        draft_ids: torch.Tensor,
        teacher_rows: torch.Tensor,
        row_weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, dtype = len(hidden), hidden.dtype
        compute_weight = weight.to(dtype)
        losses = torch.empty(rows, dtype=weight.dtype)
        correct = torch.empty(rows, dtype=torch.bool)
        wants_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        group = BLOCK_ROWS * GROUP_BLOCKS
        if wants_gradient:
            grad_hidden = torch.empty(rows, hidden.shape[1], dtype=weight.dtype)
            grad_weight = torch.zeros_like(weight)
            grad_logits = torch.empty(min(rows, group), len(weight), dtype=dtype)
        for start in range(0, rows, group):
            end = min(start + group, rows)
            for first in range(start, end, BLOCK_ROWS):
                block = slice(first, min(first + BLOCK_ROWS, end))
                target = teacher_rows[block]
                difference = _block(
                    hidden[block] @ compute_weight.t(),
                    probabilities[target],
                    draft_ids[target],
                    losses[block],
                    correct[block],
                )
                if wants_gradient:
                    grad_logits[block.start - start : block.stop - start] = difference
            if wants_gradient:
                # Scaling the h columns on either side costs less than scaling the Vd columns.
                scale = row_weights[start:end, None]
                grads = grad_logits[: end - start]
                grad_hidden[start:end] = (grads @ compute_weight).mul_(scale)
                grad_weight += grads.t() @ (hidden[start:end] * scale).to(dtype)
        if wants_gradient:
            ctx.save_for_backward(grad_hidden.to(dtype), grad_weight)
        ctx.mark_non_differentiable(losses, correct)
        return losses @ row_weights.to(losses.dtype), losses, correct

    @staticmethod
    def backward(
        ctx: Any, grad_total: torch.Tensor, grad_losses: torch.Tensor, grad_correct: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_total, grad_weight * grad_total, None, None, None, None


def _block(
    logits: torch.Tensor,
    probabilities: torch.Tensor,
    draft_ids: torch.Tensor,
    losses: torch.Tensor,
    correct: torch.Tensor,
) -> torch.Tensor:
    """Fill ``losses`` and ``correct`` of one block; return softmax(logits) - probabilities."""
    accumulate = losses.dtype
    student = torch.softmax(logits, -1, dtype=accumulate)
    top = student.amax(-1)
    # The largest logit has the probability exp(max - logsumexp).
    log_partition = logits.amax(-1).to(accumulate) - top.log()
    expected = torch.linalg.vecdot(probabilities.to(accumulate), logits.to(accumulate))
    torch.sub(log_partition, expected, out=losses)
    chosen = student.gather(1, draft_ids.clamp_min(0)[:, None])[:, 0]
    torch.logical_and(chosen == top, draft_ids >= 0, out=correct)
    return student.sub_(probabilities)
