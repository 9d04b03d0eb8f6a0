"""The policy's decision on a GPU: the Triton launch, or CUDA C++ where Triton is missing."""

from __future__ import annotations

from torch import Tensor

from eaglerl.ops.action_cache import CacheView
from eaglerl.ops.policy_weights import PolicyWeights


def encode_cuda(
    weights: PolicyWeights,
    low: Tensor,
    mid: Tensor | None,
    high: Tensor | None,
    rows: Tensor | None,
    last: Tensor | None,
    cache: CacheView | None,
    slots: Tensor | None,
    temperature: float,
    seed: int,
    offset: int,
    return_features: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Features, logits, action and parameters, without waiting for the device.

    Arguments are those of `fused_encode`, checked already.
    """
    from eaglerl.kernels._settings import split_taps
    from eaglerl.kernels.fused_encode import prepare_fused_encode
    from eaglerl.kernels.policy_mlp import prepare_policy_mlp

    inputs = split_taps(low, mid, high, weights.taps_size is not None)
    draw = temperature, seed, offset
    if weights.fc_weight is None:
        launch, decisions = prepare_policy_mlp(weights, inputs, rows, last, cache, slots, draw)
    else:
        launch, decisions = prepare_fused_encode(
            weights, inputs, rows, last, cache, slots, draw, return_features=return_features
        )
    launch.run(low.device)
    return decisions.features, decisions.logits, decisions.action, decisions.params
