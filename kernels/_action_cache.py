"""The rules of ``csrc/policy/action_cache.h`` on Triton tensors, with one lane for each sequence.

Nothing branches on a single sequence; masks say which lanes take part. The layout of a record comes
from the extension.
"""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

import eaglerl._C as C

STEP = tl.constexpr(C.cache_words["step"])
INTERVAL = tl.constexpr(C.cache_words["interval"])
VALID = tl.constexpr(C.cache_words["valid"])
ACTION = tl.constexpr(C.cache_words["action"])
HITS = tl.constexpr(C.cache_words["hits"])
MISSES = tl.constexpr(C.cache_words["misses"])
FALLBACKS = tl.constexpr(C.cache_words["fallbacks"])
THRESHOLD = tl.constexpr(C.cache_words["threshold"])
REFERENCE_NORM = tl.constexpr(C.cache_words["reference_norm"])
RECORD_WORDS = tl.constexpr(C.cache_record_words)
RING_WORDS = tl.constexpr(C.cache_ring_words)

# What adaptive mode compares, which determines the programs that can. Other modes: NO_COMPARISON.
NO_COMPARISON = tl.constexpr(0)
COMPARE_SKETCH = tl.constexpr(1)  # a sketch of low, mid and high: every program, before any product
COMPARE_INPUT = tl.constexpr(2)  # the input features: every program, before any product
COMPARE_FEATURES = tl.constexpr(3)  # g, which the launch itself computes: the last program


@triton.jit
def find_slot(slots_ptr, sequence, active, n_slots):
    """Return the slots (S,) of sequences, and which exist; the others must touch no record."""
    if slots_ptr is None:
        slot = sequence.to(tl.int64)
    else:
        slot = tl.load(slots_ptr + sequence, mask=active, other=-1)
    exists = active & (slot >= 0) & (slot < n_slots)
    return tl.where(exists, slot, 0), exists


@triton.jit
def is_in_time(record_ptr, exists, PLAN: tl.constexpr):
    """Return whether decisions have steps left; an impossible record has none."""
    interval = tl.load(record_ptr + INTERVAL, mask=exists, other=0).to(tl.int64)
    steps = interval
    if PLAN.scheduled:
        steps *= PLAN.policy.horizon
    valid = tl.load(record_ptr + VALID, mask=exists, other=0)
    step = tl.load(record_ptr + STEP, mask=exists, other=0)
    return exists & (valid != 0) & (step >= 0) & (interval > 0) & (step < steps)


@triton.jit
def resembles(record_ptr, exists, dot, norm):
    """Return whether features resemble those of the decisions, by dot product and norm.

    False if anything is not finite: infinity >= infinity is true and would count as similar.
    """
    threshold = tl.load(record_ptr + THRESHOLD, mask=exists, other=0)
    reference_norm = tl.load(record_ptr + REFERENCE_NORM, mask=exists, other=0)
    scale = norm * reference_norm.to(tl.float32, bitcast=True)
    similar = dot >= threshold.to(tl.float32, bitcast=True) * scale
    return exists & similar & (scale > 0.0) & (scale < float("inf"))


@triton.jit
def compare(row_ptr, reference_ptr, mask, PLAN: tl.constexpr):
    """Return the dot products of rows (S,) with their references, and the rows' norms."""
    BLOCK: tl.constexpr = PLAN.block_compared
    dot = tl.zeros(mask.shape, tl.float32)
    square = tl.zeros(mask.shape, tl.float32)
    for start in range(0, PLAN.compared, BLOCK):
        element = start + tl.arange(0, BLOCK)[None, :]
        inside = mask[:, None] & (element < PLAN.compared)
        value = tl.load(
            row_ptr[:, None] + element, mask=inside, other=0.0, cache_modifier=".cg"
        ).to(tl.float32)
        reference = tl.load(reference_ptr[:, None] + element, mask=inside, other=0.0)
        dot += tl.sum(value * reference, axis=1)
        square += tl.sum(value * value, axis=1)
    return dot, tl.sqrt_rn(square)


@triton.jit
def keep_reference(row_ptr, norm, reference_ptr, record_ptr, mask, PLAN: tl.constexpr):
    """Store rows (S,) as the references for later comparisons."""
    for start in range(0, PLAN.compared, PLAN.block_compared):
        element = start + tl.arange(0, PLAN.block_compared)[None, :]
        inside = mask[:, None] & (element < PLAN.compared)
        value = tl.load(row_ptr[:, None] + element, mask=inside, other=0.0, cache_modifier=".cg")
        tl.store(reference_ptr[:, None] + element, value.to(tl.float32), mask=inside)
    tl.store(record_ptr + REFERENCE_NORM, norm.to(tl.int32, bitcast=True), mask=mask)


@triton.jit
def serve_hits(record_ptr, ring_ptr, slot, hit, action_ptr, params_ptr, PLAN: tl.constexpr):
    """Count hits, and write the kept actions and their parameters to the outputs."""
    step = tl.load(record_ptr + STEP, mask=hit, other=0)
    source_ptr = record_ptr + ACTION
    if ring_ptr is not None:
        interval = tl.load(record_ptr + INTERVAL, mask=hit, other=1)
        entry = slot * PLAN.policy.horizon + step // interval
        source_ptr = ring_ptr + entry * RING_WORDS
    for word in tl.static_range(RING_WORDS):
        value = tl.load(source_ptr + word, mask=hit, other=0)
        tl.store(record_ptr + ACTION + word, value, mask=hit)
        if word == 0:
            tl.store(action_ptr, value, mask=hit)
        elif word <= PLAN.policy.columns:
            tl.store(params_ptr + word - 1, value, mask=hit)
    tl.store(record_ptr + STEP, step + 1, mask=hit)
    _count_up(record_ptr + HITS, hit)


@triton.jit
def load_counts(record_ptr, mask):
    """Load the misses and fallbacks of records (S,), which `record_misses` counts up.

    Before the decision, as a load behind it would make it longer.
    """
    misses = tl.load(record_ptr + MISSES, mask=mask, other=0)
    return misses, tl.load(record_ptr + FALLBACKS, mask=mask, other=0)


@triton.jit
def record_misses(record_ptr, miss, fallback, counts):
    """Count misses; `write_action` writes the actions to the records."""
    tl.store(record_ptr + STEP, tl.full(miss.shape, 1, tl.int32), mask=miss)
    tl.store(record_ptr + VALID, tl.where(fallback, 0, 1), mask=miss)
    tl.store(record_ptr + MISSES, counts[0] + 1, mask=miss)
    tl.store(record_ptr + FALLBACKS, counts[1] + 1, mask=miss & fallback)


@triton.jit
def write_action(target_ptr, index, table, chosen):
    """Write actions and their parameters to records or to entries of the ring (S,).

    Args:
        target_ptr: (S,) the first word of each.
        index: (1, A) the actions.
        table: vectors (1, A) of their parameters.
        chosen: (S, A) the action of each, or none where nothing is written.
    """
    nothing = tl.zeros(chosen.shape, tl.int32)
    target_ptr = target_ptr[:, None] + nothing
    tl.store(target_ptr, index + nothing, mask=chosen)
    for column in tl.static_range(RING_WORDS - 1):
        tl.store(target_ptr + 1 + column, table[column] + nothing, mask=chosen)


@triton.jit
def _count_up(counter_ptr, mask):
    tl.store(counter_ptr, tl.load(counter_ptr, mask=mask, other=0) + 1, mask=mask)
