"""Ranks of the elements, and as many of the first ones as pay."""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

from eaglerl.kernels._selection_rules import SURE, SURVIVAL_BITS, score_order


@triton.jit
def field_of(total, FIRST: tl.constexpr, END: tl.constexpr):
    """Return the bits of a number from one to another."""
    return ((total >> FIRST) & ((2 ** (END - FIRST)) - 1)).to(tl.int32)


@triton.jit
def _chunk_of(values, first, END: tl.constexpr, LOWEST: tl.constexpr, PLAN: tl.constexpr):
    """Return some of the elements' numbers, for all threads; the lowest number from END on."""
    at = first + tl.arange(0, PLAN.chunk)
    chunk = tl.gather(values, tl.minimum(at, values.shape[0] - 1), 0)
    return tl.where(at < END, chunk, LOWEST)


@triton.jit
def add_before(survival, scratch_ptr, PLAN: tl.constexpr):
    """Return the sums over all elements of larger survival, or of equal survival and before.

    Args:
        survival: of the elements; -1 for none.
        scratch_ptr: scratch memory of the slot.
        PLAN: the constants.

    Returns:
        (LANES,) int64: ``RankFields``.
    """
    fields: tl.constexpr = PLAN.fields
    lane = tl.arange(0, PLAN.lanes)
    kind = tl.where(lane < PLAN.first_look, 2**fields.new, 1)
    kind = tl.where(lane < PLAN.kept, 2**fields.old, kind).to(tl.int64)
    if PLAN.counted:
        # Every thread compares its own element with all others, and no step waits for another.
        behind = tl.maximum(PLAN.elements - 1 - lane, 0).to(tl.int64)
        word = (survival.to(tl.int64) << fields.survival) + (behind << fields.order) + kind
        word = tl.where(survival >= 0, word, -1)
        total = word * 0
        for first in range(0, PLAN.elements, PLAN.chunk):
            other = _chunk_of(word, first, PLAN.elements, -1, PLAN)
            total += tl.sum(tl.where(other[:, None] > word[None, :], other[:, None], 0), 0)
        return total
    key = (survival.to(tl.int64) << 32) + (PLAN.lanes - 1 - lane)
    key = tl.sort(tl.where(survival >= 0, key, -1), descending=True)
    element = PLAN.lanes - 1 - (key & (PLAN.lanes - 1)).to(tl.int32)
    kind = tl.where(element < PLAN.first_look, 2**fields.new, 1)
    kind = tl.where(element < PLAN.kept, 2**fields.old, kind).to(tl.int64)
    word = tl.where(key >= 0, ((key >> 32) << fields.survival) + kind, 0)
    ranks_ptr = scratch_ptr + PLAN.scratch.ranks
    tl.store(ranks_ptr + element, tl.cumsum(word, 0) - word, mask=key >= 0)
    # Other threads have stored them.
    tl.debug_barrier()
    return tl.load(ranks_ptr + lane, mask=survival >= 0, other=0)


@triton.jit
def ranks_of(total, PLAN: tl.constexpr):
    """Return how many elements rank before each, given what ``add_before`` returns."""
    fields: tl.constexpr = PLAN.fields
    rank = field_of(total, 0, fields.new) + field_of(total, fields.new, fields.old)
    return rank + field_of(total, fields.old, fields.order)


@triton.jit
def rank_scores(score, possible, scratch_ptr, PLAN: tl.constexpr):
    """Return how many candidates of the level have a larger score than each element.

    Args:
        score: (LANES,) of the elements.
        possible: (LANES,) which of them are candidates of the level.
        scratch_ptr: scratch memory of the slot.
        PLAN: the constants.
    """
    # No two of these numbers are the same: of equal scores, the first one is the largest.
    lowest: tl.constexpr = -(2**63)
    place = tl.arange(0, PLAN.lanes) - PLAN.kept
    order = (score_order(score).to(tl.int64) << 32) + (PLAN.children - place)
    order = tl.where(possible, order, lowest)
    if PLAN.counted:
        own = order
        if PLAN.score_lanes < PLAN.lanes:
            lane = PLAN.kept + tl.arange(0, PLAN.score_lanes)
            own = tl.gather(order, tl.minimum(lane, PLAN.lanes - 1), 0)
        # Counted in float32, exactly: bits that are added up as whole numbers are compiled to a
        # shift and an or each, and a count of their word.
        # Triton 3.6 takes names of constants as a shape, but no attributes.
        SCORES: tl.constexpr = PLAN.score_lanes
        total = tl.zeros((SCORES,), tl.float32)
        for first in range(PLAN.kept, PLAN.first_look, PLAN.chunk):
            other = _chunk_of(order, first, PLAN.first_look, lowest, PLAN)
            total += tl.sum(tl.where(other[:, None] > own[None, :], 1.0, 0.0), 0)
        rank = total.to(tl.int32)
        if PLAN.score_lanes < PLAN.lanes:
            rank = tl.gather(rank, tl.minimum(tl.maximum(place, 0), PLAN.score_lanes - 1), 0)
        return rank
    lane = tl.arange(0, PLAN.new)
    child_order = tl.gather(order, tl.minimum(PLAN.kept + lane, PLAN.lanes - 1), 0)
    child_order = tl.where(lane < PLAN.children, child_order, lowest)
    key = tl.sort(child_order, descending=True)
    child = PLAN.children - (key & 0xFFFF).to(tl.int32)
    ranks_ptr = scratch_ptr + PLAN.scratch.ranks
    # All threads have read the ranks by survival.
    tl.debug_barrier()
    tl.store(ranks_ptr + child, lane.to(tl.int64), mask=key > lowest)
    tl.debug_barrier()
    within = (place >= 0) & (place < PLAN.children)
    return tl.load(ranks_ptr + place, mask=within, other=0).to(tl.int32)


@triton.jit
def choose(survival, rank, total, price, most_rows, PLAN: tl.constexpr):
    """Return how many elements pay, the worst one's survival, and all survivals added up.

    Args:
        survival: of the elements; -1 for none.
        rank: see ``ranks_of``.
        total: see ``add_before``.
        price: (ROWS,) of so many rows and the root.
        most_rows: with the root.
        PLAN: the constants.
    """
    count = tl.minimum(rank + 1, PLAN.row_lanes - 1)
    sums = (total >> PLAN.fields.survival).to(tl.int32) + survival
    allowed = (survival >= 0) & (rank + 1 < most_rows)
    value = tl.where(allowed, sums - tl.gather(price, count, 0), -(2**30))
    best = tl.max(value, 0)
    # The fewest rows of the best value, and the survival of the last of them.
    places: tl.constexpr = 2 ** (SURVIVAL_BITS + 1)
    last = tl.where(allowed & (value == best), (256 - count) * places + survival, -1)
    last = tl.max(last, 0)
    pays = best > -price_of(price, 0, PLAN)
    chosen = tl.where(pays, 256 - last // places, 0)
    worst = tl.where(pays, last & (places - 1), SURE)
    expected = tl.where(pays, best + price_of(price, chosen, PLAN), 0)
    return chosen, worst, expected


@triton.jit
def price_of(price, rows, PLAN: tl.constexpr):
    """Return the price of so many rows beside the root."""
    return tl.sum(tl.where(tl.arange(0, PLAN.row_lanes) == rows, price, 0), 0)
