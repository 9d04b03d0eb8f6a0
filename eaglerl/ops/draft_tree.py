"""Bookkeeping of EAGLE-3's dynamic draft tree (Li et al., 2025), in native code."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl._renamed import RenamedAttribute, renamed_arguments
from eaglerl.ops._check import NativeState, check_contiguous, check_rows, check_tensor

_WORD_BITS = 64


def mask_words(bits: int) -> int:
    """Return how many int64 words hold a row of ``bits`` mask bits."""
    return -(-bits // _WORD_BITS)


class Frontier(NamedTuple):
    """The K nodes that the next draft pass expands.

    Attributes:
        token_ids: int64 (K,), target ids.
        parents: int64 (K,), the row of the last draft pass that predicted each (0 after the first).
        mask: int64 (K, words): bit j is set for the scratch rows j that a node sees, its ancestors
            and itself; rank r of round i (0 after the first pass) has scratch row i * K + r.
    """

    token_ids: Tensor
    parents: Tensor
    mask: Tensor


class DraftTree(NamedTuple):
    """The rows that the target verifies, parents first; row 0 is the root.

    Attributes:
        token_ids: int64 (T,), target ids.
        parents: int32 (T,), row of the parent; -1 for the root.
        levels: int32 (T,), distance from the root.
        mask: int64 (T, words), bit j is set iff row j is the row itself or an ancestor.
        scores: float32 (T,), cumulative log-probability under the draft; 0 for the root.
    """

    token_ids: Tensor
    parents: Tensor
    levels: Tensor
    mask: Tensor
    scores: Tensor


class TreePlanner(Protocol):
    """What decides natively between the passes of a draft."""

    def look(
        self,
        builder: C.DraftTreeBuilder,
        context_length: int,
        match_length: int,
        looked_up: Sequence[int],
        /,
    ) -> bool:
        """Look at the candidates so far; return whether another pass is worth its time."""

    def select_in(
        self, builder: C.DraftTreeBuilder, looked_up: Sequence[int], /
    ) -> tuple[int, int]:
        """Select the nodes to verify; return the rows of the tree, and those without lookups."""


class DraftTreeBuilder(NativeState):
    """Bookkeeping of one draft tree: a pool of candidates that grows with every draft pass.

    A cycle calls :meth:`begin`, :meth:`first` with the logits of the pass over the accepted tokens,
    :meth:`frontier` and :meth:`expand` any number of times, and :meth:`finish`. Every pass gives
    each of its rows the K most probable children; the K best of the K * K new candidates, by
    cumulative log-probability, are the next frontier. Of all candidates, ``total_tokens - 1`` are
    verified. Where scores tie, the candidate drafted earlier wins, so that a node is never chosen
    without its ancestors.

    A method called out of this order raises a RuntimeError. A builder cannot be copied.
    """

    def __init__(self) -> None:
        self._native = C.DraftTreeBuilder()
        self._frontiers: dict[tuple[int, int], Frontier] = {}

    @property
    def pool_size(self) -> int:
        """The number of candidates so far: K + rounds * K * K."""
        return self._native.pool_size

    def begin(self, root_token: int, top_k: int) -> None:
        """Start a tree.

        Args:
            root_token: the last token, which the target chose; row 0 of the tree.
            top_k: K, the width of the frontier and the number of children of each of its nodes.

        Raises:
            ValueError: if ``top_k`` is below 1 or above 4,096.
        """
        self._native.begin(root_token, top_k)

    def first(self, logits: Tensor, draft_to_target: Tensor | None = None) -> None:
        """Add the children of the root.

        Args:
            logits: float32 (draft vocabulary,), the draft's logits after the root token.
            draft_to_target: int64 (draft vocabulary,), target ids; default: the same ids.

        Raises:
            ValueError: if K exceeds the vocabulary, or a logit is NaN or infinite.
        """
        check_tensor("logits", logits, torch.float32, 1)
        check_contiguous("logits", logits, torch.float32, (logits.shape[0],))
        vocab = logits.shape[0]
        self._native.first(logits.data_ptr(), vocab, _map_address(draft_to_target, vocab))

    def frontier(self) -> Frontier:
        """Return the nodes to expand next. The next call of this method overwrites the tensors."""
        top_k, rounds = self._native.top_k, self._native.rounds
        words = mask_words(top_k * rounds)
        buffers = self._frontiers.get((top_k, words))
        if buffers is None:
            buffers = Frontier(
                torch.empty(top_k, dtype=torch.int64),
                torch.empty(top_k, dtype=torch.int64),
                torch.empty(top_k, words, dtype=torch.int64),
            )
            self._frontiers[top_k, words] = buffers
        token_ids, parents, mask = (buffer.data_ptr() for buffer in buffers)
        self._native.frontier(token_ids, parents, mask, words)
        return buffers

    def expand(self, logits: Tensor, draft_to_target: Tensor | None = None) -> None:
        """Add the children of the frontier's nodes.

        Args:
            logits: float32 (K, draft vocabulary), rows contiguous, one per frontier node.
            draft_to_target: as for :meth:`first`.

        Raises:
            ValueError: if the number of rows is not K, a logit is NaN or infinite, or there would
                be more than 2^24 candidates.
        """
        stride = check_rows("logits", logits)
        rows, vocab = logits.shape
        if rows != self._native.top_k:
            raise ValueError(f"logits must have {self._native.top_k} rows, not {rows}")
        self._native.expand(
            logits.data_ptr(), stride, vocab, _map_address(draft_to_target, vocab), thread_count()
        )

    def scores(self) -> Tensor:
        """Return the cumulative log-probabilities of all candidates so far.

        Returns:
            float32 (pool size,), in the order of the rounds.
        """
        out = torch.empty(self.pool_size)
        self._native.scores(out.data_ptr())
        return out

    def finish(self, total_tokens: int) -> DraftTree:
        """Choose the best candidates.

        Args:
            total_tokens: T, the rows to verify, the root included.

        Returns:
            The tree, in new tensors.

        Raises:
            ValueError: if T is below 1 or above 16,384, or T - 1 exceeds the pool.
        """
        fits = 1 <= total_tokens <= min(1 + self.pool_size, C.max_tree_rows)
        tree = _empty_tree(total_tokens if fits else 1)
        self._native.finish(total_tokens, *_addresses(tree))
        return tree

    @renamed_arguments(chain="lookup_tokens")
    def finish_selected(
        self, nodes: Sequence[int] | np.ndarray, lookup_tokens: Sequence[int] = ()
    ) -> DraftTree:
        """Return a tree of chosen candidates, with looked-up tokens merged into it.

        Args:
            nodes: indices of candidates, ancestors included, in any order. Candidates are numbered
                in the order of the rounds.
            lookup_tokens: target ids of a path below the root. Tokens that the chosen candidates
                hold share their rows; the rest is appended with the score NaN, since the draft did
                not score it.

        Returns:
            The tree, in new tensors: the candidates in the order of the rounds, then the rest of
            the looked-up tokens.

        Raises:
            ValueError: if a node is outside the pool, occurs twice, or lacks its parent, or the
                tree has more than 16,384 rows.
            TypeError: if ``nodes`` or ``lookup_tokens`` contain anything but integers.
        """
        chosen = nodes.tolist() if isinstance(nodes, np.ndarray) else nodes
        tree = _empty_tree(self._native.select(chosen, lookup_tokens))
        self._native.finish_selected(*_addresses(tree))
        return tree

    @renamed_arguments(chain="lookup_tokens")
    def lookup_nodes(self, lookup_tokens: Sequence[int], levels: int) -> Tensor:
        """Find the candidates that hold looked-up tokens.

        Args:
            lookup_tokens: target ids of a path below the root.
            levels: number of levels to search.

        Returns:
            int64 (levels,), index of each level's candidate; -1 from the first level without one.

        Raises:
            ValueError: if ``levels`` is negative or above 16,384.
            TypeError: if ``lookup_tokens`` contain anything but integers.
        """
        if not 0 <= levels <= C.max_tree_rows:
            raise ValueError(f"levels must be in 0..{C.max_tree_rows}, got {levels}")
        nodes = torch.empty(levels, dtype=torch.int64)
        self._native.lookup_nodes(lookup_tokens, levels, nodes.data_ptr())
        return nodes

    def look(
        self,
        planner: TreePlanner,
        context_length: int,
        match_length: int,
        lookup_tokens: Sequence[int],
    ) -> bool:
        """Let a native planner look at the candidates so far: `progress` without its arrays.

        Args:
            planner: the planner.
            context_length: tokens before the tree, the root included.
            match_length: length of the lookup's match.
            lookup_tokens: target ids of a path below the root.

        Returns:
            Whether another pass of the draft is worth its time.

        Raises:
            ValueError: if the draft has another top_k than the planner, or more rounds than it
                knows.
        """
        return planner.look(self._native, context_length, match_length, lookup_tokens)

    def finish_planned(
        self, planner: TreePlanner, lookup_tokens: Sequence[int]
    ) -> tuple[DraftTree, int]:
        """Return the tree that a native planner has chosen in its last `look`.

        Args:
            planner: the planner.
            lookup_tokens: as for `look`; as many as the planner chose are merged in.

        Returns:
            The tree, see `finish_selected`, and the number of its rows without those that only the
            lookup proposed.

        Raises:
            ValueError: if the planner has not looked, or at another draft.
        """
        rows, candidates = planner.select_in(self._native, lookup_tokens)
        tree = _empty_tree(rows)
        self._native.finish_selected(*_addresses(tree))
        return tree, candidates

    def progress(
        self, lookup_tokens: Sequence[int], levels: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return `scores` and `lookup_nodes` at once, in new arrays.

        Args:
            lookup_tokens: see `lookup_nodes`.
            levels: see `lookup_nodes`.

        Returns:
            float32 (pool size,) scores, and int64 (levels,) nodes; None if nothing was looked up.

        Raises:
            ValueError: see `lookup_nodes`.
            TypeError: see `lookup_nodes`.
        """
        return self._native.progress(lookup_tokens, levels)

    chain_nodes = RenamedAttribute("lookup_nodes")


def tree_structure(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Derive levels and the ancestor mask from the parents of a tree's rows.

    Args:
        parents: int32 (T,), parents before children; that of the root, row 0, is ignored.

    Returns:
        Levels, int32 (T,), and the mask, int64 (T, words), as in :class:`DraftTree`.

    Raises:
        TypeError: if ``parents`` is not an int32 tensor.
        ValueError: if a row's parent is not an earlier row, or there are no rows or more than
            16,384.
    """
    check_tensor("parents", parents, torch.int32, 1)
    rows = parents.shape[0]
    if not 1 <= rows <= C.max_tree_rows:
        raise ValueError(
            f"parents must have 1 to {C.max_tree_rows} rows, root included, got {rows}"
        )
    check_contiguous("parents", parents, torch.int32, (rows,))
    words = mask_words(rows)
    levels = torch.empty(rows, dtype=torch.int32)
    mask = torch.empty(rows, words, dtype=torch.int64)
    C.tree_structure(parents.data_ptr(), rows, levels.data_ptr(), mask.data_ptr(), words)
    return levels, mask


def _empty_tree(rows: int) -> DraftTree:
    return DraftTree(
        token_ids=torch.empty(rows, dtype=torch.int64),
        parents=torch.empty(rows, dtype=torch.int32),
        levels=torch.empty(rows, dtype=torch.int32),
        mask=torch.empty(rows, mask_words(rows), dtype=torch.int64),
        scores=torch.empty(rows),
    )


def _addresses(tree: DraftTree) -> tuple[int, int, int, int, int, int]:
    """Return the addresses and sizes of a tree's tensors, as native code takes them."""
    token_ids, parents, levels, mask, scores = (tensor.data_ptr() for tensor in tree)
    return token_ids, parents, levels, mask, tree.mask.shape[1], scores


def _map_address(draft_to_target: Tensor | None, vocab: int) -> int:
    if draft_to_target is None:
        return 0
    check_contiguous("draft_to_target", draft_to_target, torch.int64, (vocab,))
    return draft_to_target.data_ptr()
