"""The policy's decision in plain torch: the reference for every other implementation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from eaglerl.ops._philox import philox_uniform
from eaglerl.ops._policy_fields import Activation, PolicyFields


class MlpWeights(Protocol):
    """The part of a policy that `mlp_layers` reads."""

    @property
    def hidden_weights(self) -> tuple[Tensor, ...]: ...
    @property
    def hidden_biases(self) -> tuple[Tensor, ...]: ...
    @property
    def output_weight(self) -> Tensor: ...
    @property
    def output_bias(self) -> Tensor: ...
    @property
    def activation(self) -> Activation: ...


def compute_dtype(weights: PolicyFields) -> torch.dtype:
    """Return float64 for float64 weights, else float32."""
    return torch.float64 if weights.dtype == torch.float64 else torch.float32


def join_features(low: Tensor, mid: Tensor | None, high: Tensor | None) -> Tensor:
    """Concatenate low, mid and high to (B, 3k); return reduced features (B, h) unchanged."""
    if mid is None or high is None:
        return low
    return torch.cat((low, mid, high), dim=-1)


def chunk_scales(x: Tensor, chunks: int, eps: float) -> Tensor:
    """Return the (N, chunks) inverse root mean squares of the chunks of (N, width) rows."""
    return x.unflatten(-1, (chunks, -1)).square().mean(-1).add(eps).rsqrt()


def scale_chunks(x: Tensor, scales: Tensor) -> Tensor:
    """Multiply each chunk of (N, width) rows by its scale (N, chunks)."""
    chunks = scales.shape[-1]
    return (x.unflatten(-1, (chunks, -1)) * scales[..., None]).flatten(-2)


def normalise(x: Tensor, weights: PolicyFields) -> Tensor:
    """Apply the norms in front of the FC or of a folded first layer."""
    if weights.norm_chunks:
        x = scale_chunks(x, chunk_scales(x, weights.norm_chunks, weights.eps))
    if weights.norm_weight is not None:
        x = x * weights.norm_weight.to(x.dtype)
    return x


def reduce_features(x: Tensor, weights: PolicyFields) -> Tensor:
    """Return reduced features g (N, h) of features (N, 3k)."""
    assert weights.fc_weight is not None
    g = normalise(x, weights) @ weights.fc_weight.to(x.dtype).T
    return g if weights.fc_bias is None else g + weights.fc_bias.to(x.dtype)


def mlp_layers(x: Tensor, weights: MlpWeights) -> list[Tensor]:
    """Return the inputs of every layer of the MLP, followed by the logits (S, horizon * A)."""
    activate = {"tanh": torch.tanh, "relu": torch.relu, "silu": torch.nn.functional.silu}
    activation = activate[weights.activation]
    values = [x]
    for weight, bias in zip(weights.hidden_weights, weights.hidden_biases, strict=True):
        values.append(activation(values[-1] @ weight.to(x.dtype).T + bias.to(x.dtype)))
    output = values[-1] @ weights.output_weight.to(x.dtype).T
    return [*values, output + weights.output_bias.to(x.dtype)]


def choose_actions(
    logits: Tensor,
    num_actions: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    fallback_action: int = 0,
) -> Tensor:
    """Choose actions (S, horizon) int32 from logits (S, horizon * A).

    At a temperature above 0, the cumulative distribution is inverted at one Philox number for each
    sequence and window. A row with a logit that is not finite falls back in all windows.
    """
    rows, width = logits.shape
    horizon = width // num_actions
    windows = logits.unflatten(-1, (horizon, num_actions))
    if temperature == 0:
        # Ties go to the lowest index; torch's argmax does not say which it returns.
        best = windows == windows.amax(-1, keepdim=True)
        actions = best.to(torch.int8).argmax(-1)
    else:
        uniform = philox_uniform(seed, offset, rows, horizon).to(logits)
        largest = windows.amax(-1, keepdim=True)
        cumulative = ((windows - largest) / temperature).exp().cumsum(-1)
        over = cumulative > (uniform * cumulative[..., -1])[..., None]
        over[..., -1] = True
        actions = over.to(torch.int8).argmax(-1)
    finite = torch.isfinite(logits).all(-1, keepdim=True)
    return torch.where(finite, actions, fallback_action).to(torch.int32)
