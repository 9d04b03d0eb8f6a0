"""The policy's MLP alone, for features that are reduced already."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from eaglerl.ops._encode_checks import check_weights_type
from eaglerl.ops.action_cache import ActionCache
from eaglerl.ops.fused_encode import fused_encode, fused_encode_ref
from eaglerl.ops.policy_weights import PolicyWeights


class PolicyMlpOutput(NamedTuple):
    """The result of `policy_mlp`.

    Attributes:
        logits: (S, horizon * A) float32; NaN in the rows whose action came from the cache.
        action: (S,) int32.
        params: (S, 3) or (S, 4) int32, see `FusedEncodeOutput`.
    """

    logits: Tensor
    action: Tensor
    params: Tensor


def policy_mlp(
    features: Tensor,
    weights: PolicyWeights,
    *,
    rows: Tensor | None = None,
    cache: ActionCache | None = None,
    slots: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> PolicyMlpOutput:
    """Choose each sequence's draft tree from the reduced features g.

    Args:
        features: (B, h) float32, bfloat16 or float16; rows contiguous, any row stride.
        weights: the policy; its FC, if it has one, is not used.
        rows: (S,) int64 rows of `features`, one for each sequence; all rows by default.
        cache: see `fused_encode`; an adaptive one compares these features.
        slots: see `fused_encode`.
        temperature: see `fused_encode`.
        seed: see `fused_encode`.
        offset: see `fused_encode`.

    Returns:
        Logits, actions and tree parameters.

    Raises:
        TypeError: a dtype is not allowed.
        ValueError: an argument does not fit, or the policy reads low, mid and high.
    """
    _, logits, action, params = fused_encode(
        features,
        None,
        None,
        without_fc(weights),
        rows=rows,
        cache=cache,
        slots=slots,
        temperature=temperature,
        seed=seed,
        offset=offset,
        return_features=False,
    )
    return PolicyMlpOutput(logits, action, params)


def policy_mlp_ref(
    features: Tensor,
    weights: PolicyWeights,
    *,
    rows: Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
) -> PolicyMlpOutput:
    """Compute `policy_mlp` without a cache in plain torch; in float64 for float64 weights."""
    _, logits, action, params = fused_encode_ref(
        features,
        None,
        None,
        without_fc(weights),
        rows=rows,
        temperature=temperature,
        seed=seed,
        offset=offset,
    )
    return PolicyMlpOutput(logits, action, params)


def without_fc(weights: PolicyWeights) -> PolicyWeights:
    """Return a policy without its FC, which then reads reduced features.

    Raises:
        TypeError: `weights` are of another type.
        ValueError: the policy reads low, mid and high.
    """
    check_weights_type(weights)
    if weights.mlp_input != "features":
        raise ValueError('weights must have mlp_input "features", got "taps"')
    if weights.fc_weight is None:
        return weights
    fields = {name: getattr(weights, name) for name in weights.__dataclass_fields__}
    fields |= {"fc_weight": None, "fc_bias": None, "norm_weight": None, "norm_chunks": 0}
    return PolicyWeights.unchecked(**fields)
