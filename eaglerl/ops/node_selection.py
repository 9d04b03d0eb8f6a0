"""What `select_draft_nodes` works on: the state of drafts on a device, and the rule of a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._operands import check_int

#: Fixed point and limits, by the names of ``csrc/acceptance/selection_rules.h``.
CONSTANTS: dict[str, int] = dict(C.selection_constants)
#: Words of a slot's record.
LEVELS, STOPPED, NODES, ADDED, INSIDE, EXPECTED, PROMISED, PASS_COST = (
    CONSTANTS[f"{name}_word"]
    for name in (
        "levels", "stopped", "nodes", "added", "inside", "expected", "promised", "pass_cost",
    )
)  # fmt: skip
RECORD_WORDS: int = CONSTANTS["record_words"]
_SLOPES = ("confidence", "surplus", "tail_score")
_TERMS = ("bias", "level", "tail_inside", "agree", "disagree", "tail")
_LISTS = ("agree", "disagree", "tail", "price", "pass_price", "ratio", "gain")


class SelectionSizes(NamedTuple):
    """The largest draft, and the size of the verified tree.

    Attributes:
        top_k: width K of the draft; 1 to 32.
        depth: passes D after the first one; 0 to 31.
        rows: rows R of the verified tree, the root and unused rows included; 1 to 256.
        lookup_tokens: most looked-up tokens L; 0 to 64.
    """

    top_k: int
    depth: int
    rows: int
    lookup_tokens: int = 0

    @property
    def pool_size(self) -> int:
        """Number P of candidates, K + D K^2."""
        return self.top_k + self.depth * self.top_k**2

    def level_begin(self, level: int) -> int:
        """Return the first candidate of a level, from 0."""
        return 0 if level == 0 else self.top_k + (level - 1) * self.top_k**2


def check_sizes(sizes: SelectionSizes) -> None:
    """Check sizes.

    Raises:
        TypeError: one is not an int.
        ValueError: one is out of range.
    """
    for name, value in sizes._asdict().items():
        most = CONSTANTS[f"most_{'lookup' if name == 'lookup_tokens' else name}"]
        least = 1 if name in ("top_k", "rows") else 0
        check_int(name, value, least, most)


def scratch_words(sizes: SelectionSizes) -> int:
    """Return the words that launches keep of a slot, see ``kernels/_selection_plan.py``."""
    kept, children = sizes.rows - 1, sizes.top_k**2
    return 2 * kept + sizes.top_k + 1 + power_of_two(kept + children + sizes.lookup_tokens)


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def tensor_layout(
    slots: int, sizes: SelectionSizes
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of every tensor of a `NodeSelection`, in the order of the operator.

    Args:
        slots: number of sequences.
        sizes: the largest draft and tree.
    """
    whole, word, flag = torch.int64, torch.int32, torch.bool
    pool, rows = (slots, sizes.pool_size), (slots, sizes.rows)
    return {
        "record": (word, (slots, RECORD_WORDS)),
        "scores": (torch.float32, pool),
        "pool_ids": (whole, pool),
        "pool_parents": (word, pool),
        "logits": (word, pool),
        "lookup_nodes": (word, (slots, sizes.depth + 1)),
        "frontier": (whole, (slots, 3, sizes.top_k)),
        "row_ids": (whole, rows),
        "row_parents": (whole, rows),
        "row_levels": (whole, rows),
        "row_nodes": (word, rows),
        "ancestors": (flag, (*rows, sizes.rows)),
        "enabled": (flag, rows),
        "scratch": (whole, (slots, scratch_words(sizes))),
    }


#: How many of a `NodeSelection`'s tensors hold the draft; rows to verify, and scratch memory of
#: launches, follow.
STATE_TENSORS = 7


class LookedUp(NamedTuple):
    """What prompt lookup proposes for every slot, on the device of the drafts.

    Attributes:
        match_lengths: (S,) int64 tokens that the match has; 0 for no lookup.
        counts: (S,) int64 tokens that were looked up.
        token_ids: (S, L) int64, of which the first ones count.
    """

    match_lengths: Tensor
    counts: Tensor
    token_ids: Tensor


class NodeSelection:
    """The drafts of S slots between their passes, and the rows that each would verify now.

    All tensors are allocated once, so a CUDA graph may hold `select_draft_nodes`. The rows of a
    tree are the root, the chosen candidates in the order of the pool, the looked-up tokens that no
    candidate holds, and rows that are not used: those hold the root's token below the root, and no
    path leads through them.

    Attributes:
        sizes: the largest draft and tree.
        record: (S, 8) int32: levels scored, whether further passes are ignored, candidates and
            looked-up tokens among the rows, leading looked-up tokens that candidates hold, expected
            accepted tokens in units of 2^-20, and what further passes promise and cost in the same
            unit.
        scores: (S, P) float32 cumulative log-probabilities of the candidates.
        pool_ids: (S, P) int64 their tokens.
        pool_parents: (S, P) int32 their parents; -1 for the root.
        logits: (S, P) int32 logits of their survivals in units of 2^-12.
        lookup_nodes: (S, D + 1) int32 candidates that hold the looked-up tokens; -1 for none.
        frontier: (S, 3, K) int64: candidates that the next pass expands, their tokens, and which
            of the expanded nodes is the parent of each.
        row_ids: (S, R) int64 tokens of the rows.
        row_parents: (S, R) int64 rows of their parents; the root's is 0.
        row_levels: (S, R) int64 distance from the root.
        row_nodes: (S, R) int32 candidates; P + i for the looked-up token i; -1 for others.
        ancestors: (S, R, R) bool, whether a column is the row itself or an ancestor of it.
        enabled: (S, R) bool, whether a path may lead through the row.
        tensors: all of these by name, and `scratch`, the memory of launches.
        tables: confidences and survivals, as the rule looks them up.
        no_lookup: stands for no lookup in any slot.
    """

    sizes: SelectionSizes
    tensors: dict[str, Tensor]
    tables: list[Tensor]
    no_lookup: LookedUp

    def __init__(
        self, slots: int, sizes: SelectionSizes, *, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate.

        Args:
            slots: number S of sequences, at least 1.
            sizes: the largest draft and tree.
            device: where everything lies.

        Raises:
            TypeError: a number is not an int.
            ValueError: a number is out of range.
        """
        check_sizes(sizes)
        if not isinstance(slots, int) or isinstance(slots, bool):
            raise TypeError(f"slots must be an int, got {slots!r}")
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        self.sizes = sizes
        self.tensors = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, (dtype, shape) in tensor_layout(slots, sizes).items()
        }
        none = torch.zeros(slots, dtype=torch.int64, device=device)
        self.no_lookup = LookedUp(none, none, none.new_zeros(slots, sizes.lookup_tokens))
        tables = (torch.from_numpy(table) for table in C.selection_tables())
        self.tables = [table.to(device) for table in tables]

    def __getattr__(self, name: str) -> Tensor:
        """Return a tensor by its name."""
        if name != "tensors" and name in self.tensors:
            return self.tensors[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def slots(self) -> int:
        """Number of sequences."""
        return len(self.record)

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.record.device


def rule_layout(sizes: SelectionSizes) -> dict[str, int]:
    """Return where each part of a rule begins, by name, and the number of its words."""
    return dict(C.selection_rule_layout(list(sizes)))


def pack_rule(sizes: SelectionSizes, parts: Mapping[str, Any]) -> np.ndarray:
    """Return a rule's words, rounded to the fixed point of its parts and clipped to its limits.

    The logit of a candidate's survival is ``bias + confidence * c + surplus * max(c, 0) + level *
    l``, where c is the logit of the draft's own cumulative probability and l the level from 0; if
    prompt lookup has a match of m tokens, ``agree[m]`` is added to the candidate that holds the
    looked-up token and ``disagree[m]`` to all others. It never exceeds the parent's. The logit of
    a looked-up token that no candidate holds, given the one before it, is ``tail[m][i]``, plus
    ``tail_inside`` if the beginning was drafted, plus for the first such token ``tail_score`` times
    the score of the draft's first candidate.

    Args:
        sizes: the largest draft and tree.
        parts: by name: the floats ``bias``, ``confidence``, ``surplus``, ``level``,
            ``tail_inside``, ``tail_score`` (0 where missing); the int ``most_levels`` (no limit
            where missing); ``agree`` and ``disagree`` (17,), ``tail`` (17, L) logits by the length
            of the match; ``price`` (R,) tokens that verifying 1, 2, ... rows costs, not falling;
            ``pass_price`` (D,) tokens that each pass after the first costs; ``ratio`` (D,) survival
            of a level's best candidates beside that of the level before; ``gain`` (D,) share of
            what a pass promises that comes true.

    Returns:
        (words,) int32.

    Raises:
        ValueError: a part is unknown, missing, of the wrong shape, or not finite; or prices fall.
    """
    layout = rule_layout(sizes)
    names = set(layout) - {"words"}
    if unknown := set(parts) - names:
        raise ValueError(f"parts must be among {', '.join(sorted(names))}, got {sorted(unknown)}")
    match, (_, depth, rows, lookup) = CONSTANTS["longest_match"] + 1, sizes
    shapes: dict[str, tuple[int, ...]] = {
        "agree": (match,), "disagree": (match,), "tail": (match, lookup), "price": (rows,),
        "pass_price": (depth,), "ratio": (depth,), "gain": (depth,),
    }  # fmt: skip
    words = np.zeros(layout["words"], np.int32)
    words[layout["most_levels"]] = parts.get("most_levels", np.iinfo(np.int32).max)
    for name in sorted(names - {"most_levels"}):
        shape = shapes.get(name, ())
        if name in _LISTS and name not in parts:
            raise ValueError(f"{name} is missing: it must have shape {shape}")
        given = np.asarray(parts.get(name, 0.0), np.float64)
        if given.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError(f"{name} must be finite, got {given}")
        bits, least, most = _fixed_point(name)
        fixed = np.clip(np.rint(given * (1 << bits)), least, most).astype(np.int32).ravel()
        if name == "price" and (np.diff(fixed) < 0).any():
            raise ValueError(f"price must not fall, got {given}")
        words[layout[name] : layout[name] + fixed.size] = fixed
    return words


def _fixed_point(name: str) -> tuple[int, int, int]:
    """Return the fractional bits of a part, and its smallest and largest word."""
    logit, survival, ratio = (CONSTANTS[f"{kind}_bits"] for kind in ("logit", "survival", "ratio"))
    if name in _SLOPES:
        return logit, -CONSTANTS["most_slope"], CONSTANTS["most_slope"]
    if name in _TERMS:
        return logit, -CONSTANTS["most_term"], CONSTANTS["most_term"]
    if name == "ratio":
        return ratio, 0, 1 << ratio
    if name == "gain":
        return ratio, 0, CONSTANTS["most_gain"]
    return survival, 0, CONSTANTS["most_price"]


def stack_rules(rules: Sequence[np.ndarray], device: torch.device | str = "cpu") -> Tensor:
    """Return the rules of several slots as (S, words) int32 on a device.

    The copy to a device does not wait: the host's memory is pinned where there is CUDA.

    Args:
        rules: (words,) int32 each, see `pack_rule`.
        device: where they are used.
    """
    stacked = torch.from_numpy(np.stack(rules))
    if torch.device(device).type == "cuda":
        return stacked.pin_memory().to(device, non_blocking=True)
    return stacked.to(device)
