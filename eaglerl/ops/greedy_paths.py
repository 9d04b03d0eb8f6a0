"""Greedy acceptance of draft trees, from the logits that one pass has computed for all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._check import check_contiguous, check_tensor
from eaglerl.ops.draft_tree import DraftTree


class GreedyPath(NamedTuple):
    """The path through a tree that greedy decoding takes.

    Attributes:
        rows: its rows, the root first.
        tokens: their tokens but for the root's, and the target's own next token.
        has_nan: whether there is a NaN among the logits after its rows. The token there is that of
            the first NaN, as with torch's argmax.
    """

    rows: list[int]
    tokens: list[int]
    has_nan: bool


def greedy_paths(
    logits: Tensor, trees: Sequence[DraftTree], first_rows: Sequence[int] | None = None
) -> list[GreedyPath]:
    """Follow the largest logits from every tree's root as long as a child has that token.

    Of equal logits the first counts, and of equal siblings the first. The logits of rows off the
    path are not read.

    Args:
        logits: float32 (R, V) on the CPU, contiguous: after every row of all trees.
        trees: trees of 1 to 16,384 rows; their token ids int64 and parents int32, of which all but
            the root's are earlier rows.
        first_rows: row of the logits of every tree's root; one tree after another if None.

    Returns:
        One path per tree.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: shapes are wrong, a tree's rows do not lie within the logits, or a row's parent
            is not an earlier row.
    """
    check_tensor("logits", logits, torch.float32, 2)
    rows, vocab = logits.shape
    check_contiguous("logits", logits, torch.float32, (rows, vocab))
    native, begin = [], 0
    for index, (token_ids, parents, *_) in enumerate(trees):
        count = len(token_ids)
        check_contiguous("token_ids", token_ids, torch.int64, (count,))
        check_contiguous("parents", parents, torch.int32, (count,))
        first = begin if first_rows is None else first_rows[index]
        native.append((parents.data_ptr(), token_ids.data_ptr(), count, first))
        begin = first + count
    found = C.greedy_paths(logits.data_ptr(), rows, vocab, vocab, native, thread_count())
    return [GreedyPath(*path) for path in found]


def greedy_paths_ref(
    logits: Tensor, trees: Sequence[DraftTree], first_rows: Sequence[int] | None = None
) -> list[GreedyPath]:
    """Compute `greedy_paths` in plain torch, for tests."""
    paths, begin = [], 0
    for index, tree in enumerate(trees):
        first = begin if first_rows is None else first_rows[index]
        own = logits[first : first + len(tree.token_ids)]
        begin = first + len(tree.token_ids)
        rows, tokens = [0], []
        while True:
            tokens.append(int(own[rows[-1]].argmax()))
            match = (tree.parents == rows[-1]) & (tree.token_ids == tokens[-1])
            match[0] = False
            if not match.any():
                break
            rows.append(int(match.nonzero()[0]))
        paths.append(GreedyPath(rows, tokens, bool(own[rows].isnan().any())))
    return paths
