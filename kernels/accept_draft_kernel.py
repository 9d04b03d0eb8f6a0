"""One launch after each verification: the accepted path, and the lookup behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl
from torch import Tensor

import eaglerl._C as C
from eaglerl.kernels._accept_plan import accept_plan
from eaglerl.kernels._launch import Launch

_FACTOR, _MASK, _SHIFT, _SHORTEST, _CLOSED = (
    tl.constexpr(C.ngram_constants[name])
    for name in ("factor", "mask", "shift", "shortest", "closed")
)
# Columns of the ancestors that are looked at together: 256 rows take 32 registers of a thread.
_CHUNK = tl.constexpr(16)


@triton.jit
def _accept_draft_kernel(tree, accepted, table, PLAN: tl.constexpr):
    """Grid: slots."""
    slot = tl.program_id(0).to(tl.int64)
    _, _, levels_ptr, ancestors_ptr, _, choices_ptr = tree
    rows_ptr, counts_ptr, token_ids_ptr = accepted
    first = slot * PLAN.rows
    rows_ptr += slot * PLAN.longest
    token_ids_ptr += slot * PLAN.longest
    row = tl.arange(0, PLAN.row_lanes)
    inner = row < PLAN.rows
    level = tl.load(levels_ptr + first + row, mask=inner, other=0)
    # Triton 3.6 takes names of constants as a shape, but no attributes.
    ROWS: tl.constexpr = PLAN.row_lanes
    PATH: tl.constexpr = PLAN.path_lanes
    misses = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, PLAN.rows, _CHUNK):
        column = begin + tl.arange(0, _CHUNK)
        missed = _misses(slot, tree, column, PLAN)
        place = (first + row[:, None]) * PLAN.rows + column[None, :]
        within = inner[:, None] & (column[None, :] < PLAN.rows)
        above = tl.load(ancestors_ptr + place, mask=within, other=0).to(tl.int32)
        misses += tl.sum(tl.where(above != 0, missed[None, :], 0), 1)

    place = tl.arange(0, PLAN.path_lanes)
    on_path = place < PLAN.longest
    tl.store(rows_ptr + place, tl.zeros((PATH,), tl.int64), mask=on_path)
    tl.debug_barrier()
    taken = inner & (row > 0) & (misses == 0) & (level > 0) & (level < PLAN.longest)
    tl.store(rows_ptr + level, row.to(tl.int64), mask=taken)
    count = tl.minimum(1 + tl.sum(taken.to(tl.int32), 0), PLAN.longest)
    tl.store(counts_ptr + slot, count.to(tl.int64))
    tl.debug_barrier()
    path = tl.load(rows_ptr + place, mask=on_path, other=0)
    # Outputs may share memory, so this need not be what was stored.
    path = tl.minimum(tl.maximum(path, 0), PLAN.rows - 1)
    token = tl.load(choices_ptr + first + path, mask=on_path, other=0)
    tl.store(token_ids_ptr + place, token, mask=on_path)
    TABLE: tl.constexpr = PLAN.table
    if TABLE is not None:
        tl.debug_barrier()
        _extend(slot, table, token_ids_ptr, count, TABLE)


@triton.jit
def _misses(slot, tree, row, PLAN: tl.constexpr):
    """Return 1 for rows that are not the choice of their parent's row, 0 for others."""
    ids_ptr, parents_ptr, _, _, enabled_ptr, choices_ptr = tree
    first = slot * PLAN.rows
    inner = row < PLAN.rows
    parent = tl.load(parents_ptr + first + row, mask=inner, other=0)
    parent = tl.minimum(tl.maximum(parent, 0), PLAN.rows - 1)
    choice = tl.load(choices_ptr + first + parent, mask=inner, other=0)
    token = tl.load(ids_ptr + first + row, mask=inner, other=0)
    enabled = tl.load(enabled_ptr + first + row, mask=inner, other=0).to(tl.int32)
    fits = (row == 0) | ((token == choice) & (enabled != 0))
    return tl.where(fits, 0, 1)


# Prompts come in any width: a kernel for each would be compiled between two cycles.
@triton.jit(do_not_specialize=["width"])
def _extend_ngrams_kernel(table, token_ids_ptr, counts_ptr, width, PLAN: tl.constexpr):
    """Grid: slots."""
    slot = tl.program_id(0).to(tl.int64)
    # In 32 bits only what fits: of a number below -2^31, the low word may be positive.
    count = tl.minimum(tl.maximum(tl.load(counts_ptr + slot), 0), width).to(tl.int32)
    TABLE: tl.constexpr = PLAN.table
    _extend(slot, table, token_ids_ptr + slot * width, count, TABLE)


@triton.jit
def _extend(slot, table, tokens_ptr, count, PLAN: tl.constexpr):
    """Append tokens to a text, and look up what its end proposes."""
    _, lengths_ptr, _, matches_ptr, counts_ptr, _ = table
    length = tl.load(lengths_ptr + slot)
    if count > 0:
        if (length < 0) | (length > PLAN.capacity) | (count > PLAN.capacity - length):
            tl.store(lengths_ptr + slot, tl.full((), _CLOSED, tl.int64))
            tl.store(matches_ptr + slot, tl.full((), 0, tl.int64))
            tl.store(counts_ptr + slot, tl.full((), 0, tl.int64))
        else:
            _append(slot, table, tokens_ptr, count, length, PLAN)


@triton.jit
def _append(slot, table, tokens_ptr, count, length, PLAN: tl.constexpr):
    texts_ptr, lengths_ptr, ends_ptr, matches_ptr, counts_ptr, proposed_ptr = table
    texts_ptr += slot * PLAN.capacity
    lane = tl.arange(0, PLAN.order_lanes)
    order = lane + _SHORTEST
    ends_ptr += slot * PLAN.orders * PLAN.places + lane * PLAN.places
    match = tl.full((), 0, tl.int64)
    match_end = tl.full((), 0, tl.int64)
    for index in range(count):
        tl.store(texts_ptr + length, tl.load(tokens_ptr + index))
        length += 1
        # Other threads read the token, and what the last step has put into the tables.
        tl.debug_barrier()
        before = _put(texts_ptr, ends_ptr, lane, order, length, PLAN)
        found = tl.where(before > 0, order, 0).to(tl.int64)
        match = tl.max(found, 0)
        match_end = tl.sum(tl.where((found == match) & (before > 0), before, 0), 0)
    if PLAN.proposed == 0:
        match = tl.full((), 0, tl.int64)
    tl.store(lengths_ptr + slot, length)
    tl.store(matches_ptr + slot, match)
    tl.store(counts_ptr + slot, tl.where(match > 0, PLAN.proposed, 0).to(tl.int64))
    place = tl.arange(0, PLAN.proposed_lanes)
    wanted = place * 0 + match > 0
    wanted &= place < PLAN.proposed
    gap = tl.maximum(length - match_end, 1)
    token = tl.load(texts_ptr + match_end + place % gap, mask=wanted, other=0)
    tl.store(proposed_ptr + slot * PLAN.proposed + place, token, mask=wanted)


@triton.jit
def _put(texts_ptr, ends_ptr, lane, order, length, PLAN: tl.constexpr):
    """Put the n-grams at the end of a text into their tables; return where they ended before."""
    ORDER: tl.constexpr = PLAN.order_lanes
    hashed = tl.zeros((ORDER,), tl.int64)
    for back in range(1, PLAN.orders + _SHORTEST):
        word = tl.load(texts_ptr + length - back, mask=back <= length, other=0) & _MASK
        hashed = tl.where(order >= back, (hashed * _FACTOR + word + 1) & _MASK, hashed)
    place = (hashed ^ (hashed >> _SHIFT)) & (PLAN.places - 1)
    looking = (lane < PLAN.orders) & (order <= length)
    before = tl.zeros((ORDER,), tl.int64)
    tried = 0
    # Anyone may have written to the tables: a full one ends the search where it began.
    while (tl.sum(looking.to(tl.int32), 0) > 0) & (tried < PLAN.places):
        other = tl.load(ends_ptr + place, mask=looking, other=0).to(tl.int64)
        taken = looking & (other >= order) & (other < length)
        same = taken
        for back in range(1, PLAN.orders + _SHORTEST):
            ours = tl.load(texts_ptr + length - back, mask=back <= length, other=0)
            theirs = tl.load(texts_ptr + other - back, mask=taken & (order >= back), other=0)
            same = same & ((order < back) | (theirs == ours))
        found = looking & (same | (taken == 0))
        before = tl.where(found & taken, other, before)
        # Each lane is held by several threads, of which one stores: all must have read the place.
        tl.debug_barrier()
        tl.store(ends_ptr + place, (lane * 0 + length).to(tl.int32), mask=found)
        looking = looking & (found == 0)
        place = (place + 1) & (PLAN.places - 1)
        tried += 1
    return before


def prepare_accept_draft(
    tree: Sequence[Tensor], accepted: Sequence[Tensor], table: Sequence[Tensor], sizes: Any
) -> Launch:
    """Prepare a launch. Arguments are not checked.

    Args:
        tree: token_ids, parents, levels, ancestors, enabled and choices.
        accepted: rows, counts and token_ids.
        table: those of an ``NgramTable``; empty for none.
        sizes: ``TableSizes``; None for none.
    """
    arguments = {
        "tree": tuple(tree),
        "accepted": tuple(accepted),
        "table": tuple(table) if sizes is not None else None,
    }
    plan = accept_plan(tree[0].shape[1], accepted[0].shape[1], sizes)
    return Launch(_accept_draft_kernel, (len(tree[0]),), arguments, plan)


def prepare_extend_ngrams(
    table: Sequence[Tensor], token_ids: Tensor, counts: Tensor, sizes: Any
) -> Launch:
    """Prepare a launch. Arguments are not checked.

    Args:
        table: those of an ``NgramTable``.
        token_ids: (S, P) int64.
        counts: (S,) int64.
        sizes: ``TableSizes``.
    """
    arguments = {
        "table": tuple(table),
        "token_ids_ptr": token_ids,
        "counts_ptr": counts,
        "width": token_ids.shape[1],
    }
    plan = accept_plan(0, 0, sizes)
    return Launch(_extend_ngrams_kernel, (len(counts),), arguments, plan)
