"""From a policy, inputs and a cache to the plan of a launch."""

from __future__ import annotations

import functools
from typing import Any

import torch
from eaglerl.kernels._action_cache import (
    COMPARE_FEATURES,
    COMPARE_INPUT,
    COMPARE_SKETCH,
    NO_COMPARISON,
)
from eaglerl.kernels._plan import Plan, Policy, Tiles, power_of_two
from eaglerl.kernels.tuning import stored_tiles
from torch import Tensor

from eaglerl import _C as C

_LARGEST_GROUP = 8
# Rows from which the matrix units are used.
_SMALLEST_MATRIX = 16


def split_taps(
    low: Tensor, mid: Tensor | None, high: Tensor | None, reads_taps: bool
) -> tuple[Tensor, ...]:
    """The chunks of the input: three tapped layers, or the features."""
    if mid is not None:
        return low, mid, high
    return tuple(low.chunk(3, dim=1)) if reads_taps else (low,)


def policy_of(weights: Any) -> Policy:
    """What a plan holds of ``PolicyWeights``."""
    chunks = 1 if weights.taps_size is None else 3
    matrices = (*weights.hidden_weights, weights.output_weight)
    return Policy(
        k=(weights.taps_size or weights.feature_size) // chunks,
        chunks=chunks,
        features=0 if weights.fc_weight is None else weights.fc_weight.shape[0],
        widths=tuple(matrix.shape[0] for matrix in matrices),
        actions=weights.bins.shape[0],
        horizon=weights.horizon,
        fallback=weights.fallback_action,
        activation=weights.activation,
        norm_chunks=weights.norm_chunks,
        eps=float(weights.eps),
    )


def plan_of(
    weights: Any,
    inputs: Tensor,
    rows: int,
    sequences: int,
    cache: Any,
    samples: bool,
    encodes: bool,
) -> Plan:
    """The plan of a launch.

    Args:
        weights: ``PolicyWeights``.
        inputs: One of the inputs, for its dtype and device.
        rows: Rows that are multiplied.
        sequences: Sequences that are decided.
        cache: ``ActionCache``, or None.
        samples: Whether actions are drawn.
        encodes: Whether g of all rows is wanted.
    """
    device = inputs.device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return _make_plan(
        policy_of(weights),
        inputs.dtype,
        weights.dtype,
        weights.norm_weight is not None,
        device_name,
        power_of_two(max(rows, 1)),
        min(power_of_two(max(sequences, 1)), _LARGEST_GROUP),
        None if cache is None else cache.mode,
        0 if cache is None or cache.reference is None else cache.reference.shape[1],
        samples,
        encodes,
    )


@functools.lru_cache(maxsize=256)
def _make_plan(
    policy: Policy,
    input_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    scales: bool,
    device_name: str,
    rows: int,
    group: int,
    mode: int | None,
    compared: int,
    samples: bool,
    encodes: bool,
) -> Plan:
    folded = policy.features == 0
    tiles = stored_tiles(device_name, policy.k, weight_dtype, folded, rows if not folded else group)
    if tiles is None:
        tiles = default_tiles(policy, weight_dtype.itemsize, group if folded else rows)
    columns = -(-policy.features // tiles.columns)
    blocks = policy.chunks * -(-policy.k // tiles.elements)
    narrow = input_dtype == weight_dtype and input_dtype.itemsize == 2 and not scales
    return Plan(
        policy=policy,
        tiles=tiles,
        group=group,
        has_cache=mode is not None,
        scheduled=mode == C.cache_modes["scheduled"],
        compare=_comparison(policy, mode, encodes).value,
        compared=compared,
        samples=samples,
        encodes_all=encodes,
        precision=_precision(narrow) if tiles.rows >= _SMALLEST_MATRIX and not folded else None,
        programs=blocks if folded else columns,
    )


def step_plan(
    actions: int, horizon: int, fallback: int, sequences: int, cache: Any, samples: bool
) -> Plan:
    """The plan of ``action_cache_step``, which multiplies nothing."""
    group = min(power_of_two(max(sequences, 1)), _LARGEST_GROUP)
    compared = 0 if cache.reference is None else cache.reference.shape[1]
    return _make_step_plan(actions, horizon, fallback, group, cache.mode, compared, samples)


@functools.lru_cache(maxsize=256)
def _make_step_plan(
    actions: int, horizon: int, fallback: int, group: int, mode: int, compared: int, samples: bool
) -> Plan:
    policy = Policy(1, 1, 0, (1, horizon * actions), actions, horizon, fallback, "relu", 0, 0.0)
    return Plan(
        policy=policy,
        tiles=Tiles(group, 1, 1),
        group=group,
        has_cache=True,
        scheduled=mode == C.cache_modes["scheduled"],
        compare=_comparison(policy, mode, False).value,
        compared=compared,
        samples=samples,
        encodes_all=False,
        precision=None,
        programs=1,
    )


def _comparison(policy: Policy, mode: int | None, encodes: bool) -> Any:
    if mode != C.cache_modes["adaptive"]:
        return NO_COMPARISON
    if policy.chunks == 1:
        return COMPARE_INPUT
    return COMPARE_FEATURES if encodes else COMPARE_SKETCH


def _precision(narrow: bool) -> str:
    """How matrices are multiplied: 16 bit types exactly, float32 by three products of its parts.

    Three products are as precise as float32's own and not slower than the weights' transport. AMD's
    matrix units multiply float32 as it is.
    """
    return "ieee" if narrow or torch.version.hip else "tf32x3"


def default_tiles(policy: Policy, itemsize: int, rows: int) -> Tiles:
    """Tiles where none were measured: enough programs for all multiprocessors, 16 bytes a load."""
    wide = 4 // itemsize  # 1 for float32, 2 for 16 bit types
    if policy.features == 0:
        columns = max(128 // rows, 16)
        return Tiles(rows, columns, min(power_of_two(policy.k), 128), num_warps=8)
    if rows <= 4:
        elements = min(power_of_two(policy.k), 512 * wide)
        columns = 4 if policy.features < 2048 or rows > 1 else 8
        return Tiles(rows, columns, elements // (2 if rows == 4 else 1), num_warps=4)
    rows = min(max(rows, _SMALLEST_MATRIX), 64)
    elements = max(min(power_of_two(policy.k), 128 * wide * 16 // rows), 16)
    return Tiles(rows, 16 if rows < 64 else 32, elements, num_warps=4)
