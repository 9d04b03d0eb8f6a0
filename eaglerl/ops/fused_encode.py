"""From low, mid and high features to the parameters of the draft tree, in one call.

The draft head's FC runs once for each token: the rows that the draft needs and the row that the
policy reads come from the same product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eaglerl.ops import _encode_library
from eaglerl.ops._encode_checks import check_cache, check_draw, check_features, check_index
from eaglerl.ops._encode_reference import (
    choose_actions,
    compute_dtype,
    join_features,
    mlp_layers,
    normalise,
    reduce_features,
)
from eaglerl.ops.action_cache import SKETCH_SIZE, ActionCache
from eaglerl.ops.policy_weights import PolicyWeights


class FusedEncodeOutput(NamedTuple):
    """The result of `fused_encode`.

    Attributes:
        features: (N, h) g of the N rows in the dtype of the input; None if it was not requested or
            the policy does not compute it.
        logits: (S, horizon * A) float32; NaN in the rows whose action came from the cache.
        action: (S,) int32.
        params: (S, 3) int32, total_tokens, depth and top_k; (S, 4) with lookup_tokens if the
            policy's actions have them.
    """

    features: Tensor | None
    logits: Tensor
    action: Tensor
    params: Tensor


def fused_encode(
    low: Tensor,
    mid: Tensor | None,
    high: Tensor | None,
    weights: PolicyWeights,
    *,
    rows: Tensor | None = None,
    last: Tensor | None = None,
    cache: ActionCache | None = None,
    slots: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    return_features: bool = True,
) -> FusedEncodeOutput:
    """Reduce low, mid and high to g and choose each sequence's draft tree.

    Without a cache it is differentiable in the inputs and weights, through g and the logits.

    Args:
        low: (B, k) features of the low layer; float32, bfloat16 or float16; rows contiguous, any
            row stride. If `mid` and `high` are None: [low | mid | high] in one tensor (B, 3k), or
            the reduced features g (B, h). If 3k = h, the former is assumed; see `policy_mlp`.
        mid: (B, k) features of the middle layer.
        high: (B, k) features of the high layer.
        weights: the policy.
        rows: (N,) int64 rows of the input to encode, on its device; saves a gather. At most 1,024;
            all rows by default.
        last: (S,) int64 index into the N rows: the last row of each sequence. By default every row
            is a sequence.
        cache: keeps actions; changed in place. Without a cache every call decides.
        slots: (S,) int64 distinct slots of the cache; 0..S - 1 by default.
        temperature: 0 takes the largest logit (ties: the first). Above 0, actions are drawn from
            softmax(logits / temperature).
        seed: key of the counter-based generator (Philox-4x32-10), in 0..2**63 - 1.
        offset: its counter: the same seed and offset repeat a draw.
        return_features: whether to return g of all rows. If not, sequences whose action is in the
            cache cost nothing.

    Returns:
        Features, logits, actions and tree parameters. If a logit is not finite (the inputs held NaN
        or infinity), the action is the policy's ``fallback_action``; a cache counts it, and the
        next step decides again. On a GPU, where reporting a slot out of range would mean waiting,
        such a slot gets the fallback too and changes no record.

    Raises:
        TypeError: a dtype is not allowed.
        ValueError: shapes, devices, strides or values do not fit; on the CPU also a row or a slot
            that is out of range. The message names the argument; nothing has changed.
    """
    check_features(low, mid, high, weights)
    check_draw(temperature, seed, offset)
    check_index("rows", rows, low.device)
    check_index("last", last, low.device)
    if weights.dtype == torch.float64:
        raise TypeError(
            "weights must be float32, bfloat16 or float16, got float64 (fused_encode_ref takes it)"
        )
    reduced = mid is None and low.shape[1] != weights.joined_size
    encodes = return_features and weights.fc_weight is not None and not reduced
    arguments = _encode_library.flatten(weights, reads_reduced=reduced)
    inputs = (low, mid, high, rows, last, *arguments, temperature, seed, offset, encodes)
    if cache is None:
        if slots is not None:
            raise ValueError("slots needs cache")
        out = torch.ops.eaglerl.fused_encode(*inputs)
    else:
        count = low.shape[0] if rows is None else rows.shape[0]
        sequences = count if last is None else last.shape[0]
        compared = weights.feature_size if encodes or reduced else SKETCH_SIZE
        check_cache(cache, slots, sequences, weights.horizon, compared, low.device)
        kept = (cache.state, cache.reference, cache.ring, slots, cache.mode)
        out = torch.ops.eaglerl.fused_encode_cached(*inputs, *kept)
    features, logits, action, params = out
    if reduced and return_features:
        features = low if rows is None else low[rows]
    elif not encodes:
        features = None
    return FusedEncodeOutput(features, logits, action, params)


def fused_encode_ref(
    low: Tensor,
    mid: Tensor | None,
    high: Tensor | None,
    weights: PolicyWeights,
    *,
    rows: Tensor | None = None,
    last: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    return_features: bool = True,
) -> FusedEncodeOutput:
    """Compute `fused_encode` without a cache in plain torch; in float64 for float64 weights."""
    x = join_features(low, mid, high).to(compute_dtype(weights))
    x = x if rows is None else x[rows]
    features = None
    if weights.fc_weight is not None and x.shape[1] == weights.joined_size:
        g = reduce_features(x, weights)
        features = g.to(torch.promote_types(low.dtype, compute_dtype(weights)))
        if compute_dtype(weights) == torch.float32:
            features = g.to(low.dtype)
    else:
        g = normalise(x, weights) if weights.mlp_input == "taps" else x
        features = x.to(low.dtype) if weights.mlp_input == "features" else None
    logits = mlp_layers(g if last is None else g[last], weights)[-1]
    action = choose_actions(
        logits,
        weights.num_actions,
        temperature=temperature,
        seed=seed,
        offset=offset,
        fallback_action=weights.fallback_action,
    )[:, 0]
    return FusedEncodeOutput(
        features if return_features else None, logits, action, weights.actions[action.long()]
    )
