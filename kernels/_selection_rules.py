"""The rules of ``csrc/acceptance/selection_rules.h`` on Triton tensors: whole numbers throughout.

The layout of a rule and of a record, and the fixed point, come from the extension.
"""

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401
import triton
import triton.language as tl

import eaglerl._C as C

_CONSTANTS = C.selection_constants
SURVIVAL_BITS = tl.constexpr(_CONSTANTS["survival_bits"])
SURE = tl.constexpr(1 << _CONSTANTS["survival_bits"])
LOGIT_BITS = tl.constexpr(_CONSTANTS["logit_bits"])
RATIO_BITS = tl.constexpr(_CONSTANTS["ratio_bits"])
LONGEST_MATCH = tl.constexpr(_CONSTANTS["longest_match"])
RECORD_WORDS = tl.constexpr(_CONSTANTS["record_words"])
LEAST_LOGIT = tl.constexpr(_CONSTANTS["least_logit"])
MOST_LOGIT = tl.constexpr(_CONSTANTS["most_logit"])
SURVIVAL_STEP_BITS = tl.constexpr(_CONSTANTS["survival_step_bits"])
LEAST_SCORE_BITS = tl.constexpr(_CONSTANTS["least_score_bits"])
MOST_SCORE_BITS = tl.constexpr(_CONSTANTS["most_score_bits"])
SCORE_STEP_BITS = tl.constexpr(_CONSTANTS["score_step_bits"])
SCORE_FRACTION_BITS = tl.constexpr(_CONSTANTS["score_fraction_bits"])
#: Entries of the two tables, the last one included, and what that one is.
CONFIDENCE_ENTRIES, SURVIVAL_ENTRIES = (tl.constexpr(len(each)) for each in C.selection_tables())
LAST_CONFIDENCE, LAST_SURVIVAL = (tl.constexpr(int(each[-1])) for each in C.selection_tables())
ONE_RATIO = tl.constexpr(1 << _CONSTANTS["ratio_bits"])
_SCORE_FRACTIONS = tl.constexpr((1 << _CONSTANTS["score_fraction_bits"]) - 1)
_SURVIVAL_FRACTIONS = tl.constexpr((1 << _CONSTANTS["survival_step_bits"]) - 1)

LARGEST_WORD = tl.constexpr(0x7FFFFFFF)
# Columns of limits, which are those of a table of actions.
_ACTION_COLUMNS = tl.constexpr(len(C.action_columns))
_TOTAL_TOKENS = tl.constexpr(C.action_columns.index("total_tokens"))
_DEPTH = tl.constexpr(C.action_columns.index("depth"))
_TOP_K = tl.constexpr(C.action_columns.index("top_k"))
_LOOKUP_TOKENS = tl.constexpr(C.action_columns.index("lookup_tokens"))
_INFINITY = tl.constexpr(0x7F800000)
_LOWEST = tl.constexpr(-(2**31))


@triton.jit
def between(table, index, fraction, LAST: tl.constexpr, BITS: tl.constexpr):
    """Return numbers between two entries of a table, a fraction of the way.

    Args:
        table: its entries but the last one.
        index: of the entry to the left.
        fraction: how far to go to the next, in units of 2^-BITS.
        LAST: the last entry.
        BITS: of the fraction.
    """
    end: tl.constexpr = table.shape[0] - 1
    pair = tl.join(index, tl.minimum(index + 1, end))
    # One exchange between the threads for both.
    found = tl.gather(table, tl.reshape(pair, (2 * index.shape[0],)), 0)
    left, right = tl.split(tl.reshape(found, (index.shape[0], 2)))
    right = tl.where(index == end, LAST, right)
    return left + (((right - left) * fraction) >> BITS)


@triton.jit
def confidence_of(table, score):
    """Return the logits of cumulative probabilities, given their logarithms."""
    bits = score.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    below = tl.where((bits < 0) | (magnitude > _INFINITY), magnitude, 0)
    offset = tl.minimum(tl.maximum(below, LEAST_SCORE_BITS), MOST_SCORE_BITS) - LEAST_SCORE_BITS
    fraction = (offset >> (SCORE_STEP_BITS - SCORE_FRACTION_BITS)) & _SCORE_FRACTIONS
    return between(table, offset >> SCORE_STEP_BITS, fraction, LAST_CONFIDENCE, SCORE_FRACTION_BITS)


@triton.jit
def clamp_logit(logit):
    """Limit logits to those of the table of survivals."""
    return tl.minimum(tl.maximum(logit, LEAST_LOGIT), MOST_LOGIT)


@triton.jit
def survival_of(table, logit):
    """Return the survivals of logits."""
    offset = clamp_logit(logit) - LEAST_LOGIT
    fraction = offset & _SURVIVAL_FRACTIONS
    return between(table, offset >> SURVIVAL_STEP_BITS, fraction, LAST_SURVIVAL, SURVIVAL_STEP_BITS)


@triton.jit
def score_word(score):
    """Return a score as a logit, from -16 to 0."""
    above = tl.where(score > -15.99, score, -15.99)
    return (tl.where(above < 0.0, above, 0.0) * 4096.0).to(tl.int32)


@triton.jit
def score_order(score):
    """Return numbers that are ordered as scores are, NaN below all."""
    bits = score.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    order = tl.where(bits < 0, -magnitude, magnitude)
    return tl.where(magnitude > _INFINITY, _LOWEST, order)


@triton.jit
def load_limits(limits_ptr, slot, PLAN: tl.constexpr):
    """Return the most rows, passes, children of a node and looked-up tokens of a slot."""
    limits_ptr += slot * _ACTION_COLUMNS
    rows = tl.minimum(tl.maximum(tl.load(limits_ptr + _TOTAL_TOKENS), 1), PLAN.rows)
    passes = tl.minimum(tl.maximum(tl.load(limits_ptr + _DEPTH), 0), PLAN.depth)
    top_k = tl.minimum(tl.maximum(tl.load(limits_ptr + _TOP_K), 1), PLAN.top_k)
    lookup = tl.minimum(tl.maximum(tl.load(limits_ptr + _LOOKUP_TOKENS), 0), PLAN.lookup)
    return rows, passes, top_k, lookup
