"""Chooses actions from logits and stores them in the action cache."""

import triton
import triton.language as tl
from triton.language.random import philox

from eaglerl.kernels._action_cache import (
    ACTION,
    RING_WORDS,
    record_misses,
    write_action,
)

# Rank of what is no logit, below all others, and above all others that of one that is not finite.
WORST = tl.constexpr(-(2**63))
NOT_FINITE = tl.constexpr(2**63 - 1)


@triton.jit
def philox_uniform(seed_low, seed_high, offset_low, offset_high, sequence, window):
    """Return 24-bit draws in [0, 1), as csrc/policy/philox.h; 64-bit arguments come in halves."""
    zero = sequence * 0
    seed = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
    word, _, _, _ = philox(seed, zero + offset_low, zero + offset_high, sequence, zero + window)
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8  # 2^-24


@triton.jit
def rank_logits(logit, index, COUNT: tl.constexpr):
    """Return 64-bit ranks of logits: larger for a larger logit, then for a smaller index.

    So the largest rank has the first of the largest logits, and whether all logits are finite: one
    reduction in place of three. A float's bits, the lower 31 inverted if it is negative, are a
    whole number in the same order.
    """
    # 0 and -0 are equal.
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    rank = (bits.to(tl.int64) << 32) | (0x7FFFFFFF - index)
    # Comparisons with NaN are false.
    rank = tl.where(tl.abs(logit) < float("inf"), rank, NOT_FINITE)
    return tl.where(index < COUNT, rank, WORST)


@triton.jit
def load_logits(row_ptr, mask, PLAN: tl.constexpr):
    """Return logits (S, A) of one window, their indices, and which of them are actions."""
    index = tl.arange(0, PLAN.block_actions)[None, :]
    inside = index < PLAN.policy.actions
    return tl.load(row_ptr[:, None] + index, mask=mask[:, None] & inside, other=0.0), index, inside


@triton.jit
def best_rank(row_ptr, mask, PLAN: tl.constexpr):
    """Return the largest rank (S,) among the logits of all windows."""
    best = tl.full(mask.shape, WORST, tl.int64)
    for window in range(PLAN.policy.horizon):
        logit, index, _ = load_logits(row_ptr + window * PLAN.policy.actions, mask, PLAN)
        rank = rank_logits(logit, index, PLAN.policy.actions)
        best = tl.maximum(best, tl.max(rank, axis=1))
    return best


@triton.jit
def ranked_action(rank):
    """Return the actions of ranks."""
    return (0x7FFFFFFF - rank).to(tl.int32) & 0x7FFFFFFF


@triton.jit
def choose_action(row_ptr, mask, uniform, temperature, PLAN: tl.constexpr):
    """Return actions (S,) of one window: the first of the largest logits, or a draw."""
    logit, index, inside = load_logits(row_ptr, mask, PLAN)
    if PLAN.samples:
        logit = tl.where(inside, logit, float("-inf"))
        # If rounding leaves no candidate, the last index is chosen.
        last = PLAN.policy.actions - 1
        largest = tl.max(logit, axis=1)[:, None]
        weight = tl.where(inside, tl.exp((logit - largest) / temperature), 0.0)
        cumulative = tl.cumsum(weight, axis=1)
        total = tl.sum(tl.where(index == last, cumulative, 0.0), axis=1)
        candidate = cumulative > (uniform * total)[:, None]
        return tl.min(tl.where(candidate & inside, index, last), axis=1)
    else:
        return ranked_action(tl.max(rank_logits(logit, index, PLAN.policy.actions), axis=1))


@triton.jit
def load_actions(actions_ptr, PLAN: tl.constexpr):
    """Load the parameters of all actions, a vector (1, A) of each of 4 columns.

    Before an action is chosen: an action's parameters are then written by the thread that has them,
    and no load has to follow the choice.
    """
    index = tl.arange(0, PLAN.block_actions)[None, :]
    columns: tl.constexpr = PLAN.policy.columns
    inside = index < PLAN.policy.actions
    table = ()
    for column in tl.static_range(RING_WORDS - 1):
        if columns > column:
            value = tl.load(actions_ptr + index * columns + column, mask=inside, other=0)
            table = table + (value,)
        else:
            # 0 in a column that the table lacks.
            table = table + (tl.zeros(index.shape, tl.int32),)
    return table


@triton.jit
def settle_misses(
    sequence, slot, exists, miss, row_ptr, rank, table, counts, record_ptr, ring_ptr, action_ptr,
    params_ptr, draw, PLAN: tl.constexpr,
):  # fmt: skip
    """Choose the actions of sequences (S,) and store them; return which fell back.

    Args:
        sequence: (S,) numbers of the sequences.
        slot: (S,) their slots.
        exists: (S,) whether the slot is in range; if not, the fallback is taken.
        miss: (S,) which sequences need an action.
        row_ptr: (S,) their logits.
        rank: (S,) the largest rank of all their logits, or None if it is not known yet.
        table: parameters of the actions, see `load_actions`.
        counts: see `load_counts`.
        record_ptr: (S,) their records, or None.
        ring_ptr: the ring of all slots, or None.
        action_ptr: (S,) where to write the actions.
        params_ptr: (S,) where to write the parameters.
        draw: temperature, and seed and offset in halves.
        PLAN: see `Plan`.
    """
    temperature, seed_low, seed_high, offset_low, offset_high = draw
    if rank is None:
        rank = best_rank(row_ptr, miss, PLAN)
    finite = rank != NOT_FINITE
    columns: tl.constexpr = PLAN.policy.columns
    # Without a ring, only the first window can be kept.
    windows: tl.constexpr = 1 if ring_ptr is None else PLAN.policy.horizon
    for window in range(windows):
        if PLAN.samples or PLAN.policy.horizon > 1:
            uniform = philox_uniform(seed_low, seed_high, offset_low, offset_high, sequence, window)
            action = choose_action(
                row_ptr + window * PLAN.policy.actions, miss, uniform, temperature, PLAN
            )
        else:
            action = ranked_action(rank)
        action = tl.where(finite & exists, action, PLAN.policy.fallback)
        index = tl.arange(0, PLAN.block_actions)[None, :]
        chosen = (index == action[:, None]) & miss[:, None]
        kept = chosen & exists[:, None]
        if window == 0:
            tl.store(action_ptr, action, mask=miss)
            for column in tl.static_range(columns):
                target_ptr = (params_ptr + column)[:, None] + tl.zeros(index.shape, tl.int32)
                value = table[column] + tl.zeros(chosen.shape, tl.int32)
                tl.store(target_ptr, value, mask=chosen)
            if record_ptr is not None:
                write_action(record_ptr + ACTION, index, table, kept)
        if ring_ptr is not None:
            entry_ptr = ring_ptr + (slot * PLAN.policy.horizon + window) * RING_WORDS
            write_action(entry_ptr, index, table, kept)
    if record_ptr is not None:
        record_misses(record_ptr, miss & exists, ~finite, counts)
    return ~finite
