"""The policy's decision on the CPU, in one native call."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._encode_reference import join_features, reduce_features
from eaglerl.ops.action_cache import ActionCache, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_TYPES = {
    torch.float32: C.element_types["float32"],
    torch.bfloat16: C.element_types["bfloat16"],
    torch.float16: C.element_types["float16"],
}
# From this many float32 rows on, the FC is torch's matrix product, which packs its operands. On
# two cores with AVX2 at k = 576, the extension takes 0.9 times as long as torch for 64 rows, as
# long for 128, 1.1 to 1.3 times as long from 256 on; in 16 bits it is two to eight times faster.
_TORCH_ROWS = 128
ACTIVATIONS: dict[str, int] = dict(C.activations)


def element_type(dtype: torch.dtype) -> int:
    """Return native code's number for a dtype.

    Raises:
        TypeError: native code does not support it.
    """
    if dtype not in _TYPES:
        raise TypeError(f"dtype must be one of {[str(known) for known in _TYPES]}, got {dtype}")
    return _TYPES[dtype]


def native_policy(weights: PolicyWeights, *, reads_reduced: bool = False) -> C.Policy:
    """Pass the addresses of weights to native code. The weights must outlive the result.

    Args:
        weights: the policy.
        reads_reduced: whether the inputs are reduced already; then the FC is skipped.
    """
    reads_layers = weights.joined_size is not None and not reads_reduced
    matrices = (*weights.hidden_weights, weights.output_weight)
    vectors = (*weights.hidden_biases, weights.output_bias)
    return C.Policy(
        [matrix.data_ptr() for matrix in matrices],
        [vector.data_ptr() for vector in vectors],
        [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)],
        _address(weights.fc_weight) if reads_layers else 0,
        _address(weights.fc_bias) if reads_layers else 0,
        weights.joined_size or 0,
        element_type(weights.dtype),
        ACTIVATIONS[weights.activation],
        _address(weights.norm_weight),
        weights.norm_chunks,
        weights.eps,
        reads_layers,
        weights.actions.data_ptr(),
        weights.num_actions,
        weights.action_columns,
        weights.horizon,
        weights.fallback_action,
    )


def set_cache(native: C.PolicyEncoder, cache: ActionCache | CacheView) -> None:
    """Pass the addresses of a cache to native code."""
    adaptive = cache.mode == C.cache_modes["adaptive"]
    reference = cache.reference
    reference_size = reference.shape[1] if adaptive and reference is not None else 0
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
    """Pass the addresses of checked inputs to native code."""
    native.set_inputs(
        low.data_ptr(),
        _address(mid),
        _address(high),
        low.stride(0),
        0 if mid is None else mid.stride(0),
        0 if high is None else high.stride(0),
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
    """Run `fused_encode` on checked CPU arguments.

    Returns:
        Features or None, logits, actions and parameters, see `fused_encode`.

    Raises:
        ValueError: an index is out of range, or a slot occurs twice. Nothing has changed.
    """
    count = low.shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    features, by_torch = None, False
    if weights.fc_weight is not None:
        # Without features, native code skips the FC of sequences that the cache serves.
        reduced = count if return_features else 0 if cache is not None else sequences
        by_torch = weights.dtype == torch.float32 and reduced >= _TORCH_ROWS
    if by_torch:
        g, last = _reduce_by_torch(weights, (low, mid, high), rows, last, return_features)
        features = g.to(low.dtype) if return_features else None
        low, mid, high, rows, count = g, None, None, None, g.shape[0]
    elif return_features and weights.fc_weight is not None:
        features = low.new_empty((count, weights.fc_weight.shape[0]))
    logits = torch.empty((sequences, weights.output_weight.shape[0]))
    action = torch.empty((sequences,), dtype=torch.int32)
    params = torch.empty((sequences, weights.action_columns), dtype=torch.int32)
    native = C.PolicyEncoder(native_policy(weights, reads_reduced=by_torch), thread_count())
    if cache is not None:
        set_cache(native, cache)
    set_inputs(native, low, mid, high)
    native.set_draw(temperature, seed)
    written = 0 if by_torch else _address(features)
    native.set_outputs(
        written, logits.data_ptr(), action.data_ptr(), params.data_ptr(), count, sequences
    )
    native.run(_address(rows), count, _address(last), sequences, _address(slots), offset)
    return features, logits, action, params


def _reduce_by_torch(
    weights: PolicyWeights,
    parts: tuple[Tensor, Tensor | None, Tensor | None],
    rows: Tensor | None,
    last: Tensor | None,
    return_features: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return float32 g of all rows or of the last ones, and the index of the last rows in it.

    Raises:
        ValueError: an index is out of range.
    """
    available = parts[0].shape[0]
    count = available if rows is None else rows.shape[0]
    for name, index, end in (("rows", rows, available), ("last", last, count)):
        if index is not None:
            C.check_range(name, index.data_ptr(), index.shape[0], end)
    x = join_features(*parts).float()
    x = x if rows is None else x[rows]
    if last is not None and not return_features:
        x, last = x[last], None
    return reduce_features(x, weights), last


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
