"""The decision of a policy without an FC, from reduced features or folded.

The matrix of the MLP's first layer is divided among programs, by blocks of outputs and of inputs:
the more inputs a program has, the fewer partial sums are left for one program to add. As in
``fused_encode``, that is the program with the last ticket, which also finishes. The same pass sums
the features' squares.
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
from eaglerl.kernels._prefetch import warm_l2
from eaglerl.kernels._settings import plan_of
from eaglerl.kernels._tickets import is_last_ticket


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
    """Grid: blocks of outputs and inputs; groups of sequences, each with a ticket."""
    GROUP: tl.constexpr = PLAN.group
    part, group = tl.program_id(0), tl.program_id(1)
    sequence = group * GROUP + tl.arange(0, GROUP)
    active = sequence < n_sequences
    input_row, readable = find_input_row(rows_ptr, last_ptr, sequence, active, n_inputs, n_rows)
    misses = 1
    held = None
    if PLAN.has_cache:
        held = hold_in_advance(
            inputs, strides, input_row, readable, sequence, active, part == 0, cache, n_slots,
            scratch_ptr, PLAN,
        )  # fmt: skip
        misses = tl.sum((active & ~held[2]).to(tl.int32), axis=0)
    if misses > 0:
        warm_l2(weights, biases, actions_ptr, part, PLAN)
        _multiply_part(
            inputs, strides, input_row, readable, sequence, active, part, norm_weight_ptr,
            weights[0], scratch_ptr, PLAN,
        )  # fmt: skip
    tl.debug_barrier()
    if is_last_ticket(ticket_ptr + group, PLAN.programs):
        decide(
            inputs[0] + input_row * strides[0], group * GROUP, n_sequences, weights, biases,
            actions_ptr, cache, held, n_slots, outputs,
            (temperature, seed_low, seed_high, offset_low, offset_high), scratch_ptr, PLAN,
        )  # fmt: skip


@triton.jit
def _multiply_part(
    inputs, strides, input_row, readable, sequence, active, part, norm_weight_ptr, weight_ptr,
    scratch_ptr, PLAN: tl.constexpr,
):  # fmt: skip
    """Write partial sums of the first layer for one block of outputs and one of inputs.

    The programs of the first block of outputs also write the sum of squares of their inputs. A
    block of inputs is read in steps. Sums stay distributed over the threads until the last.
    """
    K: tl.constexpr = PLAN.policy.k
    ELEMENTS: tl.constexpr = PLAN.tiles.elements
    width: tl.constexpr = PLAN.policy.widths[0]
    chunks: tl.constexpr = PLAN.policy.chunks
    blocks: tl.constexpr = PLAN.parts // chunks
    inputs_part, block = part % PLAN.parts, part // PLAN.parts
    chunk, first = inputs_part // blocks, inputs_part % blocks * (ELEMENTS * PLAN.steps)
    row_ptr = scratch_ptr + sequence.to(tl.int64) * PLAN.scratch
    output = block * PLAN.tiles.columns + tl.arange(0, PLAN.tiles.columns)
    inside = output < width
    weight_ptr += output.to(tl.int64)[None, :, None] * (chunks * K) + chunk * K
    # Triton 3.6 takes names of constants as a shape, but no attributes.
    GROUP: tl.constexpr = PLAN.group
    COLUMNS: tl.constexpr = PLAN.tiles.columns
    total = tl.zeros((GROUP, COLUMNS, ELEMENTS), tl.float32)
    square = tl.zeros((GROUP, 1, ELEMENTS), tl.float32)
    for step in range(PLAN.steps):
        element = first + step * ELEMENTS + tl.arange(0, ELEMENTS)[None, None, :]
        available = element < K
        x = tl.zeros((GROUP, 1, ELEMENTS), tl.float32)
        # One of these loads is made. Of a chosen pointer, the compiler would not know that it is
        # aligned, and read each number by itself.
        for other in tl.static_range(chunks):
            wanted = readable & (input_row * 0 + chunk == other)
            x_ptr = inputs[other] + input_row * strides[other]
            value = tl.load(
                x_ptr[:, None, None] + element, mask=wanted[:, None, None] & available, other=0.0
            )
            x += value.to(tl.float32)
        # Behind x, or weights would get the layout of x, by way of shared memory.
        weight = tl.load(weight_ptr + element, mask=inside[None, :, None] & available, other=0.0)
        if PLAN.policy.norm_chunks:
            square += x * x
        if norm_weight_ptr is not None:
            x *= tl.load(norm_weight_ptr + chunk * K + element, mask=available, other=0.0)
        total += x * weight.to(tl.float32)
    partial = tl.where(readable[:, None], tl.sum(total, axis=2), float("nan"))
    tl.store(
        row_ptr[:, None] + output[None, :] * PLAN.stride + inputs_part,
        partial,
        mask=active[:, None] & inside[None, :],
    )
    if PLAN.policy.norm_chunks:  # noqa: SIM102, the compiler decides this one
        if block == 0:
            squares_ptr = row_ptr + PLAN.squares_at + inputs_part
            tl.store(squares_ptr, tl.sum(tl.sum(square, axis=2), axis=1), mask=active)


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
