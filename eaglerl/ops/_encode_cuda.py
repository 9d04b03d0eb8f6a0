"""The policy's decision on a GPU: one Triton launch, or CUDA C++ where Triton is missing.

The first decision on a device imports Triton. Nothing here waits for the device.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings

from torch import Tensor

from eaglerl.ops._decision_cuda import decide_cuda, step_cuda
from eaglerl.ops.action_cache import ActionCache, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_INSTALL = "install it: pip install triton"


@functools.cache
def has_triton() -> bool:
    """Return whether Triton can be imported; warn once if it cannot."""
    if importlib.util.find_spec("triton") is not None:
        return True
    warnings.warn(
        "Triton was not found: eaglerl decides on a GPU with its CUDA C++ kernels, which cannot "
        f"compute the draft's features. To compute them on the GPU, {_INSTALL}",
        stacklevel=2,
    )
    return False


def encode_cuda(
    weights: PolicyWeights,
    low: Tensor,
    mid: Tensor | None,
    high: Tensor | None,
    rows: Tensor | None,
    last: Tensor | None,
    cache: ActionCache | CacheView | None,
    slots: Tensor | None,
    temperature: float,
    seed: int,
    offset: int,
    return_features: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Run `fused_encode` on checked arguments of one device, in one launch.

    Reporting a row or slot out of range would mean waiting for the device. Instead, such a row
    reads as NaN and such a slot changes no record; both get the policy's ``fallback_action``.

    Args:
        weights: see `fused_encode`.
        low: see `fused_encode`.
        mid: see `fused_encode`.
        high: see `fused_encode`.
        rows: see `fused_encode`.
        last: see `fused_encode`.
        cache: see `fused_encode`.
        slots: see `fused_encode`.
        temperature: see `fused_encode`.
        seed: see `fused_encode`.
        offset: see `fused_encode`.
        return_features: see `fused_encode`.

    Returns:
        Features (N, h) or None, logits (S, horizon * A), actions (S,), parameters (S, 3 or 4).

    Raises:
        RuntimeError: Triton is missing, and the extension's CUDA kernels cannot replace it.
    """
    draw = temperature, seed, offset
    if not has_triton():
        if weights.fc_weight is not None:
            raise RuntimeError(
                "weights with fc_weight need Triton on a GPU, which was not found: use "
                f"weights.fold() if the features are not needed, or {_INSTALL}"
            )
        return None, *decide_cuda(weights, low, mid, high, rows, last, cache, slots, *draw)
    from eaglerl.kernels._settings import split_layers
    from eaglerl.kernels.fused_encode_kernel import prepare_fused_encode
    from eaglerl.kernels.policy_mlp_kernel import prepare_policy_mlp

    inputs = split_layers(low, mid, high, weights.joined_size is not None)
    if weights.fc_weight is None:
        launch, decisions = prepare_policy_mlp(weights, inputs, rows, last, cache, slots, draw)
    else:
        launch, decisions = prepare_fused_encode(
            weights, inputs, rows, last, cache, slots, draw, return_features=return_features
        )
    launch.run(low.device)
    return decisions.features, decisions.logits, decisions.action, decisions.params


def action_cache_step_cuda(
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
) -> tuple[Tensor, Tensor]:
    """Run `action_cache_step` on checked arguments of one device, in one launch.

    Args:
        logits: see `action_cache_step`.
        actions: see `action_cache_step`.
        features: see `action_cache_step`.
        state: (slots, 16) int32 records of the cache.
        reference: (slots, reference_size) float32, or None.
        ring: (slots, horizon, 5) int32, or None.
        slots: see `action_cache_step`.
        mode: the cache's mode, a value of ``eaglerl._C.cache_modes``.
        temperature: see `action_cache_step`.
        seed: see `action_cache_step`.
        offset: see `action_cache_step`.
        fallback_action: see `action_cache_step`.

    Returns:
        Actions (S,) and parameters (S, 3 or 4), int32.

    Raises:
        RuntimeError: neither Triton nor the extension's CUDA kernels are available.
    """
    draw = temperature, seed, offset
    if not has_triton():
        kept = (state, reference, ring, slots, mode)
        return step_cuda(logits, actions, features, *kept, *draw, fallback_action)
    from eaglerl.kernels.action_cache_step_kernel import prepare_action_cache_step

    cache = CacheView(mode, state, reference, ring)
    launch, action, params = prepare_action_cache_step(
        logits, actions, features, cache, slots, draw, fallback_action
    )
    launch.run(logits.device)
    return action, params
