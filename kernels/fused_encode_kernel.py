"""From low, mid and high to the reduced features and the tree's parameters, in one launch.

The columns of the FC are divided among programs. Each program also multiplies its columns of g into
the first layer of the MLP, so that all multiprocessors read that layer's matrix, and then takes a
ticket. The program with the last ticket adds the layer's partial sums in a fixed order, runs the
rest of the MLP, chooses the actions and updates the action cache. Where there are more than 32
programs, there are two levels of tickets (`_tickets`). No program waits for another, so any number
of them may run at a time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from eaglerl.kernels._action_cache import COMPARE_FEATURES
from eaglerl.kernels._decision import decide, hold_in_advance
from eaglerl.kernels._fc import encode_tile
from eaglerl.kernels._features import find_input_row
from eaglerl.kernels._launch import Decisions, Launch, shared_arguments, workspace
from eaglerl.kernels._plan import Tiles
from eaglerl.kernels._prefetch import warm_l2
from eaglerl.kernels._settings import plan_of
from eaglerl.kernels._tickets import is_last_program


@triton.jit(
    do_not_specialize=[
        "n_inputs", "n_rows", "n_sequences", "n_slots", "seed_low", "seed_high", "offset_low",
        "offset_high",
    ]
)  # fmt: skip
def _fused_encode_kernel(
    inputs, rows_ptr, last_ptr, norm_weight_ptr, fc_weight_ptr, fc_bias_ptr, weights, biases,
    actions_ptr, cache, features_ptr, outputs, scratch_ptr, ticket_ptr,
    n_inputs, n_rows, n_sequences, n_slots, strides,
    temperature, seed_low, seed_high, offset_low, offset_high,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of columns, tiles of rows.

    If every row is a sequence, each row tile has its own ticket and decides its own sequences. With
    more rows than sequences, all tiles share one ticket.
    """
    ROWS: tl.constexpr = PLAN.tiles.rows
    shares_ticket: tl.constexpr = PLAN.encodes_all and last_ptr is not None
    column_tile, row_tile = tl.program_id(0), tl.program_id(1)
    if shares_ticket:
        row_tiles = tl.num_programs(1)
        leads = column_tile + row_tile == 0
        first, end = 0, n_sequences
    else:
        row_tiles = 1
        leads = column_tile == 0
        first, end = row_tile * ROWS, tl.minimum(row_tile * ROWS + ROWS, n_sequences)
        # One of its own, and one for each part that is gathered.
        ticket_ptr += row_tile * (1 + (PLAN.parts if PLAN.gathered else 0))
    misses = 1
    if PLAN.has_cache and PLAN.compare != COMPARE_FEATURES:
        misses = _count_misses(
            inputs, strides, rows_ptr, last_ptr, first, end, leads, cache, n_inputs, n_rows,
            n_slots, scratch_ptr, PLAN,
        )  # fmt: skip
    if PLAN.encodes_all or misses > 0:
        position = row_tile * ROWS + tl.arange(0, ROWS)
        wanted = position < (n_rows if PLAN.encodes_all else n_sequences)
        input_row, exists = find_input_row(
            rows_ptr, None if PLAN.encodes_all else last_ptr, position, wanted, n_inputs, n_rows
        )
        column = column_tile * PLAN.tiles.columns + tl.arange(0, PLAN.tiles.columns)
        g = encode_tile(
            inputs, strides, input_row, exists, norm_weight_ptr, fc_weight_ptr, fc_bias_ptr, column,
            PLAN,
        )  # fmt: skip
        if PLAN.encodes_all:
            _store_features(g, features_ptr, position, wanted, column, PLAN)
        if misses > 0:
            if row_tile == 0:
                warm_l2(weights, biases, actions_ptr, column_tile, PLAN)
            _multiply_first_layer(
                g, row_tile * ROWS, column_tile, column, first, end,
                last_ptr if shares_ticket else None, n_rows, weights[0], scratch_ptr, PLAN,
            )  # fmt: skip
    if is_last_program(column_tile, row_tiles, first, end, misses, ticket_ptr, scratch_ptr, PLAN):
        for start in range(first, end, PLAN.group):
            decide(
                None, start, end, weights, biases, actions_ptr, cache, None, n_slots, outputs,
                (temperature, seed_low, seed_high, offset_low, offset_high), scratch_ptr, PLAN,
            )  # fmt: skip


@triton.jit
def _count_misses(
    inputs, strides, rows_ptr, last_ptr, first, end, leads, cache, n_inputs, n_rows, n_slots,
    scratch_ptr, PLAN: tl.constexpr,
):  # fmt: skip
    """Count the sequences first..end - 1 whose action is not kept, if known before products."""
    misses = 0
    for start in range(first, end, PLAN.group):
        sequence = start + tl.arange(0, PLAN.group)
        active = sequence < end
        input_row, readable = find_input_row(rows_ptr, last_ptr, sequence, active, n_inputs, n_rows)
        _, _, hit, _ = hold_in_advance(
            inputs, strides, input_row, readable, sequence, active, leads, cache, n_slots,
            scratch_ptr, PLAN,
        )  # fmt: skip
        misses += tl.sum((active & ~hit).to(tl.int32), axis=0)
    return misses


@triton.jit
def _store_features(g, features_ptr, position, wanted, column, PLAN: tl.constexpr):
    """Write g (R, C) to the rows that are wanted, in the features' dtype."""
    row_ptr = features_ptr + position.to(tl.int64)[:, None] * PLAN.policy.features
    inside = wanted[:, None] & (column < PLAN.policy.features)[None, :]
    tl.store(row_ptr + column[None, :], g.to(features_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _multiply_first_layer(
    g, first_row, column_tile, column, first, end, last_ptr, n_rows, weight_ptr, scratch_ptr,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Write this program's partial sums of the first layer for sequences whose row it has."""
    ROWS: tl.constexpr = PLAN.tiles.rows
    features: tl.constexpr = PLAN.policy.features
    width: tl.constexpr = PLAN.policy.widths[0]
    for sequence in range(first, end):
        number = tl.cast(sequence, tl.int64)
        position = number
        exists = True
        if last_ptr is not None:
            # As in `find_input_row`: rows that do not exist are NaN.
            position = tl.load(last_ptr + sequence)
            exists = (position >= 0) & (position < n_rows)
            position = tl.where(exists, position, 0)
        if (position >= first_row) & (position < first_row + ROWS):
            chosen = tl.arange(0, ROWS) == position - first_row
            row = tl.sum(tl.where(chosen[:, None], g, 0.0), axis=0)
            row = tl.where(exists, row, float("nan"))
            row_ptr = scratch_ptr + number * PLAN.scratch
            if PLAN.compare == COMPARE_FEATURES:
                tl.store(row_ptr + PLAN.compared_at + column, row, mask=column < features)
            for start in range(0, width, PLAN.block_shared):
                output = start + tl.arange(0, PLAN.block_shared)
                weight = tl.load(
                    weight_ptr + output[:, None] * features + column[None, :],
                    mask=(output < width)[:, None] & (column < features)[None, :],
                    other=0.0,
                ).to(tl.float32)
                partial = tl.sum(weight * tl.where(column < features, row, 0.0)[None, :], axis=1)
                if PLAN.gathered:
                    part_ptr = row_ptr + PLAN.gathers_at + column_tile * width + output
                else:
                    part_ptr = row_ptr + output * PLAN.stride + column_tile
                tl.store(part_ptr, partial, mask=output < width)


def prepare_fused_encode(
    weights: Any,
    inputs: tuple[Tensor, Tensor, Tensor],
    rows: Tensor | None,
    last: Tensor | None,
    cache: Any,
    slots: Tensor | None,
    draw: tuple[float, int, int],
    *,
    return_features: bool,
    tiles: Tiles | None = None,
) -> tuple[Launch, Decisions]:
    """Allocate outputs and prepare a launch. Arguments are not checked.

    Args:
        weights: ``PolicyWeights`` with an FC.
        inputs: low, mid and high, each (B, k).
        rows: (N,) int64 rows of the inputs, or None for all.
        last: (S,) int64 index into the N rows, or None for all.
        cache: ``ActionCache``, or None.
        slots: (S,) int64 slots, or None.
        draw: temperature, seed, offset.
        return_features: whether to return g of all N rows.
        tiles: tiles to use instead of the stored ones.
    """
    count = inputs[0].shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    multiplied = count if return_features else sequences
    plan = plan_of(
        weights, inputs[0], multiplied, sequences, cache, draw[0] > 0, return_features, tiles
    )
    decisions = Decisions.empty(weights, sequences, inputs[0].device)
    if return_features:
        decisions.features = inputs[0].new_empty((count, plan.policy.features))
    scratch, tickets = workspace(inputs[0].device, sequences * plan.scratch)
    arguments = {
        "inputs": inputs,
        "rows_ptr": rows,
        "last_ptr": last,
        "norm_weight_ptr": weights.norm_weight,
        "fc_weight_ptr": weights.fc_weight,
        "fc_bias_ptr": weights.fc_bias,
        "features_ptr": decisions.features,
        "scratch_ptr": scratch,
        "ticket_ptr": tickets,
        "n_inputs": inputs[0].shape[0],
        "n_rows": count,
        **shared_arguments(weights, inputs, sequences, cache, slots, decisions, draw),
    }
    grid = (plan.programs, -(-multiplied // plan.tiles.rows))
    return Launch(_fused_encode_kernel, grid, arguments, plan), decisions
