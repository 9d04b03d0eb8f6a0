"""The policy's decision on the CPU: one call of native code for all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops.action_cache import ActionCache, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_TYPES = {
    torch.float32: C.element_types["float32"],
    torch.bfloat16: C.element_types["bfloat16"],
    torch.float16: C.element_types["float16"],
}
ACTIVATIONS: dict[str, int] = dict(C.activations)


def element_type(dtype: torch.dtype) -> int:
    """The native code's number of a dtype.

    Raises:
        TypeError: Native code does not know it.
    """
    if dtype not in _TYPES:
        raise TypeError(f"dtype must be one of {[str(known) for known in _TYPES]}, got {dtype}")
    return _TYPES[dtype]


def native_policy(weights: PolicyWeights) -> C.Policy:
    """Describes weights to native code, which reads them where they lie: they must outlive it."""
    matrices = (*weights.hidden_weights, weights.output_weight)
    vectors = (*weights.hidden_biases, weights.output_bias)
    return C.Policy(
        [matrix.data_ptr() for matrix in matrices],
        [vector.data_ptr() for vector in vectors],
        [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)],
        _address(weights.fc_weight),
        _address(weights.fc_bias),
        weights.taps_size or 0,
        element_type(weights.dtype),
        ACTIVATIONS[weights.activation],
        _address(weights.norm_weight),
        weights.norm_chunks,
        weights.eps,
        weights.taps_size is not None,
        weights.bins.data_ptr(),
        weights.num_actions,
        weights.horizon,
        weights.fallback_action,
    )


def set_cache(native: C.PolicyEncoder, cache: ActionCache | CacheView) -> None:
    """Gives native code the addresses of a cache."""
    reference_size = 0 if cache.reference is None else cache.reference.shape[1]
    native.set_cache(
        cache.mode,
        cache.state.data_ptr(),
        cache.state.shape[0],
        _address(cache.reference),
        reference_size,
        _address(cache.ring),
    )


def set_inputs(
    native: C.PolicyEncoder, low: Tensor, mid: Tensor | None, high: Tensor | None
) -> None:
    """Gives native code the addresses of checked inputs."""
    parts = (low, mid, high)
    native.set_inputs(
        *(_address(part) for part in parts),
        *(0 if part is None else part.stride(0) for part in parts),
        element_type(low.dtype),
        low.shape[0],
    )


def encode_cpu(
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
    """`fused_encode` for checked arguments on the CPU.

    Returns:
        Features or None, logits, actions and parameters, see `fused_encode`.

    Raises:
        ValueError: An index is out of range or a slot occurs twice; nothing has changed.
    """
    count = low.shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    features = None
    if return_features and weights.fc_weight is not None:
        features = low.new_empty((count, weights.fc_weight.shape[0]))
    logits = torch.empty((sequences, weights.output_weight.shape[0]))
    action = torch.empty((sequences,), dtype=torch.int32)
    params = torch.empty((sequences, 3), dtype=torch.int32)
    native = C.PolicyEncoder(native_policy(weights), thread_count())
    if cache is not None:
        set_cache(native, cache)
    set_inputs(native, low, mid, high)
    native.set_draw(temperature, seed)
    native.set_outputs(_address(features), logits.data_ptr(), action.data_ptr(), params.data_ptr())
    native.run(_address(rows), count, _address(last), sequences, _address(slots), offset)
    return features, logits, action, params


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
