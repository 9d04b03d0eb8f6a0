"""One launch after each pass of a draft: survivals, the best rows and their tree, the stop flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl
from torch import Tensor

from eaglerl.kernels._launch import Launch
from eaglerl.kernels._selection_load import (
    EXPECTED,
    INSIDE,
    LEVELS,
    STOPPED,
    level_begin,
    load_children,
    load_elements,
    load_lookup,
    load_prices,
    load_rule,
    load_tables,
    load_terms,
    terms_of,
)
from eaglerl.kernels._selection_plan import selection_plan
from eaglerl.kernels._selection_ranks import (
    add_before,
    choose,
    field_of,
    rank_scores,
    ranks_of,
)
from eaglerl.kernels._selection_rows import (
    indices_of,
    parents_of,
    place_elements,
    store_ancestors,
    store_kept,
    store_rows,
)
from eaglerl.kernels._selection_rules import RECORD_WORDS, load_limits
from eaglerl.kernels._selection_scores import (
    chain_lookup,
    find_agreeing,
    possible_children,
    score_elements,
    store_level,
)
from eaglerl.kernels._selection_stop import (
    following_shares,
    promise,
    repeat_last,
    store_frontier,
)

# Place of the ancestors among the tensors of a ``NodeSelection``.
_ANCESTORS = 11


@triton.jit(do_not_specialize=["level"])
def _select_draft_nodes_kernel(
    state, rows, scratch_ptr, tables, rule_ptr, drafted, limits_ptr, level, PLAN: tl.constexpr
):  # fmt: skip
    """Grid: slots."""
    slot = tl.program_id(0).to(tl.int64)
    rule_ptr += slot * PLAN.layout.words
    scratch_ptr += slot * PLAN.scratch.words
    record_ptr = state[0] + slot * RECORD_WORDS
    stopped = tl.load(record_ptr + STOPPED)
    levels = tl.load(record_ptr + LEVELS)
    limits = PLAN.rows, PLAN.depth, PLAN.top_k, PLAN.lookup
    if PLAN.limited:
        limits = load_limits(limits_ptr, slot, PLAN)
    lookup = load_lookup(slot, state, drafted, scratch_ptr, limits[3], level, PLAN)
    elements = load_elements(slot, drafted, scratch_ptr, level, PLAN)
    children = load_children(slot, state, drafted, level, PLAN)
    root = tl.load(drafted[0] + slot)
    values = load_tables(tables)
    prices = load_prices(rule_ptr, level, PLAN)
    rule = load_rule(slot, state, drafted, rule_ptr, level, PLAN)
    terms = load_terms(rule_ptr, PLAN)
    # A level that was left out is not taken: its parents' places are not known.
    if (level == 0) | ((stopped == 0) & (levels == level)):
        _take_level(
            slot, state, rows, scratch_ptr, record_ptr, limits, lookup, elements, children, root,
            values, prices, rule, terms, rule_ptr, level, PLAN,
        )  # fmt: skip


@triton.jit
def _take_level(
    slot, state, rows, scratch_ptr, record_ptr, limits, lookup, elements, children, root, values,
    prices, rule, terms, rule_ptr, level, PLAN: tl.constexpr,
):  # fmt: skip
    fields: tl.constexpr = PLAN.fields
    most_rows, most_passes, width, _ = limits
    held = lookup[4]
    order, token, _, above = elements
    lane = tl.arange(0, PLAN.lanes)
    possible = possible_children(lane - PLAN.kept, level, width, PLAN)
    score, logit, survival, first, inside = _score(
        slot, state, lookup, elements, children, values, rule, terms, rule_ptr, possible, width,
        level, PLAN,
    )  # fmt: skip
    total = add_before(survival, scratch_ptr, PLAN)
    rank_new, rank = field_of(total, fields.new, fields.old), ranks_of(total, PLAN)
    rank_kept = rank_new + field_of(total, fields.old, fields.order)
    count, worst, expected = choose(survival, rank, total, prices[0], most_rows, PLAN)
    score_rank = rank_scores(score, possible, scratch_ptr, PLAN)

    is_node = (survival >= 0) & (lane < PLAN.first_look)
    chosen, stays = (survival >= 0) & (rank < count), is_node & (rank_kept < PLAN.kept)
    parent = parents_of(order, above, held, first, inside, PLAN)
    homes = place_elements(chosen, stays, parent, inside, PLAN)
    # All threads have read the record, what the pass before has left, and the ranks.
    tl.debug_barrier()
    tl.store(record_ptr + LEVELS, level + 1)
    tl.store(record_ptr + INSIDE, inside)
    tl.store(record_ptr + EXPECTED, expected)
    index, at = indices_of(order, level, PLAN)
    store_rows(slot, record_ptr, rows, root, token, index, at, homes, count, PLAN)
    # Other threads have stored the parents of the rows. Until they arrive, there is other work.
    tl.debug_barrier()
    row = tl.arange(0, PLAN.row_lanes)
    row_parent = tl.load(rows[1] + slot * PLAN.rows + row, mask=row < PLAN.rows, other=0)
    holds, expands = possible & (lane - PLAN.kept == first), possible & (score_rank < width)
    store_kept(scratch_ptr, survival, token, index, held, homes, holds, first < PLAN.new, PLAN)
    store_frontier(
        slot, state, scratch_ptr, token, score, logit, homes, score_rank, expands, level, PLAN
    )
    if PLAN.limited:
        # Other threads have stored the last place.
        tl.debug_barrier()
        repeat_last(slot, state, scratch_ptr, width, PLAN)
    last = tl.minimum(most_passes, rule[5] - 1)
    share = following_shares(prices[2], level, last, PLAN)
    best = possible & (rank_new < width)
    promise(
        record_ptr, survival, best, prices, share, count, worst, level, last, most_rows, width, PLAN
    )
    store_ancestors(slot, rows, row_parent, PLAN)


@triton.jit
def _score(
    slot, state, lookup, elements, children, values, rule, terms, rule_ptr, possible, width, level,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Store the level's candidates; return scores, logits and survivals of the elements.

    Survivals are -1 where there is no element. Also the place of the candidate that holds the
    looked-up token, and how many leading looked-up tokens candidates hold.
    """
    match, offered, inside, holder, held, wanted = lookup
    order, token, _, _ = elements
    lane = tl.arange(0, PLAN.lanes)
    possible_new = possible_children(tl.arange(0, PLAN.new), level, width, PLAN)
    reached = (level < offered) & ((level == 0) | (holder >= 0)) & (inside == level)
    first = find_agreeing(children, possible_new, holder, wanted, reached, PLAN)
    is_found = first < PLAN.new
    inside = tl.where(is_found, level + 1, inside)
    holder = tl.where(is_found, level_begin(level, PLAN) + first, -1)
    tl.store(state[5] + slot * (PLAN.depth + 1) + level, holder)

    term = terms_of(terms, rule_ptr, match, first, PLAN)
    score, logit, survival = score_elements(
        elements, values, rule, term, inside, level, possible, PLAN
    )
    store_level(slot, state, token, children, score, logit, level, PLAN)
    end = tl.minimum(offered, rule[5])
    survival = chain_lookup(survival, first, inside, end, (held >> 32).to(tl.int32), PLAN)
    survival = tl.where(lane < PLAN.kept, (order >> 32).to(tl.int32), survival)
    is_text = (lane >= PLAN.first_look) & (lane < PLAN.elements)
    survival = tl.where((lane < PLAN.kept) | possible | is_text, survival, -1)
    return score, logit, survival, first, inside


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
        "scratch_ptr": tensors[-1],
        "tables": tuple(tables),
        "rule_ptr": rule,
        "drafted": tuple(drafted),
        "limits_ptr": limits,
        "level": level,
    }
    aligned = tensors[_ANCESTORS].data_ptr() % 4 == 0
    plan = selection_plan(sizes, limits is not None, aligned)
    return Launch(_select_draft_nodes_kernel, (len(rule),), arguments, plan)
