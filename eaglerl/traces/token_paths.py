"""The places of a text's true and looked-up tokens among the draft's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eaglerl.eagle3.tree.prompt_lookup import ContextLookup
from eaglerl.ops import DraftTree, accept_path
from eaglerl.traces.greedy_continuations import GreedyText
from eaglerl.traces.trace_set import ABSENT


def future_tokens(token_ids: Sequence[int], positions: int, levels: int) -> torch.Tensor:
    """Return (P, levels + 1) int64: each root, then the true token of every level below it."""
    ids = torch.tensor(token_ids, dtype=torch.int64)
    return ids.unfold(0, levels + 1, 1)[:positions]


def find_path(tree: DraftTree, tokens: torch.Tensor) -> np.ndarray:
    """Find a sequence of tokens in a pool.

    Args:
        tree: the whole pool as a tree.
        tokens: (levels + 1,) int64, the root and the token of each level; -1 for no token.

    Returns:
        (levels,) int16 pool index of the node of each level; -1 from the first missing one on.
    """
    # Greedy acceptance finds the path, given a "target" that chooses the token of level l + 1 after
    # every row of level l.
    levels = len(tokens) - 1
    following = torch.cat((tokens[1:], tokens.new_full((1,), -1)))
    rows = accept_path(tree.parents, tree.token_ids, following[tree.levels.long()])
    path = np.full(levels, -1, dtype=np.int16)
    path[: len(rows) - 1] = rows[1:].numpy() - 1
    return path


def pool_ranks(scores: np.ndarray, path: np.ndarray, top_k: int, max_depth: int) -> np.ndarray:
    """Compute the ranks of the true nodes in the pools of all depths.

    Args:
        scores: (P, K + D K^2) float32 cumulative log-probabilities, in the order of the rounds.
        path: (P, D + 1) pool index of the true node of each level; -1 for none.
        top_k: K.
        max_depth: D.

    Returns:
        (P, D + 1, D + 1) int16, [position, depth, level]: the number of candidates in that depth's
        pool that come before the node, by descending score and then ascending index, as when a tree
        is chosen; `ABSENT` for a node outside the pool.
    """
    levels = max_depth + 1
    index = np.maximum(path, 0).astype(np.int64)
    own = np.take_along_axis(scores, index, axis=1)
    order = np.arange(scores.shape[1])
    ranks = np.full((len(scores), levels, levels), ABSENT, dtype=np.int16)
    for level in range(levels):
        mine = own[:, level, None]
        earlier = (scores == mine) & (order < index[:, level, None])
        # The running count at the end of a depth's pool is the node's rank there.
        before = ((scores > mine) | earlier).cumsum(axis=1, dtype=np.int32)
        for depth in range(level, levels):
            rank = before[:, top_k + depth * top_k**2 - 1]
            ranks[:, depth, level] = np.where(path[:, level] >= 0, rank, ABSENT)
    return ranks


def look_up(
    text: GreedyText, positions: int, lookup_tokens: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look up what followed the last tokens of the text, at every position.

    Returns:
        Match lengths and numbers of accepted tokens, (P,) uint8 each, and the looked-up tokens,
        (P, lookup_tokens) int64, -1 if nothing matches.
    """
    lookup = ContextLookup(text.prompt_ids)
    match, accepted = np.zeros((2, positions), dtype=np.uint8)
    tokens = np.full((positions, lookup_tokens), -1, dtype=np.int64)
    for position in range(positions):
        lookup.extend(text.token_ids[position : position + 1])
        found = lookup.propose(lookup_tokens)
        match[position] = found.match_length
        tokens[position, : len(found.token_ids)] = found.token_ids
        true = text.token_ids[position + 1 : position + 1 + lookup_tokens]
        agrees = tokens[position] == np.array(true)
        accepted[position] = np.logical_and.accumulate(agrees).sum()
    return match, accepted, tokens
