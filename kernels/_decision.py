"""The start and the end of a decision: who needs one, and the part after the shared products."""

import triton
import triton.language as tl

from eaglerl.kernels._action_cache import (
    COMPARE_FEATURES,
    COMPARE_INPUT,
    COMPARE_SKETCH,
    NO_COMPARISON,
    RECORD_WORDS,
    compare,
    find_slot,
    is_in_time,
    keep_reference,
    load_counts,
    resembles,
    serve_hits,
)
from eaglerl.kernels._choose import best_rank, load_actions, settle_misses
from eaglerl.kernels._features import sketch_features
from eaglerl.kernels._mlp import run_held, run_mlp, store_held


@triton.jit
def hold_in_advance(
    inputs, strides, input_row, readable, sequence, active, leads, cache, n_slots, scratch_ptr,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Find out whether the actions of sequences (S,) are kept, before any product.

    All programs get the same result: they read the same records, which only the last program
    changes, after every program has taken its ticket. The leading program stores the result and
    what was compared for the last one, where other code would find them out again there and could
    differ by rounding.

    Returns:
        The sequences' slots, whether those exist, which actions are kept, and the norms of what is
        compared, or zeros.
    """
    state_ptr, reference_ptr, _, slots_ptr = cache
    slot, exists = find_slot(slots_ptr, sequence, active, n_slots)
    record_ptr = state_ptr + slot * RECORD_WORDS
    hit = is_in_time(record_ptr, exists, PLAN)
    row_ptr = scratch_ptr + sequence.to(tl.int64) * PLAN.scratch
    norm = tl.zeros(active.shape, tl.float32)
    if PLAN.compare != NO_COMPARISON:
        reference_ptr += slot * PLAN.compared
        if PLAN.compare == COMPARE_SKETCH:
            sketch = sketch_features(inputs, strides, input_row, readable, PLAN)
            bucket = tl.arange(0, PLAN.compared)[None, :]
            reference = tl.load(reference_ptr[:, None] + bucket, mask=exists[:, None], other=0.0)
            dot = tl.sum(sketch * reference, axis=1)
            norm = tl.sqrt_rn(tl.sum(sketch * sketch, axis=1))
            if leads:
                compared_ptr = (row_ptr + PLAN.compared_at)[:, None] + bucket
                tl.store(compared_ptr, sketch, mask=active[:, None])
        else:
            value_ptr = inputs[0] + input_row * strides[0]
            dot, norm = compare(value_ptr, reference_ptr, exists & readable, PLAN)
        hit &= resembles(record_ptr, exists, dot, norm)
        if leads:
            tl.store(row_ptr + PLAN.flag_at + 1, norm, mask=active)
    if leads:
        tl.store(row_ptr + PLAN.flag_at, hit.to(tl.float32), mask=active)
    return slot, exists, hit, norm


@triton.jit
def _hold_afterwards(row_ptr, slot, exists, active, cache, PLAN: tl.constexpr):
    """Return the hits (S,), stored in advance or found by comparing g, and the norms."""
    if PLAN.compare == COMPARE_FEATURES:
        record_ptr = cache[0] + slot * RECORD_WORDS
        dot, norm = compare(
            row_ptr + PLAN.compared_at, cache[1] + slot * PLAN.compared, exists, PLAN
        )
        hit = is_in_time(record_ptr, exists, PLAN) & resembles(record_ptr, exists, dot, norm)
    else:
        flag_ptr = row_ptr + PLAN.flag_at
        hit = tl.load(flag_ptr, mask=active, other=0.0, cache_modifier=".cg") != 0.0
        norm = tl.zeros(active.shape, tl.float32)
        if PLAN.compare != NO_COMPARISON:
            norm = tl.load(flag_ptr + 1, mask=active, other=0.0, cache_modifier=".cg")
    return hit, norm


@triton.jit
def decide(
    input_ptr, first, end, weights, biases, actions_ptr, cache, held, n_slots, outputs, draw,
    scratch_ptr, PLAN: tl.constexpr,
):  # fmt: skip
    """Decide for a group of sequences whose products are done: MLP, action, record.

    Args:
        input_ptr: (S,) the input features, if adaptive mode compares them.
        first: number of the first sequence.
        end: one more than that of the last sequence that there is.
        weights: matrices of all layers.
        biases: vectors of all layers.
        actions_ptr: (A, columns) parameters of the actions.
        cache: records, references, ring and slots.
        held: what `hold_in_advance` returned to this program, or None to load it: one load more
            on which the whole decision waits.
        n_slots: number of records.
        outputs: logits, actions, parameters.
        draw: see `settle_misses`.
        scratch_ptr: scratch memory, see `Plan`.
        PLAN: see `Plan`.
    """
    state_ptr, reference_ptr, ring_ptr, slots_ptr = cache
    logits_ptr, action_ptr, params_ptr = outputs
    sequence = first + tl.arange(0, PLAN.group)
    active = sequence < end
    row_ptr = scratch_ptr + sequence.to(tl.int64) * PLAN.scratch
    logits_ptr += sequence.to(tl.int64) * (PLAN.policy.horizon * PLAN.policy.actions)
    action_ptr += sequence
    params_ptr += sequence * PLAN.policy.columns
    slot = sequence.to(tl.int64)
    exists = active
    miss = active
    record_ptr = None
    if PLAN.has_cache:
        if held is None:
            slot, exists = find_slot(slots_ptr, sequence, active, n_slots)
            hit, norm = _hold_afterwards(row_ptr, slot, exists, active, cache, PLAN)
        else:
            slot, exists, hit, norm = held
        record_ptr = state_ptr + slot * RECORD_WORDS
        miss = active & ~hit
        # The policy runs neither for hits nor for slots out of range, which get the fallback.
        skipped = hit | (active & ~exists)
        if tl.max(skipped.to(tl.int32), axis=0) != 0:
            serve_hits(record_ptr, ring_ptr, slot, hit, action_ptr, params_ptr, PLAN)
            _clear_logits(logits_ptr, skipped, PLAN)
    if tl.max(miss.to(tl.int32), axis=0) != 0:
        rank, table, counts = _run_policy(
            first, end, row_ptr, miss & exists, weights, biases, actions_ptr, record_ptr,
            logits_ptr, scratch_ptr, PLAN,
        )  # fmt: skip
        fallback = settle_misses(
            sequence, slot, exists, miss, logits_ptr, rank, table, counts, record_ptr, ring_ptr,
            action_ptr, params_ptr, draw, PLAN,
        )  # fmt: skip
        if PLAN.compare != NO_COMPARISON:
            value_ptr = row_ptr + PLAN.compared_at
            if PLAN.compare == COMPARE_INPUT:
                value_ptr = input_ptr
            keep_reference(
                value_ptr, norm, reference_ptr + slot * PLAN.compared, record_ptr,
                miss & exists & ~fallback, PLAN,
            )  # fmt: skip


@triton.jit
def _run_policy(
    first, end, row_ptr, mask, weights, biases, actions_ptr, record_ptr, logits_ptr, scratch_ptr,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Compute a group's logits; return their largest ranks, the actions and the records' counts.

    The loads of the latter two are on their way while the largest logit is found; before the
    layers, they would take registers from weights.
    """
    logits = ()
    if PLAN.holds:
        logits = run_held(row_ptr, weights, biases, mask, PLAN)
    else:
        first_ptr = scratch_ptr + tl.cast(first, tl.int64) * PLAN.scratch
        run_mlp(first_ptr, row_ptr, weights, biases, logits_ptr, end - 1 - first, mask, PLAN)
    table = load_actions(actions_ptr, PLAN)
    counts = 0, 0
    if record_ptr is not None:
        counts = load_counts(record_ptr, mask)
    if PLAN.holds:
        rank = store_held(logits, logits_ptr, mask, PLAN)
        if PLAN.samples or PLAN.policy.horizon > 1:
            tl.debug_barrier()
    else:
        rank = best_rank(logits_ptr, mask, PLAN)
    return rank, table, counts


@triton.jit
def _clear_logits(row_ptr, skipped, PLAN: tl.constexpr):
    """Write NaN to the logits of rows (S,) for which no policy runs."""
    width: tl.constexpr = PLAN.policy.horizon * PLAN.policy.actions
    nothing = tl.full((1, 1), float("nan"), tl.float32)
    for start in range(0, width, PLAN.block_actions):
        column = start + tl.arange(0, PLAN.block_actions)[None, :]
        inside = skipped[:, None] & (column < width)
        tl.store(row_ptr[:, None] + column, tl.broadcast_to(nothing, inside.shape), mask=inside)
