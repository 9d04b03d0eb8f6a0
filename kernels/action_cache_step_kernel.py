"""One step of the action cache with given logits."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from eaglerl.kernels._action_cache import (
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
from eaglerl.kernels._choose import load_actions, settle_misses
from eaglerl.kernels._launch import Launch, cache_pointers, split_words
from eaglerl.kernels._settings import step_plan


@triton.jit(
    do_not_specialize=[
        "n_sequences", "n_slots", "seed_low", "seed_high", "offset_low", "offset_high"
    ]
)  # fmt: skip
def _action_cache_step_kernel(
    logits_ptr, features_ptr, actions_ptr, cache, action_ptr, params_ptr, n_sequences, n_slots,
    temperature, seed_low, seed_high, offset_low, offset_high,
    PLAN: tl.constexpr,
):  # fmt: skip
    """Grid: groups of sequences."""
    GROUP: tl.constexpr = PLAN.group
    state_ptr, reference_ptr, ring_ptr, slots_ptr = cache
    sequence = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    active = sequence < n_sequences
    slot, exists = find_slot(slots_ptr, sequence, active, n_slots)
    record_ptr = state_ptr + slot * RECORD_WORDS
    hit = is_in_time(record_ptr, exists, PLAN)
    if PLAN.compare != NO_COMPARISON:
        feature_ptr = features_ptr + sequence.to(tl.int64) * PLAN.compared
        reference_ptr += slot * PLAN.compared
        dot, norm = compare(feature_ptr, reference_ptr, exists, PLAN)
        hit &= resembles(record_ptr, exists, dot, norm)
    action_ptr += sequence
    params_ptr += sequence * PLAN.policy.columns
    serve_hits(record_ptr, ring_ptr, slot, hit, action_ptr, params_ptr, PLAN)
    width: tl.constexpr = PLAN.policy.horizon * PLAN.policy.actions
    miss = active & ~hit
    fallback = settle_misses(
        sequence, slot, exists, miss, logits_ptr + sequence.to(tl.int64) * width, None,
        load_actions(actions_ptr, PLAN), load_counts(record_ptr, miss & exists), record_ptr,
        ring_ptr, action_ptr, params_ptr,
        (temperature, seed_low, seed_high, offset_low, offset_high), PLAN,
    )  # fmt: skip
    if PLAN.compare != NO_COMPARISON:
        keep_reference(
            feature_ptr, norm, reference_ptr, record_ptr, miss & exists & ~fallback, PLAN
        )


def prepare_action_cache_step(
    logits: Tensor,
    actions: Tensor,
    features: Tensor | None,
    cache: Any,
    slots: Tensor | None,
    draw: tuple[float, int, int],
    fallback_action: int,
) -> tuple[Launch, Tensor, Tensor]:
    """Allocate actions and parameters and prepare a launch. Arguments are not checked.

    Args:
        logits: (S, horizon * A) float32.
        actions: (A, 3 or 4) int32 parameters of every action.
        features: (S, reference_size) float32, or None unless the cache is adaptive.
        cache: ``ActionCache``.
        slots: (S,) int64 slots, or None.
        draw: temperature, seed, offset.
        fallback_action: the action to take if a logit is not finite.
    """
    sequences, (count, columns) = logits.shape[0], actions.shape
    plan = step_plan(
        (count, columns), logits.shape[1] // count, fallback_action, sequences, cache, draw[0] > 0
    )
    action = actions.new_empty((sequences,))
    params = actions.new_empty((sequences, columns))
    seed_low, seed_high = split_words(draw[1])
    offset_low, offset_high = split_words(draw[2])
    arguments = {
        "logits_ptr": logits,
        "features_ptr": features,
        "actions_ptr": actions,
        "cache": cache_pointers(cache, slots),
        "action_ptr": action,
        "params_ptr": params,
        "n_sequences": sequences,
        "n_slots": cache.state.shape[0],
        "temperature": float(draw[0]),
        "seed_low": seed_low,
        "seed_high": seed_high,
        "offset_low": offset_low,
        "offset_high": offset_high,
    }
    grid = (-(-sequences // plan.group),)
    return Launch(_action_cache_step_kernel, grid, arguments, plan), action, params
