"""Registration of the policy's operators with torch: schemas, shapes, gradients, devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eaglerl.ops._encode_backward import encode_backward, save_for_backward
from eaglerl.ops._encode_checks import (
    INPUT_DTYPES,
    check_cache_memory,
    check_draw,
    check_features,
    check_index,
)
from eaglerl.ops._policy_checks import check_policy_layout
from eaglerl.ops.action_cache import SKETCH_SIZE, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_INPUTS = "Tensor low, Tensor? mid, Tensor? high, Tensor? rows, Tensor? last"
_WEIGHTS = (
    "Tensor[] matrices, Tensor[] vectors, Tensor actions, Tensor? fc_weight, Tensor? fc_bias, "
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


def flatten(weights: PolicyWeights, *, reads_reduced: bool = False) -> tuple[Any, ...]:
    """Return the operators' arguments for a policy.

    Args:
        weights: the policy.
        reads_reduced: whether the input is reduced already; then the FC is skipped.
    """
    skips_fc = reads_reduced and weights.fc_weight is not None
    return (
        [*weights.hidden_weights, weights.output_weight],
        [*weights.hidden_biases, weights.output_bias],
        weights.actions,
        None if skips_fc else weights.fc_weight,
        None if skips_fc else weights.fc_bias,
        None if skips_fc else weights.norm_weight,
        0 if skips_fc else weights.norm_chunks,
        weights.eps,
        weights.activation,
        weights.mlp_input,
        weights.horizon,
        weights.fallback_action,
    )


def unflatten(arguments: Sequence[Any]) -> PolicyWeights:
    """Build a policy from the operators' arguments.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: the arguments do not make a policy.
    """
    matrices, vectors, actions, fc_weight, fc_bias, norm_weight, chunks, eps, *rest = arguments
    activation, mlp_input, horizon, fallback_action = rest
    if len(matrices) < 2 or len(matrices) != len(vectors):
        raise ValueError(
            "matrices and vectors must be equally many, at least two, got "
            f"{len(matrices)} and {len(vectors)}"
        )
    weights = PolicyWeights.unchecked(
        hidden_weights=tuple(matrices[:-1]),
        hidden_biases=tuple(vectors[:-1]),
        output_weight=matrices[-1],
        output_bias=vectors[-1],
        actions=actions,
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
    check_policy_layout(weights)
    return weights


def _check(
    arguments: Sequence[Any], cache: CacheView | None, slots: Tensor | None
) -> PolicyWeights:
    """Check an operator's arguments, which may come from anywhere, and return the policy.

    Native code checks the values of index tensors.
    """
    (low, mid, high, rows, last), rest = arguments[:5], arguments[5:]
    weights = unflatten(rest[:_WEIGHT_COUNT])
    temperature, seed, offset, return_features = rest[_WEIGHT_COUNT:]
    if weights.dtype not in INPUT_DTYPES:
        raise TypeError(f"matrices must be float32, bfloat16 or float16, got {weights.dtype}")
    check_features(low, mid, high, weights)
    read = weights.joined_size or weights.feature_size
    if mid is None and low.shape[1] != read:
        raise ValueError(f"low must have {read} columns, got shape {tuple(low.shape)}")
    check_draw(temperature, seed, offset)
    check_index("rows", rows, low.device)
    check_index("last", last, low.device)
    if return_features and weights.fc_weight is None:
        raise ValueError("return_features needs fc_weight")
    if cache is not None:
        count = low.shape[0] if rows is None else rows.shape[0]
        sequences = count if last is None else last.shape[0]
        reads_layers = weights.joined_size is not None and not return_features
        compared = SKETCH_SIZE if reads_layers else weights.feature_size
        check_cache_memory(cache, slots, sequences, weights.horizon, compared, low.device)
    return weights


def _output_shapes(
    arguments: Sequence[Any], cache: CacheView | None, slots: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(arguments, cache, slots)
    low, _, _, rows, last, *rest = arguments
    matrices, actions, fc_weight = rest[0], rest[2], rest[3]
    return_features = rest[_WEIGHT_COUNT + 3]
    count = low.shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    features = (count, fc_weight.shape[0]) if return_features else (0, 0)
    return (
        low.new_empty(features),
        low.new_empty((sequences, matrices[-1].shape[0]), dtype=torch.float32),
        actions.new_empty((sequences,)),
        actions.new_empty((sequences, actions.shape[1])),
    )


def _run(
    arguments: Sequence[Any], cache: CacheView | None, slots: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from eaglerl.ops._encode_cpu import encode_cpu

    inputs, rest = arguments[:5], arguments[5:]
    weights, draw = _check(arguments, cache, slots), rest[_WEIGHT_COUNT:]
    low, mid, high, rows, last = inputs
    encode = encode_cpu
    if low.device.type != "cpu":
        from eaglerl.ops._encode_cuda import encode_cuda as encode
    features, logits, action, params = encode(
        weights, low, mid, high, rows, last, cache, slots, *draw
    )
    if features is None:
        features = low.new_empty((0, 0))
    return features, logits, action, params


def _fused_encode(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _run(arguments, None, None)


def _fused_encode_cached(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *policy, state, reference, ring, slots, mode = arguments
    return _run(policy, CacheView(mode, state, reference, ring), slots)


for _device in ("CPU", "CUDA"):
    library.impl("fused_encode", _fused_encode, _device)
    library.impl("fused_encode_cached", _fused_encode_cached, _device)


@torch.library.register_fake("eaglerl::fused_encode", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _output_shapes(arguments, None, None)


@torch.library.register_fake("eaglerl::fused_encode_cached", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *policy, state, reference, ring, slots, mode = arguments
    return _output_shapes(policy, CacheView(mode, state, reference, ring), slots)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    return encode_backward(ctx, *grads)


torch.library.register_autograd(
    "eaglerl::fused_encode", _backward, setup_context=save_for_backward, lib=library
)
