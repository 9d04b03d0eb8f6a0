"""The verification of a cycle: the trees of all slots in as few passes as possible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from eaglerl.eagle3.acceptance import keep_path
from eaglerl.eagle3.batch.batched_sequence import (
    CyclePart,
    check_logits,
    failing,
    shared_passes,
)
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS, RowBatch
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.target_model import TargetModel, TargetOutput
from eaglerl.ops import DraftTree


class BatchVerification:
    """Verifies the trees of several slots and accepts for each with its own verifier."""

    def __init__(self, target: TargetModel, cache: KVCache) -> None:
        """Set up.

        Args:
            target: the target.
            cache: its KV cache, with the slots.
        """
        self._target = target
        self._cache = cache
        self._most_rows = MOST_EXACT_ROWS if target.mixes_slots else 0
        self._greedy = GreedyVerifier()

    def verify(self, parts: Sequence[CyclePart]) -> None:
        """Verify the trees of these parts; commit and append what is accepted."""
        sizes = [part.tree_rows for part in parts]
        rooms = [self._cache.capacity - self._cache.lengths[part.slot] for part in parts]
        for group in shared_passes(sizes, sizes, rooms, self._most_rows):
            chosen = [parts[index] for index in group]
            with failing(*chosen):
                self._verify_together(chosen)

    def _verify_together(self, parts: Sequence[CyclePart]) -> None:
        trees = [_tree_of(part) for part in parts]
        starts = [self._cache.lengths[part.slot] for part in parts]
        rows = RowBatch.trees(trees, starts, [part.slot for part in parts])
        output = self._target.forward(rows, self._cache, "all")
        assert output.logits is not None, "the verification asks for all logits"
        choices: torch.Tensor | None = None
        if any(type(part.sequence.verifier) is GreedyVerifier for part in parts):
            choices = self._greedy.choices(output.logits)
        bounds = accumulate((part.tree_rows for part in parts), initial=0)
        for part, (begin, end) in zip(parts, pairwise(bounds), strict=True):
            with failing(part):
                self._accept(part, _rows_of(output, begin, end), choices, begin)

    def _accept(
        self, part: CyclePart, output: TargetOutput, choices: torch.Tensor | None, begin: int
    ) -> None:
        """Accept rows of one tree.

        Args:
            part: the tree's part.
            output: the T rows of the tree.
            choices: most probable token after every row of the pass; None if no slot is greedy.
            begin: first row of the tree in the pass.
        """
        tree, logits, sequence = _tree_of(part), output.logits, part.sequence
        assert logits is not None, "checked for the whole pass"
        if choices is not None and type(sequence.verifier) is GreedyVerifier:
            own = choices[begin : begin + len(logits)]
            rows, bonus = self._greedy.follow(own, tree)
            # An argmax finds a NaN wherever there is one.
            check_logits(logits[rows, own[rows]])
        else:
            rows, bonus = sequence.verifier.accept(logits, tree)
            check_logits(logits[rows])
        accepted = keep_path(output.features, tree, rows, bonus, self._cache, part.slot)
        sequence.record_logprobs(logits[accepted.rows], accepted.emitted)
        sequence.keep(accepted, part.tree_rows)
        part.accepted = accepted


def _tree_of(part: CyclePart) -> DraftTree:
    assert part.tree is not None, "a part that is verified has a tree"
    return part.tree


def _rows_of(output: TargetOutput, begin: int, end: int) -> TargetOutput:
    logits = None if output.logits is None else output.logits[begin:end]
    return TargetOutput(logits, output.features[begin:end], output.last_hidden_state[begin:end])
