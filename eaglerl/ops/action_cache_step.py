"""One step of the action cache from logits that are there already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_memory
from eaglerl.ops._encode_checks import check_cache, check_cache_memory, check_draw
from eaglerl.ops._encode_library import library
from eaglerl.ops._policy_checks import MAX_ACTIONS
from eaglerl.ops.action_cache import ActionCache, CacheView

library.define(
    "action_cache_step(Tensor logits, Tensor bins, Tensor? features, Tensor(a!) state, "
    "Tensor(b!)? reference, Tensor(c!)? ring, Tensor? slots, int cache_mode, float temperature, "
    "int seed, int offset, int fallback_action) -> (Tensor action, Tensor params)"
)


def action_cache_step(
    logits: Tensor,
    bins: Tensor,
    cache: ActionCache,
    *,
    slots: Tensor | None = None,
    features: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    fallback_action: int = 0,
) -> tuple[Tensor, Tensor]:
    """Keep each sequence's action or take the one of its logits, for any kind of policy.

    Where the policy is a `PolicyWeights`, `fused_encode` and `policy_mlp` do the same and leave out
    the policy where the action is kept.

    Args:
        logits: (S, horizon * A) float32, contiguous.
        bins: (A, 3) int32 total_tokens, depth and top_k of every action, contiguous.
        cache: The cache; changed in place.
        slots: (S,) int64 distinct slots of the cache; 0..S - 1 by default.
        features: (S, cache.reference_size) float32, contiguous: what an adaptive cache compares.
        temperature: 0 takes the largest logit; above, actions are drawn.
        seed: Key of the counter-based generator, see `fused_encode`.
        offset: Its counter.
        fallback_action: The action where a logit is not finite.

    Returns:
        Actions (S,) int32 and their parameters (S, 3) int32.

    Raises:
        TypeError: A dtype is not allowed.
        ValueError: Something does not fit; the message names the argument, nothing has changed.
    """
    horizon = _check(logits, bins, features, fallback_action)
    check_draw(temperature, seed, offset)
    if isinstance(cache, ActionCache) and horizon != cache.horizon:
        raise ValueError(
            f"logits must have horizon * actions = {cache.horizon} * {len(bins)} columns, got "
            f"{tuple(logits.shape)}"
        )
    size = None if features is None else features.shape[1]
    check_cache(cache, slots, len(logits), horizon, size, logits.device)
    kept = (cache.state, cache.reference, cache.ring, slots, cache.mode)
    draw = (temperature, seed, offset, fallback_action)
    return torch.ops.eaglerl.action_cache_step(logits, bins, features, *kept, *draw)


def _check(logits: Tensor, bins: Tensor, features: Tensor | None, fallback: int) -> int:
    """Check all arguments but the cache's, and return the horizon."""
    shaped = {"logits": (logits, torch.float32), "bins": (bins, torch.int32)}
    if features is not None:
        shaped["features"] = (features, torch.float32)
    for name, (tensor, dtype) in shaped.items():
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a {dtype} tensor, got {kind}")
        check_memory(name, tensor)
        if tensor.ndim != 2 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be a contiguous matrix, got shape {tuple(tensor.shape)} and strides "
                f"{tensor.stride()}"
            )
        if tensor.device != logits.device:
            raise ValueError(f"{name} must be on {logits.device}, got {tensor.device}")
    actions = bins.shape[0]
    if bins.shape[1] != 3 or not 1 <= actions <= MAX_ACTIONS:
        raise ValueError(f"bins must be (1 to {MAX_ACTIONS} actions, 3), got {tuple(bins.shape)}")
    width = logits.shape[1]
    horizon = width // actions
    if width % actions != 0 or horizon < 1:
        raise ValueError(
            f"logits must have horizon * actions columns, a multiple of {actions}, got "
            f"{tuple(logits.shape)}"
        )
    if not 0 <= fallback < actions:
        raise ValueError(f"fallback_action must be in 0..{actions - 1}, got {fallback}")
    if features is not None and features.shape[0] != logits.shape[0]:
        raise ValueError(f"features must have {len(logits)} rows, got {tuple(features.shape)}")
    return horizon


def _check_operator(
    logits: Tensor,
    bins: Tensor,
    features: Tensor | None,
    state: Tensor,
    reference: Tensor | None,
    ring: Tensor | None,
    slots: Tensor | None,
    mode: int,
    temperature: float,
    seed: int,
    offset: int,
    fallback_action: int,
) -> int:
    """Check the operator's arguments, which may come from anywhere, and return the horizon."""
    horizon = _check(logits, bins, features, fallback_action)
    check_draw(temperature, seed, offset)
    size = None if features is None else features.shape[1]
    cache = CacheView(mode, state, reference, ring)
    check_cache_memory(cache, slots, logits.shape[0], horizon, size, logits.device)
    return horizon


def _outputs(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    sequences = logits.shape[0]
    return bins.new_empty((sequences,)), bins.new_empty((sequences, 3))


def _step_cpu(*arguments: Any) -> tuple[Tensor, Tensor]:
    horizon = _check_operator(*arguments)
    logits, bins, features, state, reference, ring, slots, *settings = arguments
    action, params = _outputs(logits, bins)
    tensors = (logits, bins, features, state, reference, ring, slots, action, params)
    reference_size = reference.shape[1] if settings[0] == C.cache_modes["adaptive"] else 0
    C.action_cache_step(
        *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
        *(len(logits), len(bins), horizon, state.shape[0], reference_size),
        *settings,
    )
    return action, params


def _step_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    from eaglerl.ops._encode_cuda import action_cache_step_cuda

    _check_operator(*arguments)
    return action_cache_step_cuda(*arguments)


library.impl("action_cache_step", _step_cpu, "CPU")
library.impl("action_cache_step", _step_cuda, "CUDA")


@torch.library.register_fake("eaglerl::action_cache_step", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    _check_operator(*arguments)
    logits, bins = arguments[:2]
    return _outputs(logits, bins)
