"""The tree of the chosen elements, and what the next pass finds of them."""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

from eaglerl.kernels._selection_load import ADDED, NODES, level_begin, pack


@triton.jit
def indices_of(order, level, PLAN: tl.constexpr):
    """Return the indices of the elements, and their distances from the root."""
    lane = tl.arange(0, PLAN.lanes)
    text = lane - PLAN.first_look
    index = level_begin(level, PLAN) + lane - PLAN.kept
    index = tl.where(lane < PLAN.kept, (order & 0xFFFF).to(tl.int32), index)
    index = tl.where(text >= 0, PLAN.pool + text, index)
    at = tl.where(index < PLAN.top_k, 1, 2 + (index - PLAN.top_k) // PLAN.children)
    return index, tl.where(text >= 0, text + 1, at)


@triton.jit
def parents_of(order, above, held, first, inside, PLAN: tl.constexpr):
    """Return the elements above the elements; -1 for the root.

    Of looked-up tokens, it is the candidate that holds the last one that was drafted.
    """
    lane = tl.arange(0, PLAN.lanes)
    parent = tl.where(lane < PLAN.kept, (order >> 16).to(tl.int32) & 0xFFFF, above.to(tl.int32))
    # Places from 1, of which a pass keeps at most 255.
    parent = (parent & 0x1FF) - 1
    holder = (held & 0x1FF).to(tl.int32) - 1
    holder = tl.where(first < PLAN.new, PLAN.kept + first, holder)
    return tl.where(lane >= PLAN.first_look, tl.where(inside > 0, holder, -1), parent)


@triton.jit
def place_elements(chosen, stays, parent, inside, PLAN: tl.constexpr):
    """Return where the elements are written.

    Args:
        chosen: which elements are among the rows.
        stays: which are kept for the next pass.
        parent: see ``parents_of``.
        inside: leading looked-up tokens that candidates hold.
        PLAN: the constants.

    Returns:
        rows and places, from 1; the parents' rows and places, of which 0 is the root and none; and
        which elements have a row, and which a place.
    """
    # Elements are in the order of their indices, so rows and places are numbers of those before.
    both = chosen.to(tl.int32) + (stays.to(tl.int32) << 16)
    before = tl.cumsum(both, 0) - both
    row, place = 1 + (before & 0xFFFF), 1 + (before >> 16)
    # The scratch memory is the launch's own, but anyone may have written to it.
    chosen &= row < PLAN.rows
    stays &= place <= PLAN.kept
    home = tl.where(chosen, row, 0) + (tl.where(stays, place, 0) << 16)
    above = tl.gather(home, tl.minimum(tl.maximum(parent, 0), PLAN.lanes - 1), 0)
    above = tl.where(parent >= 0, above, 0)
    follows = tl.arange(0, PLAN.lanes) - PLAN.first_look > inside
    parent_row = tl.minimum(tl.where(follows, row - 1, above & 0xFFFF), row - 1)
    return row, place, parent_row, above >> 16, chosen, stays


@triton.jit
def store_rows(
    slot, record_ptr, rows, root, token, index, level, homes, count, PLAN: tl.constexpr
):  # fmt: skip
    """Write all of the tree but the ancestors."""
    ids_ptr, parents_ptr, levels_ptr, nodes_ptr, _, enabled_ptr = rows
    row, _, parent_row, _, chosen, _ = homes
    first = slot * PLAN.rows
    tl.store(ids_ptr + first + row, token, mask=chosen)
    tl.store(parents_ptr + first + row, parent_row.to(tl.int64), mask=chosen)
    tl.store(levels_ptr + first + row, level.to(tl.int64), mask=chosen)
    tl.store(nodes_ptr + first + row, index, mask=chosen)
    # The root, and rows that are not used.
    lane = tl.arange(0, PLAN.row_lanes)
    other = (lane < PLAN.rows) & ((lane == 0) | (lane > count))
    zero = lane.to(tl.int64) * 0
    tl.store(ids_ptr + first + lane, root + zero, mask=other)
    tl.store(parents_ptr + first + lane, zero, mask=other)
    tl.store(levels_ptr + first + lane, (lane > 0).to(tl.int64), mask=other)
    tl.store(nodes_ptr + first + lane, lane * 0 - 1, mask=other)
    tl.store(enabled_ptr + first + lane, lane <= count, mask=lane < PLAN.rows)
    if PLAN.lookup == 0:
        tl.store(record_ptr + NODES, count)
        tl.store(record_ptr + ADDED, 0)
    else:
        # The first looked-up token lies behind all candidates.
        is_first = tl.arange(0, PLAN.lanes) == PLAN.first_look
        tl.store(record_ptr + NODES + row * 0, row - 1, mask=is_first)
        tl.store(record_ptr + ADDED + row * 0, count - row + 1, mask=is_first)


@triton.jit
def store_kept(
    scratch_ptr, survival, token, index, held, homes, holds, is_found,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store what the next pass needs of the candidates."""
    _, place, _, parent_place, _, stays = homes
    scratch: tl.constexpr = PLAN.scratch
    order = pack(survival, (parent_place << 16) + index)
    tl.store(scratch_ptr + scratch.order + place - 1, order, mask=stays)
    tl.store(scratch_ptr + scratch.tokens + place - 1, token, mask=stays)
    if PLAN.lookup > 0:
        # A new holder, or the new place of the one before, which is that above the first token.
        holder = pack(survival, tl.where(stays, place, 0))
        tl.store(scratch_ptr + scratch.holder + place * 0, holder, mask=holds)
        is_first = tl.arange(0, PLAN.lanes) == PLAN.first_look
        is_first &= place * 0 + is_found.to(tl.int32) == 0
        holder = pack((held >> 32) + place * 0, parent_place)
        tl.store(scratch_ptr + scratch.holder + place * 0, holder, mask=is_first)


@triton.jit
def store_ancestors(slot, rows, parent, PLAN: tl.constexpr):
    """Write which rows are ancestors of which.

    Args:
        slot: of the draft.
        rows: the tree.
        parent: (ROWS,) the rows' parents; the root's is the root.
        PLAN: the constants.
    """
    lane = tl.arange(0, PLAN.row_lanes)
    parent = tl.minimum(tl.maximum(parent, 0), PLAN.row_lanes - 1).to(tl.int32)
    doublings: tl.constexpr = PLAN.doublings
    words: tl.constexpr = (PLAN.rows + 63) // 64
    for word in tl.static_range(words):
        # A bit for each of 64 rows, or of all if they are at most 32. What each row knows is
        # doubled: with its own ancestors up to a distance, it has those of the last of them.
        bit = lane - 64 * word
        one = lane * 0 + 1
        if PLAN.rows > 32:
            one = one.to(tl.int64)
        ancestors = tl.where((bit >= 0) & (bit < 64), one << (bit & 63), 0)
        at = parent
        for _ in tl.static_range(doublings):
            ancestors |= tl.gather(ancestors, at, 0)
            at = tl.gather(at, at, 0)
        _store_bits(rows[4] + slot * PLAN.rows * PLAN.rows, ancestors, word, PLAN)


@triton.jit
def _store_bits(flags_ptr, bits, WORD: tl.constexpr, PLAN: tl.constexpr):
    """Write the columns of 64 rows, of which every row has a bit each, as bytes.

    One row after the other: this way every warp can have the bits of all rows, if they are 32.
    """
    if PLAN.whole_words:
        # Four bits at a time: shifted copies of them have one bit in each byte.
        width: tl.constexpr = PLAN.rows // 4
        lanes: tl.constexpr = PLAN.row_lanes * min(PLAN.row_lanes, 64) // 4
        lane = tl.arange(0, lanes)
        columns: tl.constexpr = min(width, 16)
        row, column = lane // columns, lane % columns
        four = tl.gather(bits, tl.minimum(row, PLAN.row_lanes - 1), 0)
        four = ((four >> (4 * column)) & 15).to(tl.int32)
        four = (four * 0x204081) & 0x01010101
        within = (row < PLAN.rows) & (16 * WORD + column < width)
        words_ptr = flags_ptr.to(tl.pointer_type(tl.int32))
        tl.store(words_ptr + row * width + 16 * WORD + column, four, mask=within)
    else:
        lanes: tl.constexpr = PLAN.row_lanes * min(PLAN.row_lanes, 64)
        lane = tl.arange(0, lanes)
        columns: tl.constexpr = min(PLAN.rows, 64)
        row, column = lane // columns, lane % columns
        flag = (tl.gather(bits, tl.minimum(row, PLAN.row_lanes - 1), 0) >> column) & 1
        within = (row < PLAN.rows) & (64 * WORD + column < PLAN.rows)
        tl.store(flags_ptr + row * PLAN.rows + 64 * WORD + column, flag != 0, mask=within)
