"""One launch after each pass of a draft: survivals, the best rows and their tree, the stop flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl
from torch import Tensor

import eaglerl._C as C
from eaglerl.kernels._launch import Launch
from eaglerl.kernels._selection_plan import selection_plan
from eaglerl.kernels._selection_rules import (
    LAST_INDEX,
    LEAST_LOGIT,
    LOGIT_BITS,
    LONGEST_MATCH,
    ONE_RATIO,
    RATIO_BITS,
    RECORD_WORDS,
    SURE,
    SURVIVAL_BITS,
    clamp_logit,
    confidence_of,
    index_of,
    load_limits,
    make_key,
    score_order,
    score_word,
    survival_of,
)

# Words of a record.
_LEVELS, _STOPPED, _NODES, _ADDED, _INSIDE, _EXPECTED, _PROMISED, _PASS_COST = (
    tl.constexpr(C.selection_constants[f"{name}_word"])
    for name in (
        "levels", "stopped", "nodes", "added", "inside", "expected", "promised", "pass_cost",
    )
)  # fmt: skip


@triton.jit(do_not_specialize=["level"])
def _select_draft_nodes_kernel(
    state, rows, keys_ptr, tables, rule_ptr, drafted, limits_ptr, level, PLAN: tl.constexpr
):  # fmt: skip
    """Grid: slots."""
    slot = tl.program_id(0).to(tl.int64)
    record_ptr = state[0] + slot * RECORD_WORDS
    # A level that was left out is not taken: its parents' places are not known.
    going = (level == 0) | (
        (tl.load(record_ptr + _STOPPED) == 0) & (tl.load(record_ptr + _LEVELS) == level)
    )
    if going:
        _take_level(slot, state, rows, keys_ptr, tables, rule_ptr, drafted, limits_ptr, level, PLAN)


@triton.jit
def _take_level(
    slot, state, rows, keys_ptr, tables, rule_ptr, drafted, limits_ptr, level, PLAN: tl.constexpr
):  # fmt: skip
    rule_ptr += slot * PLAN.layout.words
    keys_ptr += slot * PLAN.lanes
    record_ptr = state[0] + slot * RECORD_WORDS
    roots_ptr, ids_ptr, log_probs_ptr, matches_ptr, counts_ptr, lookup_ids_ptr = drafted
    count = tl.where(level == 0, PLAN.top_k, PLAN.top_k * PLAN.top_k)
    ids_ptr += slot * count
    log_probs_ptr += slot * count
    lookup_ids_ptr += slot * PLAN.lookup
    match = tl.minimum(tl.maximum(tl.load(matches_ptr + slot), 0), LONGEST_MATCH).to(tl.int32)
    most_rows, most_passes, width, most_offered = PLAN.rows, PLAN.depth, PLAN.top_k, PLAN.lookup
    if PLAN.limited:
        most_rows, most_passes, width, most_offered = load_limits(limits_ptr, slot, PLAN)
    offered = tl.minimum(tl.maximum(tl.load(counts_ptr + slot), 0), most_offered).to(tl.int32)
    offered = tl.where(match > 0, offered, 0)
    # Read before this level is stored: that of an earlier launch.
    first_score = tl.load(log_probs_ptr, mask=level == 0, other=0.0)
    first_score += tl.load(state[1] + slot * PLAN.pool, mask=level > 0, other=0.0)

    lane = tl.arange(0, PLAN.new)
    possible = lane < count
    if PLAN.limited:
        possible &= (lane % PLAN.top_k < width) & (lane // PLAN.top_k < width)
    survival, score, found, found_logit = _score_level(
        slot, state, tables, rule_ptr, ids_ptr, log_probs_ptr, lookup_ids_ptr, possible, match,
        offered, level, PLAN,
    )  # fmt: skip
    begin = _level_begin(level, PLAN)
    key = tl.where(possible, make_key(survival, begin + lane), -1)
    tl.store(keys_ptr + PLAN.kept + lane, key)

    # Leading looked-up tokens that candidates hold.
    inside = tl.where(level == 0, 0, tl.load(record_ptr + _INSIDE))
    inside = tl.minimum(tl.maximum(inside, 0), level)
    holder = _pool_index(state[5] + slot * (PLAN.depth + 1) + tl.maximum(inside - 1, 0), PLAN)
    holder_logit = tl.load(state[4] + slot * PLAN.pool + tl.maximum(holder, 0))
    is_found = (inside == level) & (found >= 0)
    inside = tl.where(is_found, level + 1, inside)
    holder = tl.where(is_found, found, tl.where(inside > 0, holder, -1))
    holder_logit = tl.where(is_found, found_logit, holder_logit)
    _score_lookup(
        tables, rule_ptr, keys_ptr, match, offered, inside, holder_logit, first_score, PLAN
    )
    tl.store(record_ptr + _LEVELS, level + 1)
    tl.store(record_ptr + _INSIDE, inside)
    # Other threads read what this level has stored, and the keys.
    tl.debug_barrier()

    chosen, worst = _choose(record_ptr, rule_ptr, keys_ptr, level, most_rows, PLAN)
    tl.debug_barrier()
    _write_rows(
        slot, state, rows, roots_ptr, lookup_ids_ptr, keys_ptr, chosen, inside, holder, PLAN
    )
    _expand_best(slot, state, ids_ptr, score, possible, begin, width, PLAN)
    _decide(
        record_ptr, rule_ptr, survival, possible, chosen, worst, level, most_rows, most_passes,
        width, PLAN,
    )  # fmt: skip


@triton.jit
def _level_begin(level, PLAN: tl.constexpr):
    return tl.where(level == 0, 0, PLAN.top_k + (level - 1) * PLAN.top_k * PLAN.top_k)


@triton.jit
def _pool_index(address, PLAN: tl.constexpr):
    """Read a candidate, or -1, from memory that anyone may have written to."""
    return tl.minimum(tl.maximum(tl.load(address), -1), PLAN.pool - 1)


@triton.jit
def _score_level(
    slot, state, tables, rule_ptr, ids_ptr, log_probs_ptr, lookup_ids_ptr, possible, match, offered,
    level, PLAN: tl.constexpr,
):  # fmt: skip
    """Add the candidates of a level; return their survivals and scores (NEW,).

    Also the candidate that holds the looked-up token, or -1, and its logit. Children that are not
    possible get the least logit.
    """
    scores_ptr = state[1] + slot * PLAN.pool
    pool_ids_ptr = state[2] + slot * PLAN.pool
    parents_ptr = state[3] + slot * PLAN.pool
    logits_ptr = state[4] + slot * PLAN.pool
    lookup_nodes_ptr = state[5] + slot * (PLAN.depth + 1)
    frontier_ptr = state[6] + slot * 3 * PLAN.top_k
    lane = tl.arange(0, PLAN.new)
    below = level > 0
    begin = _level_begin(level, PLAN)
    active = lane < tl.where(below, PLAN.top_k * PLAN.top_k, PLAN.top_k)
    # Of a scalar and a block of conditions, the interpreter makes whole numbers.
    expands = active & (lane * 0 + level > 0)
    parent = tl.load(frontier_ptr + lane // PLAN.top_k, mask=expands, other=0).to(tl.int32)
    parent = tl.minimum(tl.maximum(parent, _level_begin(tl.maximum(level - 1, 0), PLAN)), begin - 1)
    parent = tl.where(expands, parent, -1)
    token = tl.load(ids_ptr + lane, mask=active, other=-1)
    log_prob = tl.load(log_probs_ptr + lane, mask=active, other=0.0)
    above = tl.load(scores_ptr + parent, mask=expands, other=0.0)
    score = tl.where(below, above + log_prob, log_prob)

    holder = tl.where(below, _pool_index(lookup_nodes_ptr + tl.maximum(level - 1, 0), PLAN), -1)
    reached = (level < offered) & ((level == 0) | (holder >= 0))
    wanted = tl.load(lookup_ids_ptr + level, mask=reached, other=0)
    is_reached = lane * 0 + reached.to(tl.int32) > 0
    agrees = possible & is_reached & (parent == holder) & (token == wanted)
    first = tl.min(tl.where(agrees, lane, PLAN.new), 0)
    agrees &= lane == first
    found = tl.where(first < PLAN.new, begin + first, -1)

    confidence = confidence_of(tables[0], score)
    rules: tl.constexpr = PLAN.layout
    logit = tl.load(rule_ptr + rules.bias)
    logit += (tl.load(rule_ptr + rules.confidence) * confidence) >> LOGIT_BITS
    logit += (tl.load(rule_ptr + rules.surplus) * tl.maximum(confidence, 0)) >> LOGIT_BITS
    logit += tl.load(rule_ptr + rules.level) * level
    agree = tl.load(rule_ptr + rules.agree + match)
    disagree = tl.load(rule_ptr + rules.disagree + match)
    logit += tl.where(match > 0, tl.where(agrees, agree, disagree), 0)
    logit = clamp_logit(logit)
    limit = tl.load(logits_ptr + parent, mask=expands, other=0)
    logit = tl.where(below, tl.minimum(logit, limit), logit)
    if PLAN.limited:
        logit = tl.where(possible, logit, LEAST_LOGIT)

    node = begin + lane
    tl.store(scores_ptr + node, score, mask=active)
    tl.store(pool_ids_ptr + node, token, mask=active)
    tl.store(parents_ptr + node, parent, mask=active)
    tl.store(logits_ptr + node, logit, mask=active)
    tl.store(lookup_nodes_ptr + level, found)
    found_logit = tl.sum(tl.where(agrees, logit, 0), 0)
    return survival_of(tables[1], logit), score, found, found_logit


@triton.jit
def _score_lookup(
    tables, rule_ptr, keys_ptr, match, offered, inside, holder_logit, first_score,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store the keys of looked-up tokens that no candidate holds."""
    rules: tl.constexpr = PLAN.layout
    end = tl.minimum(offered, tl.load(rule_ptr + rules.most_levels))
    drafted = tl.where(inside > 0, tl.load(rule_ptr + rules.tail_inside), 0)
    beside = (tl.load(rule_ptr + rules.tail_score) * score_word(first_score)) >> LOGIT_BITS
    reached = tl.where(inside > 0, survival_of(tables[1], holder_logit), SURE).to(tl.int64)
    for token in range(PLAN.lookup):
        logit = tl.load(rule_ptr + rules.tail + match * PLAN.lookup + token) + drafted
        logit += tl.where(token == inside, beside, 0)
        taken = (token >= inside) & (token < end)
        next_reached = (reached * survival_of(tables[1], logit).to(tl.int64)) >> SURVIVAL_BITS
        reached = tl.where(taken, next_reached, reached)
        key = tl.where(taken, make_key(reached, end * 0 + PLAN.pool + token), -1)
        tl.store(keys_ptr + PLAN.kept + PLAN.new + token, key)


@triton.jit
def _choose(record_ptr, rule_ptr, keys_ptr, level, most_rows, PLAN: tl.constexpr):
    """Sort the keys and keep the best; return how many rows pay, and the worst one's survival."""
    lane = tl.arange(0, PLAN.lanes)
    stored: tl.constexpr = PLAN.kept + PLAN.new + PLAN.lookup
    key = tl.load(keys_ptr + lane, mask=lane < stored, other=-1)
    # Looked-up tokens of the pass before are scored anew.
    is_kept = lane < PLAN.kept
    begins = lane * 0 + level == 0
    gone = is_kept & (begins | (index_of(key) >= PLAN.pool))
    key = tl.where(gone, -1, key)
    key = tl.sort(key, descending=True)
    # All threads have read the keys.
    tl.debug_barrier()
    tl.store(keys_ptr + lane, key, mask=is_kept)

    survival = tl.where(key >= 0, key >> 32, 0).to(tl.int32)
    sums = tl.cumsum(survival, 0)
    price_ptr = rule_ptr + PLAN.layout.price
    allowed = (key >= 0) & (lane + 1 < most_rows)
    price = tl.load(price_ptr + lane + 1, mask=allowed, other=0)
    value = tl.where(allowed, sums - price, -(2**30))
    best = tl.max(value, 0)
    count = tl.min(tl.where(allowed & (value == best), lane + 1, PLAN.lanes), 0)
    count = tl.where(best > -tl.load(price_ptr), count, 0)
    expected = tl.sum(tl.where(lane < count, survival, 0), 0)
    worst = tl.sum(tl.where(lane == count - 1, survival, 0), 0)
    tl.store(record_ptr + _EXPECTED, expected)
    return count, tl.where(count > 0, worst, SURE)


@triton.jit
def _write_rows(
    slot, state, rows, roots_ptr, lookup_ids_ptr, keys_ptr, chosen, inside, holder,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Write the tree of the first keys: rows in the order of their indices, behind the root."""
    lane = tl.arange(0, PLAN.row_lanes)
    is_chosen = lane < chosen
    key = tl.load(keys_ptr + lane, mask=is_chosen, other=0)
    index = tl.where(is_chosen, index_of(key), LAST_INDEX)
    before = (index[None, :] < index[:, None]) & is_chosen[None, :]
    row = 1 + tl.sum(before.to(tl.int32), 1)

    is_node = is_chosen & (index < PLAN.pool)
    is_text = is_chosen & (index >= PLAN.pool)
    looked_up = tl.where(is_text, index - PLAN.pool, 0)
    parent = tl.load(state[3] + slot * PLAN.pool + index, mask=is_node, other=-1)
    parent = tl.where(is_text, tl.where(looked_up == inside, holder, index - 1), parent)
    above = (index[None, :] < parent[:, None]) & is_chosen[None, :]
    parent_row = tl.where(parent < 0, 0, 1 + tl.sum(above.to(tl.int32), 1))
    parent_row = tl.minimum(parent_row, row - 1)
    token = tl.load(state[2] + slot * PLAN.pool + index, mask=is_node, other=0)
    text = tl.load(lookup_ids_ptr + looked_up, mask=is_text, other=0)
    token = tl.where(is_text, text, token)
    level = 2 + (index - PLAN.top_k) // (PLAN.top_k * PLAN.top_k)
    level = tl.where(index < PLAN.top_k, 1, level)
    level = tl.where(is_text, looked_up + 1, level)

    ids_ptr, parents_ptr, levels_ptr, nodes_ptr, ancestors_ptr, enabled_ptr = rows
    first = slot * PLAN.rows
    parents_ptr += first
    tl.store(ids_ptr + first + row, token, mask=is_chosen)
    tl.store(parents_ptr + row, parent_row.to(tl.int64), mask=is_chosen)
    tl.store(levels_ptr + first + row, level.to(tl.int64), mask=is_chosen)
    tl.store(nodes_ptr + first + row, index, mask=is_chosen)
    # The root, and rows that are not used.
    other = (lane < PLAN.rows) & ((lane == 0) | (lane > chosen))
    root = tl.load(roots_ptr + slot)
    tl.store(ids_ptr + first + lane, root + tl.zeros_like(token), mask=other)
    tl.store(parents_ptr + lane, tl.zeros_like(token), mask=other)
    tl.store(levels_ptr + first + lane, (lane > 0).to(tl.int64), mask=other)
    tl.store(nodes_ptr + first + lane, tl.full((PLAN.row_lanes,), -1, tl.int32), mask=other)
    tl.store(enabled_ptr + first + lane, lane <= chosen, mask=lane < PLAN.rows)
    record_ptr = state[0] + slot * RECORD_WORDS
    added = tl.sum(is_text.to(tl.int32), 0)
    tl.store(record_ptr + _NODES, chosen - added)
    tl.store(record_ptr + _ADDED, added)

    # Other threads have stored the parents.
    tl.debug_barrier()
    inner = lane < PLAN.rows
    ancestors = lane[:, None] == lane[None, :]
    at = lane.to(tl.int64)
    for _ in range(PLAN.levels):
        at = tl.load(parents_ptr + at, mask=inner, other=0)
        ancestors |= at[:, None] == lane[None, :]
    place = (first + lane[:, None]) * PLAN.rows + lane[None, :]
    tl.store(ancestors_ptr + place, ancestors, mask=inner[:, None] & inner[None, :])


@triton.jit
def _expand_best(slot, state, ids_ptr, score, possible, begin, width, PLAN: tl.constexpr):
    """Store the candidates that the next pass expands: those of the largest scores."""
    frontier_ptr = state[6] + slot * 3 * PLAN.top_k
    lane = tl.arange(0, PLAN.new)
    key = tl.where(possible, make_key(score_order(score), lane), -(2**63))
    child = index_of(tl.sort(key, descending=True))
    if PLAN.limited:
        last = tl.sum(tl.where(lane == width - 1, child, 0), 0)
        child = tl.where(lane < width, child, last)
    best = lane < PLAN.top_k
    tl.store(frontier_ptr + lane, (begin + child).to(tl.int64), mask=best)
    token = tl.load(ids_ptr + child, mask=best, other=0)
    tl.store(frontier_ptr + PLAN.top_k + lane, token, mask=best)
    tl.store(frontier_ptr + 2 * PLAN.top_k + lane, (child // PLAN.top_k).to(tl.int64), mask=best)


@triton.jit
def _decide(
    record_ptr, rule_ptr, survival, possible, chosen, worst, level, most_rows, most_passes, width,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store whether further passes are ignored, and what they promise and cost."""
    rules: tl.constexpr = PLAN.layout
    lane = tl.arange(0, PLAN.new)
    best = tl.sort(tl.where(possible, survival, -1), descending=True)
    best = tl.where(lane < width, best, 0).to(tl.int64)
    price_ptr = rule_ptr + rules.price
    more = tl.minimum(chosen + width, most_rows - 1)
    added = tl.maximum(tl.load(price_ptr + more) - tl.load(price_ptr + chosen), 0)
    row_price = tl.where(more > chosen, added // tl.maximum(more - chosen, 1), worst)
    gain = tl.load(rule_ptr + rules.gain + level, mask=level < PLAN.depth, other=0)
    last = tl.minimum(most_passes, tl.load(rule_ptr + rules.most_levels) - 1)
    promised = tl.full((), 0, tl.int64)
    cost = tl.full((), 0, tl.int64)
    most = tl.full((), 0, tl.int64)
    cost_of_most = tl.full((), 0, tl.int64)
    ratio = tl.full((), ONE_RATIO, tl.int32)
    pays = tl.full((), 0, tl.int32)
    for following in range(PLAN.depth):
        within = (following >= level) & (following < last)
        step = tl.load(rule_ptr + rules.ratio + following)
        ratio = tl.where(within, (ratio * step) >> RATIO_BITS, ratio)
        hope = (best * ratio) >> RATIO_BITS
        hope = tl.where(lane < width, tl.maximum(hope - row_price, 0), 0)
        promised += tl.where(within, tl.sum(hope, 0), 0)
        cost += tl.where(within, tl.load(rule_ptr + rules.pass_price + following), 0)
        value = (promised * gain) >> RATIO_BITS
        better = within & ((following == level) | (value - cost > most - cost_of_most))
        most = tl.where(better, value, most)
        cost_of_most = tl.where(better, cost, cost_of_most)
        pays |= (within & (value > cost)).to(tl.int32)
    tl.store(record_ptr + _PROMISED, tl.minimum(most, LAST_INDEX).to(tl.int32))
    tl.store(record_ptr + _PASS_COST, tl.minimum(cost_of_most, LAST_INDEX).to(tl.int32))
    tl.store(record_ptr + _STOPPED, 1 - pays)


def prepare_select_draft_nodes(
    tensors: Sequence[Tensor],
    tables: Sequence[Tensor],
    rule: Tensor,
    sizes: Any,
    level: int,
    drafted: Sequence[Tensor],
    limits: Tensor | None = None,
) -> Launch:
    """Prepare a launch. Arguments are not checked.

    Args:
        tensors: those of a ``NodeSelection``.
        tables: confidences and survivals.
        rule: (S, words) int32.
        sizes: ``SelectionSizes``.
        level: the level that was drafted.
        drafted: roots, token_ids, log_probs, match lengths, counts and tokens of lookups.
        limits: (S, 4) int32, see ``select_draft_nodes``, or None.
    """
    arguments = {
        "state": tuple(tensors[:7]),
        "rows": tuple(tensors[7:-1]),
        "keys_ptr": tensors[-1],
        "tables": tuple(tables),
        "rule_ptr": rule,
        "drafted": tuple(drafted),
        "limits_ptr": limits,
        "level": level,
    }
    plan = selection_plan(sizes, limits is not None)
    return Launch(_select_draft_nodes_kernel, (len(rule),), arguments, plan)
