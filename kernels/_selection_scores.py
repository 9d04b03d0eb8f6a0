"""Survivals of a level's candidates and of looked-up tokens."""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

from eaglerl.kernels._selection_load import level_begin, score_below
from eaglerl.kernels._selection_rules import (
    LEAST_LOGIT,
    LOGIT_BITS,
    SURE,
    SURVIVAL_BITS,
    clamp_logit,
    confidence_of,
    survival_of,
)


@triton.jit
def possible_children(child, level, width, PLAN: tl.constexpr):
    """Return which numbers are places of a level's candidates, within the limits."""
    count = tl.where(level == 0, PLAN.top_k, PLAN.children)
    possible = (child >= 0) & (child < count)
    if PLAN.limited:
        possible &= (child % PLAN.top_k < width) & (child // PLAN.top_k < width)
    return possible


@triton.jit
def find_agreeing(children, possible, holder, wanted, reached, PLAN: tl.constexpr):
    """Return the place of the first candidate that holds the looked-up token, or all places.

    Args:
        children: tokens and parents of the level's candidates.
        possible: which of them there are.
        holder: candidate that holds the token before; -1 for none.
        wanted: the token.
        reached: whether there is one.
        PLAN: the constants.
    """
    token, parent = children
    lane = tl.arange(0, PLAN.new)
    # Of a scalar and a block of conditions, the interpreter makes whole numbers.
    is_reached = lane * 0 + reached.to(tl.int32) > 0
    agrees = possible & is_reached & (parent == holder) & (token == wanted)
    return tl.min(tl.where(agrees, lane, PLAN.new), 0)


@triton.jit
def score_elements(
    elements, tables, rule, term, inside, level, possible, PLAN: tl.constexpr
):  # fmt: skip
    """Return scores, logits and survivals of the candidates and looked-up tokens.

    A looked-up token's survival is only what it would be if the one before it survived. Candidates
    that are not possible have the least logit.
    """
    _, _, log_prob, above = elements
    bias, slope, surplus, beginning, beside, _ = rule
    lane = tl.arange(0, PLAN.lanes)
    score = score_below(above, log_prob, level)
    confidence = confidence_of(tables[0], score)
    logit = bias + term
    logit += (slope * confidence) >> LOGIT_BITS
    logit += (surplus * tl.maximum(confidence, 0)) >> LOGIT_BITS
    logit = clamp_logit(logit)
    # The parent's, which lies above its place, is the limit.
    logit = tl.where(level > 0, tl.minimum(logit, above.to(tl.int32) >> 9), logit)
    if PLAN.limited:
        logit = tl.where(possible, logit, LEAST_LOGIT)
    text = term + tl.where(inside > 0, beginning, 0)
    text += tl.where(lane - PLAN.first_look == inside, beside, 0)
    survival = survival_of(tables[1], tl.where(lane >= PLAN.first_look, text, logit))
    return score, logit, survival


@triton.jit
def chain_lookup(survival, first, inside, offered, held, PLAN: tl.constexpr):
    """Return the survivals of all elements; -1 for looked-up tokens that are not taken.

    Args:
        survival: of the elements, those of looked-up tokens as if the ones before survived.
        first: place of the candidate that holds the looked-up token of this level, or all places.
        inside: leading looked-up tokens that candidates hold.
        offered: looked-up tokens that can be accepted.
        held: survival of the candidate that held the one of an earlier level.
        PLAN: the constants.
    """
    # All threads have the numbers of all looked-up tokens, and of the candidate behind them.
    text = tl.arange(0, PLAN.look_lanes)
    place = tl.where(text < PLAN.lookup, PLAN.first_look + text, PLAN.kept + first)
    step = tl.gather(survival, tl.minimum(place, PLAN.lanes - 1), 0)
    none = text * 0
    above = tl.where(first < PLAN.new, tl.gather(step, none + PLAN.lookup, 0), held)
    reached = tl.where(inside > 0, above, SURE)
    taken = (text >= inside) & (text < offered)
    step = tl.where(taken, step, SURE)
    # Each product is rounded down before the next.
    chain = none
    tokens: tl.constexpr = PLAN.lookup
    for token in tl.static_range(tokens):
        share = tl.gather(step, none + token, 0).to(tl.int64)
        reached = ((reached.to(tl.int64) * share) >> SURVIVAL_BITS).to(tl.int32)
        chain = tl.where(text == token, reached, chain)
    chain = tl.where(taken, chain, -1)
    lane = tl.arange(0, PLAN.lanes)
    text_lane = tl.minimum(tl.maximum(lane - PLAN.first_look, 0), PLAN.lookup)
    chained = tl.gather(chain, text_lane, 0)
    return tl.where(lane >= PLAN.first_look, chained, survival)


@triton.jit
def store_level(slot, state, token, children, score, logit, level, PLAN: tl.constexpr):
    """Store the level's candidates among all others."""
    pool = slot * PLAN.pool + level_begin(level, PLAN)
    count = tl.where(level == 0, PLAN.top_k, PLAN.children)
    child = tl.arange(0, PLAN.lanes) - PLAN.kept
    active = (child >= 0) & (child < count)
    tl.store(state[1] + pool + child, score, mask=active)
    tl.store(state[2] + pool + child, token, mask=active)
    tl.store(state[4] + pool + child, logit, mask=active)
    lane = tl.arange(0, PLAN.new)
    tl.store(state[3] + pool + lane, children[1], mask=lane < count)
