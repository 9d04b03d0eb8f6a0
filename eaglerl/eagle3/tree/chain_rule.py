"""The rule of a sequence that drafts nothing while others do: its looked-up tokens are verified."""

from __future__ import annotations

import functools

import numpy as np

from eaglerl.eagle3.policy import DraftLimits
from eaglerl.ops.node_selection import CONSTANTS, SelectionSizes, pack_rule

#: Logits of what is certain, and of what is out of the question, within the rule's limits.
_CERTAIN = 12.0


@functools.lru_cache
def chain_rule(sizes: SelectionSizes) -> np.ndarray:
    """Return the (words,) int32 rule that chooses the looked-up tokens and no others.

    With the limits of `chain_limits` the rows are the root and the looked-up tokens, whether the
    head's first pass holds the first of them or not.

    Args:
        sizes: of the draft.
    """
    match, (_, depth, rows, lookup) = CONSTANTS["longest_match"] + 1, sizes
    # A candidate that holds the looked-up token counts as certain, all others as hopeless. A row
    # costs more than a hopeless candidate adds, and less than a certain one.
    words = pack_rule(
        sizes,
        {
            "bias": -_CERTAIN, "agree": [2 * _CERTAIN] * match, "disagree": [0.0] * match,
            "tail": [[_CERTAIN] * lookup] * match, "price": [0.01 * row for row in range(rows)],
            "pass_price": [1e3] * depth, "ratio": [0.0] * depth, "gain": [0.0] * depth,
        },
    )  # fmt: skip
    words.setflags(write=False)
    return words


def chain_limits(rows: int, lookup_tokens: int) -> DraftLimits:
    """Return the limits of a sequence without a draft.

    Args:
        rows: most rows, the root included.
        lookup_tokens: looked-up tokens to verify.
    """
    return DraftLimits(min(rows, 1 + lookup_tokens), 0, 1, lookup_tokens)
