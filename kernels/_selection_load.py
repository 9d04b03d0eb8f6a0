"""What a choice of nodes reads, all of it before anything is computed.

A read from the device's memory takes longer than any other step of the launch. No address here
depends on what another read has found, so all of them are under way at the same time. The
confidences and survivals that the rule looks up are read as a whole, 6 KB, because an entry of them
can only be chosen when the scores are there; so is what it says of each length of a match.
"""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

import eaglerl._C as C
from eaglerl.kernels._selection_rules import (
    CONFIDENCE_ENTRIES,
    LOGIT_BITS,
    LONGEST_MATCH,
    RECORD_WORDS,
    SURVIVAL_ENTRIES,
    score_word,
)

# Words of a record.
LEVELS, STOPPED, NODES, ADDED, INSIDE, EXPECTED, PROMISED, PASS_COST = (
    tl.constexpr(C.selection_constants[f"{name}_word"])
    for name in (
        "levels", "stopped", "nodes", "added", "inside", "expected", "promised", "pass_cost",
    )
)  # fmt: skip


@triton.jit
def level_begin(level, PLAN: tl.constexpr):
    """Return the first candidate of a level."""
    return tl.where(level == 0, 0, PLAN.top_k + (level - 1) * PLAN.children)


@triton.jit
def pack(high, low):
    """Return 64 bits of two words."""
    return (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def load_lookup(slot, state, drafted, scratch_ptr, most_offered, level, PLAN: tl.constexpr):
    """Return what is known of the looked-up tokens.

    Returns:
        the length of the match; how many tokens are offered; how many leading ones candidates hold;
        the candidate that holds the one above this level, and the word of the last holder; and the
        token of this level.
    """
    _, _, _, matches_ptr, counts_ptr, lookup_ids_ptr = drafted
    match = tl.load(matches_ptr + slot)
    count = tl.load(counts_ptr + slot)
    inside = tl.load(state[0] + slot * RECORD_WORDS + INSIDE)
    holder = tl.load(state[5] + slot * (PLAN.depth + 1) + tl.maximum(level - 1, 0))
    held = tl.load(scratch_ptr + PLAN.scratch.holder)
    wanted = tl.load(lookup_ids_ptr + slot * PLAN.lookup + level, mask=level < PLAN.lookup, other=0)
    match = tl.minimum(tl.maximum(match, 0), LONGEST_MATCH).to(tl.int32)
    offered = tl.minimum(tl.maximum(count, 0), most_offered).to(tl.int32)
    offered = tl.where(match > 0, offered, 0)
    # Anyone may have written to the state.
    inside = tl.where(level == 0, 0, tl.minimum(tl.maximum(inside, 0), level))
    holder = tl.where(level > 0, tl.minimum(tl.maximum(holder, -1), PLAN.pool - 1), -1)
    return match, offered, inside, holder, held, wanted


@triton.jit
def load_tables(tables):
    """Return confidences and survivals but the last of each, which are known."""
    confidences = tl.load(tables[0] + tl.arange(0, CONFIDENCE_ENTRIES - 1))
    survivals = tl.load(tables[1] + tl.arange(0, SURVIVAL_ENTRIES - 1))
    return confidences, survivals


@triton.jit
def load_elements(slot, drafted, scratch_ptr, level, PLAN: tl.constexpr):
    """Return what is known of the elements: kept words, tokens, and their parents' words.

    The word of a candidate that is kept has its survival, parent and index. Candidates of the new
    level have a log-probability, and those below the first level the word of their parent.
    """
    _, ids_ptr, log_probs_ptr, _, _, lookup_ids_ptr = drafted
    count = tl.where(level == 0, PLAN.top_k, PLAN.children)
    lane = tl.arange(0, PLAN.lanes)
    # Of a scalar and a block of conditions, the interpreter makes whole numbers.
    below = lane * 0 + level > 0
    is_old = (lane < PLAN.kept) & below
    child = lane - PLAN.kept
    is_new = (child >= 0) & (child < count)
    order = tl.load(scratch_ptr + PLAN.scratch.order + lane, mask=is_old, other=-1)
    old_token = tl.load(scratch_ptr + PLAN.scratch.tokens + lane, mask=is_old, other=0)
    token = tl.load(ids_ptr + slot * count + child, mask=is_new, other=0)
    log_prob = tl.load(log_probs_ptr + slot * count + child, mask=is_new, other=0.0)
    place = child // PLAN.top_k
    frontier_ptr = scratch_ptr + PLAN.scratch.frontier
    above = tl.load(frontier_ptr + place, mask=is_new & below, other=0)
    text_lane = lane - PLAN.first_look
    is_text = (text_lane >= 0) & (text_lane < PLAN.lookup)
    text = tl.load(lookup_ids_ptr + slot * PLAN.lookup + text_lane, mask=is_text, other=0)
    token = tl.where(is_text, text, tl.where(is_new, token, old_token))
    return order, token, log_prob, above


@triton.jit
def load_children(slot, state, drafted, level, PLAN: tl.constexpr):
    """Return tokens and parents of a level's candidates, in lanes of their own.

    Every warp has all of them if they are at most 32, so that it compares them with its elements
    on its own.
    """
    _, ids_ptr, _, _, _, _ = drafted
    count = tl.where(level == 0, PLAN.top_k, PLAN.children)
    lane = tl.arange(0, PLAN.new)
    active = lane < count
    expands = active & (lane * 0 + level > 0)
    place = lane // PLAN.top_k
    parent = tl.load(state[6] + slot * 3 * PLAN.top_k + place, mask=expands, other=0)
    token = tl.load(ids_ptr + slot * count + lane, mask=active, other=-1)
    # Anyone may have written to the frontier.
    least, most = level_begin(tl.maximum(level - 1, 0), PLAN), level_begin(level, PLAN) - 1
    parent = tl.minimum(tl.maximum(parent.to(tl.int32), least), most)
    return token, tl.where(expands, parent, -1)


@triton.jit
def score_below(above, log_prob, level):
    """Return cumulative log-probabilities, given the words of the parents."""
    score = (above >> 32).to(tl.int32).to(tl.float32, bitcast=True) + log_prob
    return tl.where(level > 0, score, log_prob)


@triton.jit
def load_rule(slot, state, drafted, rule_ptr, level, PLAN: tl.constexpr):
    """Return the terms of logits.

    Returns:
        of candidates: bias and slopes; of looked-up tokens: what is added if the beginning was
        drafted, and for the first one; and the most levels.
    """
    rules: tl.constexpr = PLAN.layout
    bias = tl.load(rule_ptr + rules.bias)
    confidence = tl.load(rule_ptr + rules.confidence)
    surplus = tl.load(rule_ptr + rules.surplus)
    of_level = tl.load(rule_ptr + rules.level)
    beginning = tl.load(rule_ptr + rules.tail_inside)
    slope = tl.load(rule_ptr + rules.tail_score)
    most_levels = tl.load(rule_ptr + rules.most_levels)
    score = tl.load(drafted[2] + slot * PLAN.top_k, mask=level == 0, other=0.0)
    score += tl.load(state[1] + slot * PLAN.pool, mask=level > 0, other=0.0)
    beside = (slope * score_word(score)) >> LOGIT_BITS
    return bias + of_level * level, confidence, surplus, beginning, beside, most_levels


@triton.jit
def load_terms(rule_ptr, PLAN: tl.constexpr):
    """Return the rule's words that depend on the length of the match, for all lengths."""
    lane = tl.arange(0, PLAN.term_lanes)
    return tl.load(rule_ptr + PLAN.layout.agree + lane, mask=lane < PLAN.terms, other=0)


@triton.jit
def terms_of(terms, rule_ptr, match, first, PLAN: tl.constexpr):
    """Return what the lookup says of each element.

    Args:
        terms: see ``load_terms``.
        rule_ptr: rule of the slot.
        match: length of the match; 0 for none.
        first: place of the candidate that holds the looked-up token.
        PLAN: the constants.
    """
    rules: tl.constexpr = PLAN.layout
    lane = tl.arange(0, PLAN.lanes)
    text = lane - PLAN.first_look
    is_text = (text >= 0) & (text < PLAN.lookup)
    at = tl.where(lane - PLAN.kept == first, 0, rules.disagree - rules.agree) + match
    tail = rules.tail - rules.agree + match * PLAN.lookup + text
    if PLAN.all_terms:
        term = tl.gather(terms, tl.where(is_text, tail, at), 0)
    else:
        # Too many for the threads: a second read, behind that of the match.
        term = tl.gather(terms, at, 0)
        other = tl.load(rule_ptr + rules.agree + tail, mask=is_text, other=0)
        term = tl.where(is_text, other, term)
    return tl.where(lane * 0 + match > 0, term, 0)


@triton.jit
def load_prices(rule_ptr, level, PLAN: tl.constexpr):
    """Return the prices of rows, (ROWS,), those of passes and ratios, (DEPTH,), and the gain."""
    rules: tl.constexpr = PLAN.layout
    row = tl.arange(0, PLAN.row_lanes)
    price = tl.load(rule_ptr + rules.price + row, mask=row < PLAN.rows, other=0)
    following = tl.arange(0, PLAN.depth_lanes)
    inner = following < PLAN.depth
    passes = tl.load(rule_ptr + rules.pass_price + following, mask=inner, other=0)
    ratios = tl.load(rule_ptr + rules.ratio + following, mask=inner, other=0)
    gain = tl.load(rule_ptr + rules.gain + level, mask=level < PLAN.depth, other=0)
    return price, passes, ratios, gain
