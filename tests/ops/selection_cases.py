"""Random drafts and rules for the tests of `select_draft_nodes`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eaglerl.ops.node_selection import (
    CONSTANTS,
    LookedUp,
    SelectionSizes,
    pack_rule,
    stack_rules,
)

SIZES = (
    SelectionSizes(4, 5, 32, 12),
    SelectionSizes(1, 7, 9, 8),
    SelectionSizes(2, 3, 6, 0),
    SelectionSizes(3, 0, 4, 5),
    SelectionSizes(10, 2, 60, 3),
    SelectionSizes(5, 4, 1, 2),
    SelectionSizes(1, 0, 2, 0),
)
# Few tokens, so that lookups agree with candidates.
_TOKENS = 6


def random_rule(source: np.random.Generator, sizes: SelectionSizes) -> np.ndarray:
    """Return a rule between sober and absurd."""
    match, (_, depth, rows, lookup) = CONSTANTS["longest_match"] + 1, sizes
    wild = source.choice((0.1, 1.0, 5.0))
    price = source.choice((0.0, 0.02, 0.1, 1.0)) * source.random()
    steps = np.where(source.random(rows) < source.random(), price, 0.0) * source.random(rows)
    parts = {
        "bias": source.normal() * wild,
        "confidence": 1.0 + source.normal() * wild,
        "surplus": source.normal() * wild,
        "level": source.normal() * 0.3 * wild,
        "tail_inside": source.normal() * wild,
        "tail_score": source.normal() * wild,
        "agree": source.normal(size=match) * wild + 1.0,
        "disagree": source.normal(size=match) * wild - 1.0,
        "tail": source.normal(size=(match, lookup)) * wild + 1.0,
        "price": 1.0 + np.cumsum(steps),
        "pass_price": source.random(depth) * source.choice((0.0, 0.1, 0.5)),
        "ratio": source.random(depth),
        "gain": source.random(depth) * 2,
    }
    if source.random() < 0.3:
        parts["most_levels"] = int(source.integers(1, depth + 3))
    return pack_rule(sizes, parts)


@dataclass
class Drafts:
    """The drafts of S slots, level by level, and what else a call takes."""

    sizes: SelectionSizes
    rule: Tensor
    roots: Tensor
    lookup: LookedUp
    levels: list[tuple[Tensor, Tensor]]
    limits: Tensor | None = None

    def call(
        self, level: int
    ) -> tuple[Tensor, int, Tensor, Tensor, Tensor, LookedUp, Tensor | None]:
        """Return the arguments behind the selection."""
        return (self.rule, level, self.roots, *self.levels[level], self.lookup, self.limits)


def random_limits(seed: int, sizes: SelectionSizes, slots: int) -> Tensor:
    """Return (S, 4) limits; one number in ten is out of range."""
    source = np.random.default_rng((seed, 1))
    top_k, depth, rows, lookup = sizes
    limits = source.integers((1, 0, 1, 0), (rows + 1, depth + 1, top_k + 1, lookup + 1), (slots, 4))
    odd = source.choice((-(2**31), -1, 0, 2**31 - 1), limits.shape)
    limits = np.where(source.random(limits.shape) < 0.1, odd, limits)
    return torch.from_numpy(limits.astype(np.int32))


def random_drafts(seed: int, sizes: SelectionSizes, slots: int, limited: bool = False) -> Drafts:
    """Return random drafts; one in ten has equal, infinite or missing numbers among its scores.

    Args:
        seed: of all numbers.
        sizes: the largest draft and tree.
        slots: number of drafts.
        limited: whether each has limits of its own.
    """
    source = np.random.default_rng(seed)
    top_k, depth, _, lookup = sizes
    levels = []
    for level in range(depth + 1):
        shape = (slots, 1 if level == 0 else top_k, top_k)
        gains = -np.abs(source.normal(size=shape)) * source.choice((0.05, 0.7, 4.0), (slots, 1, 1))
        equal = source.random((slots, 1, 1)) < 0.1
        gains = np.where(equal, np.round(gains * 2) / 2, gains)
        odd = source.random(shape) < 0.02
        strange = source.choice(np.array([0.0, -0.0, -np.inf, np.nan, -1e-30, 1e-3]), shape)
        gains = np.where(odd & equal, strange, gains).astype(np.float32)
        # Children of one node have distinct tokens.
        ids = source.permuted(np.tile(np.arange(top_k + _TOKENS), (*shape[:2], 1)), axis=2)
        levels.append((torch.from_numpy(ids[..., :top_k].copy()), torch.from_numpy(gains)))
    matches = source.integers(-1, 20, slots) * (source.random(slots) < 0.7)
    looked_up = LookedUp(
        torch.from_numpy(matches.astype(np.int64)),
        torch.from_numpy(source.integers(-1, lookup + 2, slots)),
        torch.from_numpy(source.integers(0, _TOKENS, (slots, lookup))),
    )
    rule = stack_rules([random_rule(source, sizes) for _ in range(slots)])
    roots = torch.from_numpy(source.integers(0, 99, slots))
    limits = random_limits(seed, sizes, slots) if limited else None
    return Drafts(sizes, rule, roots, looked_up, levels, limits)
