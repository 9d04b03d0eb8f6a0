"""Checks of the tensors and settings of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_memory
from eaglerl.ops._policy_fields import Activation, MlpInput, PolicyFields
from eaglerl.ops.limits import LARGEST_POOL, LARGEST_TREE, MAX_ACTIONS, SMALLEST_ACTION

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CHOICES = {
    "activation": get_args(Activation),
    "mlp_input": get_args(MlpInput),
    "norm_chunks": (0, 1, 3),
}
_LARGEST_ACTION = LARGEST_TREE | {"lookup_tokens": C.selection_constants["most_lookup"]}


def read_actions(actions: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Return the actions' tree parameters as int32, without rounding or wrapping around.

    Raises:
        TypeError: they are not integers.
        ValueError: they are not an array, or one does not fit 32 bits.
    """
    try:
        given = torch.as_tensor(actions)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"actions must be rows of integers: {error}") from None
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"actions must be integers, got {given.dtype}")
    narrow = given.to(torch.int32)
    if not torch.equal(narrow.to(given.dtype), given):
        raise ValueError(f"actions must fit 32 bits, got {int(given.abs().max())}")
    return narrow


def check_policy_weights(weights: PolicyFields) -> None:
    """Check all fields.

    Raises:
        TypeError: a field has the wrong type or dtype.
        ValueError: shapes or devices do not fit, a value is not finite, or a setting is unknown.
    """
    check_policy_layout(weights)
    for name, tensor in weights.named_tensors().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, it holds infinite values or NaN")
    _check_bounds(weights.actions)


def check_policy_layout(weights: PolicyFields) -> None:
    """Check everything except the tensors' values, for which the host would wait on a device.

    Raises:
        TypeError: a field has the wrong type or dtype.
        ValueError: shapes or devices do not fit, or a setting is unknown.
    """
    _check_settings(weights)
    _check_tensors(weights)
    _check_matrices(weights)
    _check_actions(weights)
    _check_vectors(weights)


def _check_settings(weights: PolicyFields) -> None:
    for name, allowed in _CHOICES.items():
        value = getattr(weights, name)
        if value not in allowed or isinstance(value, bool):
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    for name in ("horizon", "fallback_action"):
        value = getattr(weights, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
    if not isinstance(weights.eps, int | float) or not 0 <= weights.eps < float("inf"):
        raise ValueError(f"eps must be a finite number, 0 or positive, got {weights.eps!r}")
    counts = len(weights.hidden_weights), len(weights.hidden_biases)
    if counts[0] < 1 or counts[0] != counts[1]:
        raise ValueError(
            "hidden_weights and hidden_biases must be equally many, at least one, got "
            f"{counts[0]} and {counts[1]}"
        )
    if weights.mlp_input == "taps" and weights.fc_weight is not None:
        raise ValueError('mlp_input must be "features" if fc_weight is given, got "taps"')


def _check_tensors(weights: PolicyFields) -> None:
    for name, tensor in weights.named_tensors().items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    dtype, device = weights.output_weight.dtype, weights.output_weight.device
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in weights.named_tensors().items():
        matrix = name in ("output_weight", "fc_weight") or name.startswith("hidden_weights")
        wanted = torch.int32 if name == "actions" else dtype if matrix else wide
        if tensor.dtype != wanted or (matrix and wanted not in _DTYPES):
            raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
        if tensor.ndim != (2 if matrix or name == "actions" else 1):
            raise ValueError(f"{name} has the wrong number of axes: {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")
        check_memory(name, tensor)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}")


def _check_matrices(weights: PolicyFields) -> None:
    width = weights.mlp_in_features
    fc_weight = weights.fc_weight
    if fc_weight is not None and (fc_weight.shape[0] != width or fc_weight.shape[1] == 0):
        raise ValueError(
            f"fc_weight must have {width} rows, which hidden_weights.0 reads, and columns, got "
            f"{tuple(fc_weight.shape)}"
        )
    for i, weight in enumerate((*weights.hidden_weights, weights.output_weight)):
        name = f"hidden_weights.{i}" if i < len(weights.hidden_weights) else "output_weight"
        if weight.shape[1] != width or 0 in weight.shape:
            raise ValueError(f"{name} must have {width} columns, got {tuple(weight.shape)}")
        width = weight.shape[0]


def check_actions_shape(actions: Tensor) -> None:
    """Check the shape of a table of actions, whose last column may be missing.

    Raises:
        ValueError: it has another number of rows or columns.
    """
    fewest, most = C.fewest_action_columns, len(C.action_columns)
    if not (1 <= actions.shape[0] <= MAX_ACTIONS and fewest <= actions.shape[1] <= most):
        raise ValueError(
            f"actions must be (1 to {MAX_ACTIONS}, {fewest} or {most}), got {tuple(actions.shape)}"
        )


def _check_actions(weights: PolicyFields) -> None:
    check_actions_shape(weights.actions)
    count = weights.num_actions
    rows = weights.output_weight.shape[0]
    if weights.horizon < 1 or rows != weights.horizon * count:
        raise ValueError(
            f"output_weight must have horizon * actions = {weights.horizon} * {count} rows, "
            f"got {rows}"
        )
    if not 0 <= weights.fallback_action < count:
        raise ValueError(
            f"fallback_action must be in 0..{count - 1}, got {weights.fallback_action}"
        )


def _check_bounds(actions: Tensor) -> None:
    columns = C.action_columns[: actions.shape[1]]
    lowest, highest = actions.amin(0).cpu().tolist(), actions.amax(0).cpu().tolist()
    for name, low, high in zip(columns, lowest, highest, strict=True):
        least, most = SMALLEST_ACTION[name], _LARGEST_ACTION[name]
        if low < least:
            raise ValueError(f"actions must hold {name} of at least {least}, got {low}")
        if high > most:
            raise ValueError(f"actions must hold {name} of at most {most}, got {high}")
    depth, top_k = actions[:, 1].long(), actions[:, 2].long()
    pool = int((top_k + depth * top_k**2).max())
    if pool > LARGEST_POOL:
        raise ValueError(
            f"actions must hold trees of at most {LARGEST_POOL:,} candidates, top_k + depth * "
            f"top_k^2, got {pool:,}"
        )


def _check_vectors(weights: PolicyFields) -> None:
    width = weights.joined_size
    if weights.norm_chunks and (width is None or width % weights.norm_chunks):
        raise ValueError(
            f"norm_chunks={weights.norm_chunks} must divide the features' columns, got {width}"
        )
    if width is not None and width % 3:
        raise ValueError(f"features must be three layers of one width, got {width} columns")
    if weights.norm_weight is not None and not weights.norm_chunks:
        raise ValueError("norm_weight needs norm_chunks 1 or 3, got 0")
    if weights.fc_bias is not None and weights.fc_weight is None:
        raise ValueError("fc_bias needs fc_weight")
    expected: dict[str, int | None] = {
        f"hidden_biases.{i}": len(weight) for i, weight in enumerate(weights.hidden_weights)
    }
    expected |= {"output_bias": len(weights.output_weight), "norm_weight": width}
    expected["fc_bias"] = weights.mlp_in_features
    for name, tensor in weights.named_tensors().items():
        if name in expected and tensor.shape != (expected[name],):
            raise ValueError(
                f"{name} must have shape ({expected[name]},), got {tuple(tensor.shape)}"
            )
