"""Makes the plan of a launch from a policy, inputs and a cache."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor

import eaglerl._C as C
from eaglerl.kernels._action_cache import (
    COMPARE_FEATURES,
    COMPARE_INPUT,
    COMPARE_SKETCH,
    NO_COMPARISON,
)
from eaglerl.kernels._plan import Plan, Policy, Tiles, power_of_two
from eaglerl.kernels.tuning import stored_tiles

_LARGEST_GROUP = 8
# Of sequences whose inputs a fused launch's last program compares itself: eight spill.
_LARGEST_GROUP_OF_SKETCHES = 4
# Most rows that are multiplied as vectors, and row tiles for the tensor cores.
_MOST_VECTORS = 4
_FEWEST_MATRIX_ROWS = 16
_MOST_MATRIX_ROWS = 64
# Programs that share a folded product, and most partial sums of an output that one program adds.
_PROGRAMS = 128
_MOST_PARTS = 32


def split_layers(
    low: Tensor, mid: Tensor | None, high: Tensor | None, reads_layers: bool
) -> tuple[Tensor, ...]:
    """Return the chunks of the input: three feature layers, or reduced features."""
    if mid is not None:
        return low, mid, high
    return tuple(low.chunk(3, dim=1)) if reads_layers else (low,)


def policy_of(weights: Any) -> Policy:
    """Return the sizes and settings of ``PolicyWeights``."""
    chunks = 1 if weights.joined_size is None else 3
    matrices = (*weights.hidden_weights, weights.output_weight)
    return Policy(
        k=(weights.joined_size or weights.feature_size) // chunks,
        chunks=chunks,
        features=0 if weights.fc_weight is None else weights.fc_weight.shape[0],
        widths=tuple(matrix.shape[0] for matrix in matrices),
        actions=weights.actions.shape[0],
        columns=weights.actions.shape[1],
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
    tiles: Tiles | None = None,
) -> Plan:
    """Return the plan of a launch.

    Args:
        weights: ``PolicyWeights``.
        inputs: one of the inputs, for its dtype and device.
        rows: rows that are multiplied.
        sequences: sequences that are decided.
        cache: ``ActionCache``, or None.
        samples: whether actions are drawn.
        encodes: whether g of all rows is returned.
        tiles: tiles to use instead of the stored ones.
    """
    device = inputs.device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return _make_plan(
        policy_of(weights),
        weights.dtype,
        device_name,
        power_of_two(max(rows, 1)),
        min(power_of_two(max(sequences, 1)), _LARGEST_GROUP),
        None if cache is None else cache.mode,
        0 if cache is None or cache.reference is None else cache.reference.shape[1],
        samples,
        encodes,
        tiles,
    )


@functools.lru_cache(maxsize=256)
def _make_plan(
    policy: Policy,
    weight_dtype: torch.dtype,
    device_name: str,
    rows: int,
    group: int,
    mode: int | None,
    compared: int,
    samples: bool,
    encodes: bool,
    tiles: Tiles | None,
) -> Plan:
    folded = policy.features == 0
    multiplied = group if folded else rows
    if tiles is None:
        tiles = stored_tiles(device_name, form_of(policy), policy.k, weight_dtype, multiplied)
    if tiles is None:
        tiles = default_tiles(policy, weight_dtype.itemsize, multiplied)
    if folded:
        steps, parts = _folded_parts(policy, tiles)
        programs, gathered = parts * -(-policy.widths[0] // tiles.columns), 0
    else:
        programs, steps = -(-policy.features // tiles.columns), 1
        gathered = _gathered(programs)
        parts = -(-programs // gathered) if gathered else programs
    compare = _comparison(policy, mode, encodes).value
    if not folded and compare == COMPARE_SKETCH.value:
        group = min(group, _LARGEST_GROUP_OF_SKETCHES)
    return Plan(
        policy=policy,
        itemsize=weight_dtype.itemsize,
        tiles=tiles,
        group=group,
        has_cache=mode is not None,
        scheduled=mode == C.cache_modes["scheduled"],
        compare=compare,
        compared=compared,
        samples=samples,
        encodes_all=encodes,
        precision=_precision() if tiles.rows >= _FEWEST_MATRIX_ROWS and not folded else None,
        programs=programs,
        parts=parts,
        steps=steps,
        gathered=gathered,
        interpreted=triton.knobs.runtime.interpret,
    )


def _folded_parts(policy: Policy, tiles: Tiles) -> tuple[int, int]:
    """Return the steps of a folded product's programs, and how many of them share an output.

    At most as many programs as a device has multiprocessors, about 128, unless there are as many
    blocks of outputs; so few parts are left that the last program reads 4 KB of partial sums of one
    sequence at k = 4096, where blocks of 128 inputs and all outputs would leave 49 KB.
    """
    tiles_of_chunk = -(-policy.k // tiles.elements)
    steps = -(-tiles_of_chunk // _most_blocks(policy, tiles.columns))
    return steps, policy.chunks * -(-tiles_of_chunk // steps)


def _most_blocks(policy: Policy, columns: int) -> int:
    """Return into how many blocks the inputs of a chunk may be divided."""
    return max(_PROGRAMS // (policy.chunks * -(-policy.widths[0] // columns)), 1)


def _gathered(programs: int) -> int:
    """Return how many programs' partial sums are added first, or 0 to add all of them at once.

    One program reads about 64 bytes a cycle: 128 partial sums of 512 programs each would take it
    4,096 cycles. A second level of tickets takes 500 to 1,300 cycles, and leaves those of 32 and of
    16 programs to be read one after the other, in 384 cycles.
    """
    if programs <= _MOST_PARTS:
        return 0
    return power_of_two(max(math.isqrt(programs - 1) + 1, -(-programs // _MOST_PARTS)))


def step_plan(
    actions: tuple[int, int],
    horizon: int,
    fallback: int,
    sequences: int,
    cache: Any,
    samples: bool,
) -> Plan:
    """Return the plan of ``action_cache_step``, which has no products.

    Args:
        actions: rows and columns of the table of actions.
        horizon: decisions that one call makes.
        fallback: the action to take if a logit is not finite.
        sequences: sequences that are decided.
        cache: ``ActionCache``.
        samples: whether actions are drawn.
    """
    group = min(power_of_two(max(sequences, 1)), _LARGEST_GROUP)
    adaptive = cache.mode == C.cache_modes["adaptive"]
    compared = cache.reference.shape[1] if adaptive else 0
    return _make_step_plan(actions, horizon, fallback, group, cache.mode, compared, samples)


@functools.lru_cache(maxsize=256)
def _make_step_plan(
    actions: tuple[int, int],
    horizon: int,
    fallback: int,
    group: int,
    mode: int,
    compared: int,
    samples: bool,
) -> Plan:
    count, columns = actions
    widths = 1, horizon * count
    policy = Policy(1, 1, 0, widths, count, columns, horizon, fallback, "relu", 0, 0.0)
    return Plan(
        policy=policy,
        itemsize=4,
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
        parts=1,
        steps=1,
        gathered=0,
        interpreted=triton.knobs.runtime.interpret,
    )


def forget_plans() -> None:
    """Clear the cache of plans, so that the next launches look up their tiles again."""
    _make_plan.cache_clear()


def form_of(policy: Policy) -> str:
    """Return the form of a launch, under which its tiles are stored."""
    return "fused" if policy.features else "features" if policy.chunks == 1 else "folded"


def _comparison(policy: Policy, mode: int | None, encodes: bool) -> Any:
    if mode != C.cache_modes["adaptive"]:
        return NO_COMPARISON
    if policy.chunks == 1:
        return COMPARE_INPUT
    return COMPARE_FEATURES if encodes else COMPARE_SKETCH


def _precision() -> str:
    """Return the precision mode for float32 matrix products.

    Three TF32 products are as precise as one in float32; AMD's matrix cores multiply float32
    directly.
    """
    return "ieee" if torch.version.hip else "tf32x3"


def default_tiles(policy: Policy, itemsize: int, rows: int) -> Tiles:
    """Return default tiles: enough programs for all multiprocessors, loads of 16 bytes."""
    wide = 4 // itemsize  # 1 for float32, 2 for 16 bit types
    width = power_of_two(policy.k)
    if policy.features == 0:
        if rows > 1:
            return Tiles(rows, 16, min(width, 128), num_warps=8, max_registers=255)
        # All of a program's weights in one tile of up to 32 KB, and so all loads at once. With one
        # warp for each scheduler, what is not divided among warps (addresses, masks, the choice) is
        # done 4 times and not 8. Memory is read in sectors of 32 bytes.
        columns = 8
        elements = power_of_two(-(-policy.k // _most_blocks(policy, columns)))
        elements = min(max(elements, 8 * wide), 1024 * wide)
        return Tiles(1, columns, elements, num_warps=8 // wide, max_registers=255)
    large = policy.features >= 2048
    if rows <= _MOST_VECTORS:
        # Two programs of a multiprocessor have up to 32 KB of one row's weights under way, which
        # its share of an H200's bandwidth needs (4.8 TB/s for 0.7 us: 25 KB). For a third one, a
        # thread would have 168 registers, and the choice at the end would spill.
        columns = 8 if large and rows == 1 else 4
        elements = min(width, 512 * wide // max(rows // 2, 1))
        return Tiles(rows, columns, elements, max_registers=255)
    rows = min(max(rows, _FEWEST_MATRIX_ROWS), _MOST_MATRIX_ROWS)
    # Deep pipelines, because few programs have to saturate the memory bandwidth.
    stages = {16: 8, 32: 6, 64: 4}[rows]
    columns = 32 if large or rows > 16 else 16
    return Tiles(rows, columns, max(min(width, 32 * wide), 16), 4, stages, 255)
