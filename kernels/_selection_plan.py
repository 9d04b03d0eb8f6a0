"""Compile-time constants of the choice of nodes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

# Imported before the extension, so that both share one OpenMP pool.
import torch  # noqa: F401

import eaglerl._C as C
from eaglerl.kernels._plan import Tiles, power_of_two

# More elements are sorted: comparing all with all takes 3 instructions for each pair.
_MOST_COUNTED = 256
# More words of a rule are not read before it is known which are needed.
_MOST_TERMS = 512
_SURVIVAL_BITS: int = C.selection_constants["survival_bits"]


@dataclass(frozen=True)
class RuleWords:
    """Where the parts of a rule begin, see ``pack_rule``."""

    bias: int
    confidence: int
    surplus: int
    level: int
    tail_inside: int
    tail_score: int
    most_levels: int
    agree: int
    disagree: int
    tail: int
    price: int
    pass_price: int
    ratio: int
    gain: int
    words: int


@dataclass(frozen=True)
class ScratchWords:
    """Where the parts of a slot's scratch memory begin.

    Attributes:
        order: survival, place of the parent and index of each candidate that is kept.
        tokens: their tokens.
        frontier: score, logit and place of each candidate that the next pass expands.
        holder: survival and place of the candidate that holds the last looked-up token.
        ranks: what was sorted.
        words: of a slot.
    """

    order: int
    tokens: int
    frontier: int
    holder: int
    ranks: int
    words: int


@dataclass(frozen=True)
class RankFields:
    """First bits of the numbers that are added up for all elements that rank before another.

    Attributes:
        new: how many are of the new level; how many were looked up lies below.
        old: how many were kept.
        order: what orders elements of equal survival; its sum means nothing.
        survival: their survivals.
    """

    new: int
    old: int
    order: int
    survival: int


@dataclass(frozen=True)
class SelectionPlan:
    """Compile-time constants of a launch.

    An element is a candidate that is kept, a candidate of the new level, or a looked-up token, in
    this order, which is also that of their indices.

    Attributes:
        top_k: width K of the draft.
        depth: passes D after the first one.
        rows: rows R of the tree.
        lookup: most looked-up tokens L.
        pool: candidates P.
        kept: candidates that one pass leaves for the next.
        children: candidates of a level.
        first_look: first element that was looked up.
        elements: all of them.
        lanes: lanes for the elements.
        new: lanes for the candidates of a level alone.
        look_lanes: lanes for the looked-up tokens alone, and one more.
        row_lanes: lanes for the rows.
        depth_lanes: lanes for the passes.
        doublings: how often the known ancestors of a row are doubled until none is missing.
        terms: words of a rule that depend on the length of a match.
        all_terms: whether all of them are read, those of the tail included.
        term_lanes: lanes for those that are read.
        chunk: elements with which all others are compared at a time.
        score_lanes: lanes for the candidates of a level whose scores are compared.
        whole_words: whether the ancestors are written four at a time.
        counted: whether elements are ranked by counting, not by sorting.
        fields: what is added up for it.
        limited: whether the slots have limits of their own.
        layout: where the parts of a rule begin.
        scratch: where the parts of the scratch memory begin.
        tiles: warps and stages.
    """

    top_k: int
    depth: int
    rows: int
    lookup: int
    pool: int
    kept: int
    children: int
    first_look: int
    elements: int
    lanes: int
    new: int
    look_lanes: int
    row_lanes: int
    depth_lanes: int
    doublings: int
    terms: int
    all_terms: bool
    term_lanes: int
    chunk: int
    score_lanes: int
    whole_words: bool
    counted: bool
    fields: RankFields
    limited: bool
    layout: RuleWords
    scratch: ScratchWords
    tiles: Tiles


@functools.lru_cache
def selection_plan(sizes: Any, limited: bool, aligned: bool = True) -> SelectionPlan:
    """Return the constants.

    Args:
        sizes: ``SelectionSizes``.
        limited: whether slots have limits.
        aligned: whether the memory of the ancestors begins at a multiple of 4 bytes.
    """
    top_k, depth, rows, lookup = sizes
    kept, children = rows - 1, top_k**2
    elements = kept + children + lookup
    lanes = power_of_two(elements)
    fields = _rank_fields(rows, children, lookup, elements)
    fits = fields.survival + (kept << _SURVIVAL_BITS).bit_length() <= 63
    counted = fits and lanes <= _MOST_COUNTED
    if not counted:
        fields = _rank_fields(rows, children, lookup, 1)
    layout = RuleWords(**C.selection_rule_layout(list(sizes)))
    terms = layout.price - layout.agree
    all_terms = terms <= _MOST_TERMS
    if not all_terms:
        terms = layout.tail - layout.agree
    # A thread has an element, or two: its rank is counted without another thread.
    num_warps = min(max(lanes // 32, 2), 4)
    new = power_of_two(children)
    return SelectionPlan(
        top_k, depth, rows, lookup, top_k + depth * children, kept, children, kept + children,
        elements, lanes, new, power_of_two(lookup + 1), power_of_two(rows), power_of_two(depth),
        max(depth + 1, lookup).bit_length(), terms, all_terms, power_of_two(terms),
        # Each takes two registers, and an exchange between the threads for all of them.
        64,
        # With fewer lanes than threads, threads would have to add up what they have counted.
        new if 32 * num_warps <= new < lanes else lanes,
        aligned and rows % 4 == 0, counted, fields, limited, layout, _scratch_words(sizes, lanes),
        Tiles(1, 1, 1, num_warps=num_warps, num_stages=1, max_registers=255),
    )  # fmt: skip


def _rank_fields(rows: int, children: int, lookup: int, elements: int) -> RankFields:
    """Return fields wide enough for sums over all elements."""
    new = lookup.bit_length()
    old = new + children.bit_length()
    order = old + (rows - 1).bit_length()
    return RankFields(new, old, order, order + (elements * (elements - 1) // 2).bit_length())


def _scratch_words(sizes: Any, lanes: int) -> ScratchWords:
    counts = (sizes.rows - 1, sizes.rows - 1, sizes.top_k, 1, lanes)
    begins = [sum(counts[:at]) for at in range(len(counts) + 1)]
    return ScratchWords(*begins)
