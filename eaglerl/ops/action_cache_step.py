"""One step of the action cache with given logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl._renamed import renamed_arguments
from eaglerl.ops._check import check_memory
from eaglerl.ops._encode_checks import check_cache, check_cache_memory, check_draw
from eaglerl.ops._encode_library import library
from eaglerl.ops._policy_checks import check_actions_shape
from eaglerl.ops.action_cache import ActionCache, CacheView

library.define(
    "action_cache_step(Tensor logits, Tensor actions, Tensor? features, Tensor(a!) state, "
    "Tensor(b!)? reference, Tensor(c!)? ring, Tensor? slots, int cache_mode, float temperature, "
    "int seed, int offset, int fallback_action) -> (Tensor action, Tensor params)"
)


@renamed_arguments(bins="actions")
def action_cache_step(
    logits: Tensor,
    actions: Tensor,
    cache: ActionCache,
    *,
    slots: Tensor | None = None,
    features: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    fallback_action: int = 0,
) -> tuple[Tensor, Tensor]:
    """Keep each sequence's action, or choose a new one from its logits, for any kind of policy.

    For a `PolicyWeights`, `fused_encode` and `policy_mlp` do the same and skip the policy where the
    action is kept.

    Args:
        logits: (S, horizon * A) float32, contiguous.
        actions: (A, 3) int32 total_tokens, depth and top_k of every action, or (A, 4) with
            lookup_tokens; contiguous.
        cache: the cache; changed in place.
        slots: (S,) int64 distinct slots of the cache; 0..S - 1 by default.
        features: (S, cache.reference_size) float32, contiguous: what an adaptive cache compares.
        temperature: 0 takes the largest logit; above 0, actions are drawn.
        seed: key of the counter-based generator, see `fused_encode`.
        offset: its counter.
        fallback_action: the action where a logit is not finite.

    Returns:
        Actions (S,) int32 and their parameters, (S, 3) or (S, 4) int32.

    Raises:
        TypeError: a dtype is not allowed.
        ValueError: something does not fit. The message names the argument; nothing has changed.
    """
    horizon = _check(logits, actions, features, fallback_action)
    check_draw(temperature, seed, offset)
    if isinstance(cache, ActionCache) and horizon != cache.horizon:
        raise ValueError(
            f"logits must have horizon * actions = {cache.horizon} * {len(actions)} columns, got "
            f"{tuple(logits.shape)}"
        )
    size = None if features is None else features.shape[1]
    check_cache(cache, slots, len(logits), horizon, size, logits.device)
    kept = (cache.state, cache.reference, cache.ring, slots, cache.mode)
    draw = (temperature, seed, offset, fallback_action)
    return torch.ops.eaglerl.action_cache_step(logits, actions, features, *kept, *draw)


def _check(logits: Tensor, actions: Tensor, features: Tensor | None, fallback: int) -> int:
    """Check all arguments except the cache's, and return the horizon."""
    shaped = {"logits": (logits, torch.float32), "actions": (actions, torch.int32)}
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
    check_actions_shape(actions)
    count = actions.shape[0]
    width = logits.shape[1]
    horizon = width // count
    if width % count != 0 or horizon < 1:
        raise ValueError(
            f"logits must have horizon * actions columns, a multiple of {count}, got "
            f"{tuple(logits.shape)}"
        )
    if not 0 <= fallback < count:
        raise ValueError(f"fallback_action must be in 0..{count - 1}, got {fallback}")
    if features is not None and features.shape[0] != logits.shape[0]:
        raise ValueError(f"features must have {len(logits)} rows, got {tuple(features.shape)}")
    return horizon


def _check_operator(
    logits: Tensor,
    actions: Tensor,
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
    horizon = _check(logits, actions, features, fallback_action)
    check_draw(temperature, seed, offset)
    size = None if features is None else features.shape[1]
    cache = CacheView(mode, state, reference, ring)
    check_cache_memory(cache, slots, logits.shape[0], horizon, size, logits.device)
    return horizon


def _outputs(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    sequences = logits.shape[0]
    return actions.new_empty((sequences,)), actions.new_empty((sequences, actions.shape[1]))


def _step_cpu(
    logits: Tensor,
    actions: Tensor,
    features: Tensor | None,
    state: Tensor,
    reference: Tensor | None,
    ring: Tensor | None,
    slots: Tensor | None,
    mode: int,
    *draw: Any,
) -> tuple[Tensor, Tensor]:
    kept = (state, reference, ring, slots, mode)
    horizon = _check_operator(logits, actions, features, *kept, *draw)
    temperature, seed, offset, fallback_action = draw
    action, params = _outputs(logits, actions)
    adaptive = mode == C.cache_modes["adaptive"]
    C.action_cache_step(
        logits.data_ptr(),
        actions.data_ptr(),
        _address(features),
        state.data_ptr(),
        _address(reference),
        _address(ring),
        _address(slots),
        action.data_ptr(),
        params.data_ptr(),
        len(logits),
        len(actions),
        actions.shape[1],
        horizon,
        state.shape[0],
        reference.shape[1] if adaptive and reference is not None else 0,
        mode,
        temperature,
        seed,
        offset,
        fallback_action,
    )
    return action, params


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _step_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    from eaglerl.ops._encode_cuda import action_cache_step_cuda

    _check_operator(*arguments)
    return action_cache_step_cuda(*arguments)


library.impl("action_cache_step", _step_cpu, "CPU")
library.impl("action_cache_step", _step_cuda, "CUDA")


@torch.library.register_fake("eaglerl::action_cache_step", lib=library)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    _check_operator(*arguments)
    logits, actions = arguments[:2]
    return _outputs(logits, actions)
