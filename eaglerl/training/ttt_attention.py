"""Attention of training-time test over packed sequences.

At step s a row attends to the step-0 keys of its own sequence up to itself, and to the keys that
it wrote itself in steps 1..s (EAGLE-3, https://arxiv.org/abs/2503.01840, section 3.2). The first
part is ordinary attention; the second needs no matrix product, as each row has s keys of its own.
One softmax spans both: they are merged by their log-sum-exp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class AttentionSpan:
    """The part of a packed batch that one sequence occupies.

    Attributes:
        rows: rows of the queries.
        keys: rows of the step-0 keys.
        mask: (1, 1, G * n, L) additive mask: query i of each of the G heads that share a key sees
            the keys up to its own.
    """

    rows: slice
    keys: slice
    mask: torch.Tensor


def make_span(
    rows: slice, keys: slice, positions: torch.Tensor, group: int, dtype: torch.dtype
) -> AttentionSpan:
    """Make the span of a sequence whose queries see the keys up to ``positions`` (n,)."""
    length = keys.stop - keys.start
    hidden = torch.arange(length) > positions[:, None]
    mask = torch.zeros(len(positions), length, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return AttentionSpan(rows, keys, mask.repeat(group, 1)[None, None])


def ttt_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: list[AttentionSpan],
    own_keys: list[torch.Tensor],
    own_values: list[torch.Tensor],
) -> torch.Tensor:
    """Attend from every row to its sequence and to the keys of its own earlier steps.

    Args:
        query: (R, Hkv, G, D), rotated; G query heads share a key head.
        key: (N, Hkv, D), the step-0 keys, rotated.
        value: (N, Hkv, D).
        spans: one for each sequence; together they cover all R rows.
        own_keys: for each step 1..s, (R, Hkv, D), rotated.
        own_values: for each step 1..s, (R, Hkv, D).

    Returns:
        (R, Hkv * G * D), scaled by 1 / sqrt(D).
    """
    return _TTTAttention.apply(query, key, value, spans, *own_keys, *own_values)


class _TTTAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        spans: Sequence[AttentionSpan],
        *own: torch.Tensor,
    ) -> torch.Tensor:
        steps = len(own) // 2
        out = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:3])
        for span in spans:
            part, part_sum = _flash(
                _fold(query, span.rows), _lane(key, span.keys), _lane(value, span.keys),
                attn_mask=span.mask,
            )  # fmt: skip
            _unfold(part, out, span.rows)
            shape = (*query.shape[1:3], -1)
            log_sum[span.rows] = part_sum.reshape(shape).permute(2, 0, 1)
        scale = query.shape[-1] ** -0.5
        if steps:
            scores = [_dot(query, own_key) * scale for own_key in own[:steps]]
            merged = torch.logsumexp(torch.stack([log_sum, *scores]), 0)
            out.mul_((log_sum - merged).exp_().unsqueeze(-1))
            for score, own_value in zip(scores, own[steps:], strict=True):
                out.addcmul_((score - merged).exp_().unsqueeze(-1), own_value.unsqueeze(2))
            log_sum = merged
        ctx.save_for_backward(query, key, value, out, log_sum, *own)
        ctx.spans = spans
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, log_sum, *own = ctx.saved_tensors
        grad = grad.view_as(query)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for span in ctx.spans:
            # exp(score - merged log-sum) is the probability within the whole softmax, and
            # grad . out its correction term, so the ordinary backward serves the merged softmax.
            parts = _flash_backward(
                _fold(grad, span.rows), _fold(query, span.rows), _lane(key, span.keys),
                _lane(value, span.keys), _fold(out, span.rows), _fold_sums(log_sum, span.rows),
                0.0, False, attn_mask=span.mask,
            )  # fmt: skip
            _unfold(parts[0], grad_query, span.rows)
            grad_key[span.keys] = parts[1][0].transpose(0, 1)
            grad_value[span.keys] = parts[2][0].transpose(0, 1)
        steps = len(own) // 2
        scale = query.shape[-1] ** -0.5
        correction = torch.linalg.vecdot(grad, out) if steps else None
        grad_own_keys, grad_own_values = [], []
        for own_key, own_value in zip(own[:steps], own[steps:], strict=True):
            probability = (_dot(query, own_key) * scale).sub_(log_sum).exp_()
            assert correction is not None  # there are steps
            grad_score = (_dot(grad, own_value) - correction).mul_(probability).mul_(scale)
            grad_query.addcmul_(grad_score.unsqueeze(-1), own_key.unsqueeze(2))
            grad_own_keys.append((grad_score.unsqueeze(-1) * query).sum(2))
            grad_own_values.append((probability.unsqueeze(-1) * grad).sum(2))
        return grad_query, grad_key, grad_value, None, *grad_own_keys, *grad_own_values


def _dot(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(R, Hkv, G, D), (R, Hkv, D) -> (R, Hkv, G)."""
    return torch.linalg.vecdot(query, key.unsqueeze(2))


def _fold(rows: torch.Tensor, span: slice) -> torch.Tensor:
    """(R, Hkv, G, D) -> (1, Hkv, G * n, D): the heads that share a key become rows of one head."""
    return rows[span].permute(1, 2, 0, 3).flatten(1, 2)[None]


def _fold_sums(rows: torch.Tensor, span: slice) -> torch.Tensor:
    """(R, Hkv, G) -> (1, Hkv, G * n)."""
    return rows[span].permute(1, 2, 0).flatten(1, 2)[None]


def _unfold(folded: torch.Tensor, rows: torch.Tensor, span: slice) -> None:
    """Write (1, Hkv, G * n, D) to the rows ``span`` of (R, Hkv, G, D)."""
    heads, group, width = rows.shape[1:]
    rows[span] = folded.reshape(heads, group, -1, width).permute(2, 0, 1, 3)


def _lane(rows: torch.Tensor, span: slice) -> torch.Tensor:
    """(N, Hkv, D) -> (1, Hkv, L, D), a view."""
    return rows[span].transpose(0, 1)[None]
