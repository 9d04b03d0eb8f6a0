"""Gradients of `fused_encode`. Activations are recomputed from the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eaglerl.ops._encode_reference import chunk_scales, join_features, mlp_layers, scale_chunks
from eaglerl.ops._policy_fields import Activation


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs of the operator ``eaglerl::fused_encode``."""
    features_and_rows, (matrices, vectors, _), rest = inputs[:5], inputs[5:8], inputs[8:]
    fc_and_norm, rest = rest[:3], rest[3:]
    ctx.save_for_backward(*features_and_rows, *fc_and_norm, *matrices, *vectors)
    ctx.norm_chunks, ctx.eps, ctx.activation, ctx.mlp_input = rest[:4]
    ctx.mark_non_differentiable(*output[2:])


class _Layers:
    """The MLP's tensors under the names that `mlp_layers` reads."""

    def __init__(
        self, matrices: tuple[Tensor, ...], vectors: tuple[Tensor, ...], name: Activation
    ) -> None:
        self.hidden_weights, self.output_weight = matrices[:-1], matrices[-1]
        self.hidden_biases, self.output_bias = vectors[:-1], vectors[-1]
        self.activation = name


def encode_backward(
    ctx: Any, grad_features: Tensor | None, grad_logits: Tensor | None, *_: Tensor | None
) -> tuple[Any, ...]:
    """Return the gradients of all inputs of the operator; None for those without one."""
    low, mid, high, rows, last, fc_weight, fc_bias, norm_weight, *layers = ctx.saved_tensors
    matrices, vectors = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    joined = join_features(low, mid, high)
    x = (joined if rows is None else joined[rows]).float()
    scales = chunk_scales(x, ctx.norm_chunks, ctx.eps) if ctx.norm_chunks else None
    scaled = x if scales is None else scale_chunks(x, scales)
    normed = scaled if norm_weight is None else scaled * norm_weight
    read = normed
    if fc_weight is not None:
        read = normed @ fc_weight.float().T
        read = read if fc_bias is None else read + fc_bias
    mlp = _Layers(tuple(matrices), tuple(vectors), ctx.activation)
    values = mlp_layers(read if last is None else read[last], mlp)
    grad, matrix_grads, vector_grads = _mlp_backward(values, mlp, grad_logits)
    if last is not None:
        grad = torch.zeros_like(read).index_add(0, last, grad)
    fc_grad = fc_bias_grad = None
    if fc_weight is not None:
        if grad_features is not None and grad_features.numel():
            grad = grad + grad_features.float()
        fc_grad = (grad.T @ normed).to(fc_weight.dtype)
        fc_bias_grad = None if fc_bias is None else grad.sum(0)
        grad = grad @ fc_weight.float()
    norm_grad = None if norm_weight is None else (grad * scaled).sum(0)
    grad = grad if norm_weight is None else grad * norm_weight
    if scales is not None:
        grad = _scale_backward(grad, scaled, scales)
    if rows is not None:
        grad = torch.zeros_like(joined, dtype=torch.float32).index_add(0, rows, grad)
    grad = grad.to(low.dtype)
    parts = (grad, None, None) if mid is None else grad.chunk(3, dim=-1)
    tail = (None,) * 10  # settings of the policy and of the draw
    weights = (matrix_grads, vector_grads, None, fc_grad, fc_bias_grad, norm_grad)
    return (*parts, None, None, *weights, *tail)


def _mlp_backward(
    values: list[Tensor], mlp: _Layers, grad_logits: Tensor | None
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the gradients of the MLP's input, of its matrices and of its vectors."""
    grad = torch.zeros_like(values[-1]) if grad_logits is None else grad_logits.float()
    matrices = [*mlp.hidden_weights, mlp.output_weight]
    biases = [*mlp.hidden_biases, mlp.output_bias]
    matrix_grads: list[Tensor] = []
    vector_grads: list[Tensor] = []
    for index in reversed(range(len(matrices))):
        weight, value = matrices[index], values[index]
        matrix_grads.insert(0, (grad.T @ value).to(weight.dtype))
        vector_grads.insert(0, grad.sum(0))
        grad = grad @ weight.float()
        if index:
            before = values[index - 1] @ matrices[index - 1].float().T + biases[index - 1]
            grad = grad * _slope(before, value, mlp.activation)
    return grad, matrix_grads, vector_grads


def _slope(before: Tensor, after: Tensor, activation: str) -> Tensor:
    """Return the derivative of an activation, from its argument and its value."""
    if activation == "tanh":
        return 1 - after.square()
    if activation == "relu":
        return (before > 0).to(before.dtype)
    gate = torch.sigmoid(before)
    return gate + after * (1 - gate)


def _scale_backward(grad: Tensor, scaled: Tensor, scales: Tensor) -> Tensor:
    """Return the gradient of x where ``scaled`` is x divided by its chunks' root mean squares."""
    chunks = (scales.shape[-1], -1)
    products = (grad * scaled).unflatten(-1, chunks).mean(-1)
    return scale_chunks(grad - scale_chunks(scaled, products), scales)
