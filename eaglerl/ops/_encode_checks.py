"""Checks of the arguments of the policy's ops, made before anything changes."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_memory
from eaglerl.ops.action_cache import ActionCache, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_ROWS = 1024


def check_weights_type(weights: PolicyWeights) -> None:
    """Check that weights are `PolicyWeights` whose matrices still have two axes.

    Raises:
        TypeError: they are of another type.
        ValueError: a matrix has another number of axes: it was changed in place.
    """
    if not isinstance(weights, PolicyWeights):
        raise TypeError(f"weights must be PolicyWeights, got {type(weights).__name__}")
    matrices = (
        weights.hidden_weights[0],
        weights.output_weight,
        weights.fc_weight,
        weights.actions,
    )
    for matrix in matrices:
        if matrix is not None and matrix.ndim != 2:
            raise ValueError(f"weights must hold matrices, got one of shape {tuple(matrix.shape)}")


def check_features(
    low: Tensor, mid: Tensor | None, high: Tensor | None, weights: PolicyWeights
) -> None:
    """Check that features fit the weights.

    Raises:
        TypeError: one is not a tensor, or its dtype is not allowed.
        ValueError: widths, devices or strides do not fit.
    """
    check_weights_type(weights)
    if (mid is None) != (high is None):
        raise ValueError("mid and high must be given together, or neither")
    parts = {"low": low}
    if mid is not None and high is not None:
        parts |= {"mid": mid, "high": high}
    for name, part in parts.items():
        _check_matrix(name, part, weights.device)
    joined, reduced = weights.joined_size, weights.feature_size
    widths = (joined, reduced) if mid is None else (None if joined is None else joined // 3,)
    allowed = [width for width in widths if width is not None]
    for name, part in parts.items():
        if part.shape[1] not in allowed:
            kinds = " or ".join(str(width) for width in allowed) or "no (a policy of features)"
            raise ValueError(f"{name} must have {kinds} columns, got shape {tuple(part.shape)}")
        if part.shape[0] != low.shape[0] or part.dtype != low.dtype:
            raise ValueError(
                f"{name} must have the rows and dtype of low, {len(low)} of {low.dtype}, got "
                f"{tuple(part.shape)} of {part.dtype}"
            )


def _check_matrix(name: str, tensor: Tensor, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in INPUT_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have 2 axes, got shape {tuple(tensor.shape)}")
    check_memory(name, tensor)
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, as the weights are, got {tensor.device}")
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name} must have contiguous rows, its strides are {tensor.stride()}")
    if tensor.shape[0] > MAX_ROWS:
        raise ValueError(f"{name} must have at most {MAX_ROWS} rows, got {tensor.shape[0]}")


def check_index(name: str, index: Tensor | None, device: torch.device) -> None:
    """Check an index vector, except for its values.

    Raises:
        TypeError: it is not int64.
        ValueError: its shape or device does not fit.
    """
    if index is None:
        return
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {kind}")
    if index.ndim != 1 or not index.is_contiguous():
        raise ValueError(f"{name} must be a contiguous vector, got shape {tuple(index.shape)}")
    if index.device != device:
        raise ValueError(f"{name} must be on {device}, got {index.device}")
    if not torch.compiler.is_compiling() and not C.storage_holds(index):
        check_memory(name, index)
    if index.shape[0] > MAX_ROWS:
        raise ValueError(f"{name} must hold at most {MAX_ROWS} rows, got {index.shape[0]}")


def check_draw(temperature: float, seed: int, offset: int) -> None:
    """Check the arguments of a draw.

    Raises:
        ValueError: a value is out of its range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or positive, got {temperature!r}")
    for name, value in (("seed", seed), ("offset", offset)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise ValueError(f"{name} must be an int in 0..2**63 - 1, got {value!r}")


def _check_kept(
    name: str,
    tensor: Tensor | None,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} of the cache must be a {dtype} tensor, got {kind}")
    check_memory(name, tensor)
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} of the cache must be contiguous, of shape {shape}, got {tuple(tensor.shape)}"
        )
    if tensor.device != device:
        raise ValueError(f"{name} of the cache must be on {device}, got {tensor.device}")


def check_cache_memory(
    cache: CacheView,
    slots: Tensor | None,
    sequences: int,
    horizon: int,
    compared: int | None,
    device: torch.device,
) -> None:
    """Check the tensors of a cache, which an operator takes one by one.

    Args:
        cache: the cache.
        slots: (S,) int64 slot of every sequence, or None for 0..S - 1.
        sequences: S.
        horizon: decisions that the policy makes at once.
        compared: width of the features that the call can compare; None without features.
        device: device of the other arguments.

    Raises:
        TypeError: a tensor is missing or of another dtype.
        ValueError: something does not fit.
    """
    if cache.mode not in C.cache_modes.values():
        raise ValueError(f"cache_mode must be one of {C.cache_modes}, got {cache.mode}")
    count = cache.state.shape[0] if isinstance(cache.state, Tensor) and cache.state.ndim else 0
    _check_kept("state", cache.state, torch.int32, (count, C.cache_record_words), device)
    if cache.mode == C.cache_modes["adaptive"]:
        if compared is None:
            raise ValueError("features must be given for an adaptive cache")
        _check_kept("reference", cache.reference, torch.float32, (count, compared), device)
    if cache.mode == C.cache_modes["scheduled"]:
        entries = (count, horizon, C.cache_ring_words)
        _check_kept("ring", cache.ring, torch.int32, entries, device)
    elif horizon != 1:
        raise ValueError(f'a policy of horizon {horizon} needs a cache of mode "scheduled"')
    check_index("slots", slots, device)
    if slots is None and sequences > count:
        raise ValueError(f"cache must have a slot for each of {sequences} rows, has {count}")
    if slots is not None and slots.shape[0] != sequences:
        raise ValueError(f"slots must name {sequences} slots, got {slots.shape[0]}")


def check_cache(
    cache: ActionCache,
    slots: Tensor | None,
    sequences: int,
    weights_horizon: int,
    reference_size: int | None,
    device: torch.device,
) -> None:
    """Check that a cache fits the policy and the sequences.

    Args:
        cache: the cache.
        slots: (S,) int64 slot of every sequence, or None for 0..S - 1.
        sequences: S.
        weights_horizon: decisions that the policy makes at once.
        reference_size: width of the features that the call can compare; None without features.
        device: device of the other arguments.

    Raises:
        TypeError: `cache` is not an `ActionCache`, or `slots` have another dtype.
        ValueError: something does not fit.
    """
    if not isinstance(cache, ActionCache):
        raise TypeError(f"cache must be an ActionCache, got {type(cache).__name__}")
    if cache.device != device:
        raise ValueError(f"cache must be on {device}, got {cache.device}")
    if cache.horizon != weights_horizon:
        raise ValueError(
            f"cache must have horizon {weights_horizon}, as the policy has, got {cache.horizon}"
        )
    if cache.mode_name == "adaptive" and cache.reference_size != reference_size:
        raise ValueError(
            f"an adaptive cache must have reference_size {reference_size} here (the width of the "
            f"features that are compared), got {cache.reference_size}"
        )
    view = CacheView(cache.mode, cache.state, cache.reference, cache.ring)
    check_cache_memory(view, slots, sequences, weights_horizon, reference_size, device)
