"""Chooses actions from logits and stores them in the action cache."""

import triton
import triton.language as tl
from triton.language.random import philox

from eaglerl.kernels._action_cache import (
    ACTION,
    RING_WORDS,
    load_parameter,
    record_misses,
    write_action,
)


@triton.jit
def philox_uniform(seed_low, seed_high, offset_low, offset_high, sequence, window):
    """Return 24-bit draws in [0, 1), as csrc/policy/philox.h; 64-bit arguments come in halves."""
    zero = sequence * 0
    seed = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
    word, _, _, _ = philox(seed, zero + offset_low, zero + offset_high, sequence, zero + window)
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-8  # 2^-24


@triton.jit
def all_finite(row_ptr, mask, PLAN: tl.constexpr):
    """Return whether all logits of rows (S,) are finite."""
    finite = tl.full(mask.shape, 1, tl.int32)
    width: tl.constexpr = PLAN.policy.horizon * PLAN.policy.actions
    for start in range(0, width, PLAN.block_actions):
        column = start + tl.arange(0, PLAN.block_actions)[None, :]
        logit = tl.load(row_ptr[:, None] + column, mask=mask[:, None] & (column < width), other=0.0)
        # Comparisons with NaN are false.
        finite &= tl.min((tl.abs(logit) < float("inf")).to(tl.int32), axis=1)
    return finite != 0


@triton.jit
def choose_action(row_ptr, mask, uniform, temperature, PLAN: tl.constexpr):
    """Return actions (S,) of one window: the first of the largest logits, or a draw."""
    index = tl.arange(0, PLAN.block_actions)[None, :]
    inside = index < PLAN.policy.actions
    logit = tl.load(row_ptr[:, None] + index, mask=mask[:, None] & inside, other=0.0)
    logit = tl.where(inside, logit, float("-inf"))
    largest = tl.max(logit, axis=1)[:, None]
    # If rounding leaves no candidate, the last index is chosen.
    last = PLAN.policy.actions - 1
    if PLAN.samples:
        weight = tl.where(inside, tl.exp((logit - largest) / temperature), 0.0)
        cumulative = tl.cumsum(weight, axis=1)
        total = tl.sum(tl.where(index == last, cumulative, 0.0), axis=1)
        candidate = cumulative > (uniform * total)[:, None]
    else:
        candidate = logit == largest
    return tl.min(tl.where(candidate & inside, index, last), axis=1)


@triton.jit
def settle_misses(
    sequence, slot, exists, miss, row_ptr, actions_ptr, record_ptr, ring_ptr, action_ptr,
    params_ptr, draw, PLAN: tl.constexpr,
):  # fmt: skip
    """Choose the actions of sequences (S,) and store them; return which fell back.

    Args:
        sequence: (S,) numbers of the sequences.
        slot: (S,) their slots.
        exists: (S,) whether the slot is in range; if not, the fallback is taken.
        miss: (S,) which sequences need an action.
        row_ptr: (S,) their logits.
        actions_ptr: (A, columns) parameters of the actions.
        record_ptr: (S,) their records, or None.
        ring_ptr: the ring of all slots, or None.
        action_ptr: (S,) where to write the actions.
        params_ptr: (S,) where to write the parameters.
        draw: temperature, and seed and offset in halves.
        PLAN: see `Plan`.
    """
    temperature, seed_low, seed_high, offset_low, offset_high = draw
    finite = all_finite(row_ptr, miss, PLAN)
    columns: tl.constexpr = PLAN.policy.columns
    # Without a ring, only the first window can be kept.
    windows: tl.constexpr = 1 if ring_ptr is None else PLAN.policy.horizon
    for window in range(windows):
        uniform = philox_uniform(seed_low, seed_high, offset_low, offset_high, sequence, window)
        action = choose_action(
            row_ptr + window * PLAN.policy.actions, miss, uniform, temperature, PLAN
        )
        action = tl.where(finite & exists, action, PLAN.policy.fallback)
        if window == 0:
            tl.store(action_ptr, action, mask=miss)
            for column in tl.static_range(columns):
                value = load_parameter(actions_ptr, action, column, miss, PLAN)
                tl.store(params_ptr + column, value, mask=miss)
            if record_ptr is not None:
                write_action(record_ptr + ACTION, action, actions_ptr, miss & exists, PLAN)
        if ring_ptr is not None:
            entry_ptr = ring_ptr + (slot * PLAN.policy.horizon + window) * RING_WORDS
            write_action(entry_ptr, action, actions_ptr, miss & exists, PLAN)
    if record_ptr is not None:
        record_misses(record_ptr, miss & exists, ~finite)
    return ~finite
