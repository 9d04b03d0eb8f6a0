"""What the next pass expands, and whether it pays."""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

from eaglerl.kernels._selection_load import PASS_COST, PROMISED, STOPPED, level_begin, pack
from eaglerl.kernels._selection_ranks import price_of
from eaglerl.kernels._selection_rules import LARGEST_WORD, ONE_RATIO, RATIO_BITS


@triton.jit
def store_frontier(
    slot, state, scratch_ptr, token, score, logit, homes, score_rank, expands, level,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store the candidates that the next pass expands: those of the largest scores."""
    frontier_ptr = state[6] + slot * 3 * PLAN.top_k + score_rank
    child = tl.arange(0, PLAN.lanes) - PLAN.kept
    index = level_begin(level, PLAN) + child
    tl.store(frontier_ptr, index.to(tl.int64), mask=expands)
    tl.store(frontier_ptr + PLAN.top_k, token, mask=expands)
    tl.store(frontier_ptr + 2 * PLAN.top_k, (child // PLAN.top_k).to(tl.int64), mask=expands)
    # What the next pass needs of a parent, in one word.
    _, place, _, _, _, stays = homes
    word = pack(score.to(tl.int32, bitcast=True), (logit << 9) + tl.where(stays, place, 0))
    tl.store(scratch_ptr + PLAN.scratch.frontier + score_rank, word, mask=expands)


@triton.jit
def repeat_last(slot, state, scratch_ptr, width, PLAN: tl.constexpr):
    """Fill places of the frontier behind the limit with the last one before it."""
    frontier_ptr = state[6] + slot * 3 * PLAN.top_k
    words_ptr = scratch_ptr + PLAN.scratch.frontier
    last = frontier_ptr + width - 1
    index = tl.load(last)
    token = tl.load(last + PLAN.top_k)
    parent = tl.load(last + 2 * PLAN.top_k)
    word = tl.load(words_ptr + width - 1)
    place = tl.arange(0, PLAN.new)
    behind = (place >= width) & (place < PLAN.top_k)
    zero = place.to(tl.int64) * 0
    tl.store(frontier_ptr + place, index + zero, mask=behind)
    tl.store(frontier_ptr + PLAN.top_k + place, token + zero, mask=behind)
    tl.store(frontier_ptr + 2 * PLAN.top_k + place, parent + zero, mask=behind)
    tl.store(words_ptr + place, word + zero, mask=behind)


@triton.jit
def following_shares(ratios, level, last, PLAN: tl.constexpr):
    """Return how much of this level's survivals the levels below it have, (DEPTH,)."""
    following = tl.arange(0, PLAN.depth_lanes)
    share = following * 0
    ratio = tl.full((), ONE_RATIO, tl.int32)
    # Each product is rounded down before the next.
    steps: tl.constexpr = PLAN.depth
    for step in tl.static_range(steps):
        factor = tl.sum(tl.where(following == step, ratios, 0), 0)
        ratio = tl.where((step >= level) & (step < last), (ratio * factor) >> RATIO_BITS, ratio)
        share = tl.where(following == step, ratio, share)
    return share


@triton.jit
def promise(
    record_ptr, survival, best, prices, share, chosen, worst, level, last, most_rows, width,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store whether further passes are ignored, and what they promise and cost.

    Args:
        record_ptr: record of the slot.
        survival: of the elements.
        best: which of them are the best of the new level.
        prices: see ``load_prices``.
        share: see ``following_shares``.
        chosen: rows beside the root.
        worst: survival of the last of them.
        level: of the pass.
        last: the pass after which none follows.
        most_rows: with the root.
        width: candidates that are expanded.
        PLAN: the constants.
    """
    price, passes, _, gain = prices
    more = tl.minimum(chosen + width, most_rows - 1)
    added = tl.maximum(price_of(price, more, PLAN) - price_of(price, chosen, PLAN), 0)
    row_price = tl.where(more > chosen, added // tl.maximum(more - chosen, 1), worst)
    following = tl.arange(0, PLAN.depth_lanes)
    within = (following >= level) & (following < last)
    hope = ((survival[None, :] * share[:, None]) >> RATIO_BITS) - row_price
    hope = tl.where(best[None, :] & within[:, None], tl.maximum(hope, 0), 0)
    promised = tl.cumsum(tl.sum(hope, 1), 0).to(tl.int64)
    cost = tl.cumsum(tl.where(within, passes, 0).to(tl.int64), 0)
    value = (promised * gain) >> RATIO_BITS
    # The first of the largest differences.
    lowest: tl.constexpr = -(2**40)
    net = tl.where(within, value - cost, lowest)
    code = net * PLAN.depth_lanes + (PLAN.depth_lanes - 1 - following)
    top = tl.max(code, 0)
    is_top = within & (code == top)
    most = tl.sum(tl.where(is_top, value, 0), 0)
    cost_of_most = tl.sum(tl.where(is_top, cost, 0), 0)
    tl.store(record_ptr + PROMISED, tl.minimum(most, LARGEST_WORD).to(tl.int32))
    tl.store(record_ptr + PASS_COST, tl.minimum(cost_of_most, LARGEST_WORD).to(tl.int32))
    tl.store(record_ptr + STOPPED, (most <= cost_of_most).to(tl.int32))
