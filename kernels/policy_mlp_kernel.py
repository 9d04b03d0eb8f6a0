"""The decision of a policy without an FC, from reduced features or folded.

The inputs of the MLP's first layer are divided among programs. As in ``fused_encode``, the program
with the last ticket adds the partial sums and finishes. The same pass sums the features' squares.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from eaglerl.kernels._decision import decide, hold_in_advance
from eaglerl.kernels._features import find_input_row
from eaglerl.kernels._launch import Decisions, Launch, shared_arguments, workspace
from eaglerl.kernels._plan import Tiles
from eaglerl.kernels._settings import plan_of


@triton.jit(
    do_not_specialize=[
        "n_inputs", "n_rows", "n_sequences", "n_slots", "seed_low", "seed_high", "offset_low",
        "offset_high",
    ]
)  # fmt: skip
def _policy_mlp_kernel(
    inputs, rows_ptr, last_ptr, norm_weight_ptr, weights, biases, actions_ptr, cache, outputs,
    scratch_ptr, ticket_ptr, n_inputs, n_rows, n_sequences, n_slots, strides,
    temperature, seed_low, seed_high, offset_low, offset_high,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of inputs, chunk by chunk; groups of sequences, each with a ticket."""
    GROUP: tl.constexpr = PLAN.group
    part, group = tl.program_id(0), tl.program_id(1)
    sequence = group * GROUP + tl.arange(0, GROUP)
    active = sequence < n_sequences
    input_row, readable = find_input_row(rows_ptr, last_ptr, sequence, active, n_inputs, n_rows)
    misses = 1
    if PLAN.has_cache:
        hit = hold_in_advance(
            inputs, strides, input_row, readable, sequence, active, part == 0, cache, n_slots,
            scratch_ptr, PLAN,
        )  # fmt: skip
        misses = tl.sum((active & ~hit).to(tl.int32), axis=0)
    if misses > 0:
        _multiply_part(
            inputs, strides, input_row, readable, sequence, active, part, norm_weight_ptr,
            weights[0], scratch_ptr, PLAN,
        )  # fmt: skip
    # As in the kernel of ``fused_encode``.
    tl.debug_barrier()
    ticket = tl.atomic_add(ticket_ptr + group, 1, sem="acq_rel", scope="gpu")
    if ticket == tl.num_programs(0) - 1:
        tl.store(ticket_ptr + group, 0)
        decide(
            inputs[0] + input_row * strides[0], sequence, active, weights, biases, actions_ptr,
            cache, n_slots, outputs, (temperature, seed_low, seed_high, offset_low, offset_high),
            scratch_ptr, PLAN,
        )  # fmt: skip


@triton.jit
def _multiply_part(
    inputs, strides, input_row, readable, sequence, active, part, norm_weight_ptr, weight_ptr,
    scratch_ptr, PLAN: tl.constexpr,
):  # fmt: skip
    """Write the first layer's partial sums, and the sum of squares, over one block of inputs."""
    K: tl.constexpr = PLAN.policy.k
    width: tl.constexpr = PLAN.policy.widths[0]
    blocks: tl.constexpr = PLAN.programs // PLAN.policy.chunks
    chunk, start = part // blocks, part % blocks * PLAN.tiles.elements
    element = start + tl.arange(0, PLAN.tiles.elements)[None, None, :]
    available = element < K
    CHUNKS: tl.constexpr = PLAN.policy.chunks
    x_ptr = inputs[0] + input_row * strides[0]
    for other in tl.static_range(1, CHUNKS):
        x_ptr = tl.where(chunk == other, inputs[other] + input_row * strides[other], x_ptr)
    x = tl.load(
        x_ptr[:, None, None] + element,
        mask=readable[:, None, None] & available,
        other=0.0,
    ).to(tl.float32)
    row_ptr = scratch_ptr + sequence.to(tl.int64) * PLAN.scratch
    if PLAN.policy.norm_chunks:
        square = tl.sum(tl.sum(x * x, axis=2), axis=1)
        tl.store(row_ptr + PLAN.squares_at + part, square, mask=active)
    column = chunk * K + element
    if norm_weight_ptr is not None:
        x *= tl.load(norm_weight_ptr + column, mask=available, other=0.0)
    for first in range(0, width, PLAN.tiles.columns):
        output = first + tl.arange(0, PLAN.tiles.columns)
        inside = output < width
        weight = tl.load(
            weight_ptr + output[None, :, None].to(tl.int64) * (PLAN.policy.chunks * K) + column,
            mask=inside[None, :, None] & available,
            other=0.0,
        ).to(tl.float32)
        partial = tl.where(readable[:, None], tl.sum(x * weight, axis=2), float("nan"))
        tl.store(
            row_ptr[:, None] + part * width + output[None, :],
            partial,
            mask=active[:, None] & inside[None, :],
        )


def prepare_policy_mlp(
    weights: Any,
    inputs: tuple[Tensor, ...],
    rows: Tensor | None,
    last: Tensor | None,
    cache: Any,
    slots: Tensor | None,
    draw: tuple[float, int, int],
    *,
    tiles: Tiles | None = None,
) -> tuple[Launch, Decisions]:
    """Allocate outputs and prepare a launch. Arguments are not checked.

    Args:
        weights: ``PolicyWeights`` without an FC.
        inputs: low, mid and high, each (B, k), or the features (B, h) alone.
        rows: (N,) int64 rows of the inputs, or None for all.
        last: (S,) int64 index into the N rows, or None for all.
        cache: ``ActionCache``, or None.
        slots: (S,) int64 slots, or None.
        draw: temperature, seed, offset.
        tiles: tiles to use instead of the stored ones.
    """
    count = inputs[0].shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    plan = plan_of(weights, inputs[0], sequences, sequences, cache, draw[0] > 0, False, tiles)
    decisions = Decisions.empty(weights, sequences, inputs[0].device)
    scratch, tickets = workspace(inputs[0].device, sequences * plan.scratch)
    arguments = {
        "inputs": inputs,
        "rows_ptr": rows,
        "last_ptr": last,
        "norm_weight_ptr": weights.norm_weight,
        "scratch_ptr": scratch,
        "ticket_ptr": tickets,
        "n_inputs": inputs[0].shape[0],
        "n_rows": count,
        **shared_arguments(weights, inputs, sequences, cache, slots, decisions, draw),
    }
    grid = (plan.programs, -(-sequences // plan.group))
    return Launch(_policy_mlp_kernel, grid, arguments, plan), decisions
