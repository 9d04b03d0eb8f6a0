"""Registration of the policy's operators with torch: schemas, shapes, gradients, devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eaglerl.ops._encode_backward import encode_backward, save_for_backward
from eaglerl.ops.action_cache import CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_INPUTS = "Tensor low, Tensor? mid, Tensor? high, Tensor? rows, Tensor? last"
_WEIGHTS = (
    "Tensor[] matrices, Tensor[] vectors, Tensor bins, Tensor? fc_weight, Tensor? fc_bias, "
    "Tensor? norm_weight, int norm_chunks, float eps, str activation, str mlp_input, int horizon, "
    "int fallback_action"
)
_DRAW = "float temperature, int seed, int offset, bool return_features"
_CACHE = "Tensor(a!) state, Tensor(b!)? reference, Tensor(c!)? ring, Tensor? slots, int cache_mode"
_OUTPUTS = "(Tensor features, Tensor logits, Tensor action, Tensor params)"

library = torch.library.Library("eaglerl", "DEF")
library.define(f"fused_encode({_INPUTS}, {_WEIGHTS}, {_DRAW}) -> {_OUTPUTS}")
library.define(f"fused_encode_cached({_INPUTS}, {_WEIGHTS}, {_DRAW}, {_CACHE}) -> {_OUTPUTS}")

_WEIGHT_COUNT = 12


def flatten(weights: PolicyWeights, *, reads_features: bool = False) -> tuple[Any, ...]:
    """The operators' arguments for a policy.

    Args:
        weights: The policy.
        reads_features: Whether the input is reduced already, so that the FC is left out.
    """
    leaves_out = reads_features and weights.fc_weight is not None
    return (
        [*weights.hidden_weights, weights.output_weight],
        [*weights.hidden_biases, weights.output_bias],
        weights.bins,
        None if leaves_out else weights.fc_weight,
        None if leaves_out else weights.fc_bias,
        None if leaves_out else weights.norm_weight,
        0 if leaves_out else weights.norm_chunks,
        weights.eps,
        weights.activation,
        weights.mlp_input,
        weights.horizon,
        weights.fallback_action,
    )


def unflatten(arguments: Sequence[Any]) -> PolicyWeights:
    """The policy of the operators' arguments, which was checked when it was made."""
    matrices, vectors, bins, fc_weight, fc_bias, norm_weight, chunks, eps, *rest = arguments
    activation, mlp_input, horizon, fallback_action = rest
    return PolicyWeights.unchecked(
        hidden_weights=tuple(matrices[:-1]),
        hidden_biases=tuple(vectors[:-1]),
        output_weight=matrices[-1],
        output_bias=vectors[-1],
        bins=bins,
        fc_weight=fc_weight,
        fc_bias=fc_bias,
        norm_weight=norm_weight,
        norm_chunks=chunks,
        eps=eps,
        activation=activation,
        mlp_input=mlp_input,
        horizon=horizon,
        fallback_action=fallback_action,
    )


def _output_shapes(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low, _, _, rows, last, *rest = arguments
    matrices, bins, fc_weight = rest[0], rest[2], rest[3]
    return_features = rest[_WEIGHT_COUNT + 3]
    count = low.shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    features = (count, fc_weight.shape[0]) if return_features else (0, 0)
    return (
        low.new_empty(features),
        low.new_empty((sequences, matrices[-1].shape[0]), dtype=torch.float32),
        bins.new_empty((sequences,)),
        bins.new_empty((sequences, 3)),
    )


def _run(arguments: Sequence[Any], cache: CacheView | None, slots: Tensor | None) -> tuple:
    from eaglerl.ops._encode_cpu import encode_cpu

    inputs, rest = arguments[:5], arguments[5:]
    weights, draw = unflatten(rest[:_WEIGHT_COUNT]), rest[_WEIGHT_COUNT:]
    if inputs[0].device.type == "cpu":
        encode = encode_cpu
    else:
        from eaglerl.ops._encode_cuda import encode_cuda as encode
    features, logits, action, params = encode(weights, *inputs, cache, slots, *draw)
    if features is None:
        features = inputs[0].new_empty((0, 0))
    return features, logits, action, params


def _fused_encode(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run(arguments, None, None)


def _fused_encode_cached(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, state, reference, ring, slots, mode = arguments
    return _run(arguments, CacheView(mode, state, reference, ring), slots)


for _device in ("CPU", "CUDA"):
    library.impl("fused_encode", _fused_encode, _device)
    library.impl("fused_encode_cached", _fused_encode_cached, _device)


@torch.library.register_fake("eaglerl::fused_encode", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _output_shapes(arguments)


@torch.library.register_fake("eaglerl::fused_encode_cached", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _output_shapes(arguments[:-5])


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return encode_backward(ctx, *grads)


torch.library.register_autograd(
    "eaglerl::fused_encode", _backward, setup_context=save_for_backward, lib=library
)
