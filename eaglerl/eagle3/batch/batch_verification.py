"""The verification of a cycle: the trees of all slots in as few passes as possible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

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
from eaglerl.ops import DraftTree, GreedyPath, greedy_paths


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
        ends = list(accumulate((part.tree_rows for part in parts), initial=0))
        greedy = [
            index
            for index, part in enumerate(parts)
            if type(part.sequence.verifier) is GreedyVerifier
        ]
        paths: dict[int, GreedyPath] = {}
        if greedy:
            logits = output.logits.float().contiguous()
            chosen = [trees[index] for index in greedy]
            found = greedy_paths(logits, chosen, [ends[index] for index in greedy])
            paths = dict(zip(greedy, found, strict=True))
        for index, (part, (begin, end)) in enumerate(zip(parts, pairwise(ends), strict=True)):
            with failing(part):
                self._accept(part, _rows_of(output, begin, end), paths.get(index))

    def _accept(self, part: CyclePart, output: TargetOutput, path: GreedyPath | None) -> None:
        """Accept rows of one tree.

        Args:
            part: the tree's part.
            output: the T rows of the tree.
            path: the greedy path; None if the part's verifier is another one.
        """
        tree, logits, sequence = _tree_of(part), output.logits, part.sequence
        assert logits is not None, "checked for the whole pass"
        if path is None:
            rows, bonus = sequence.verifier.accept(logits, tree)
            check_logits(bool(logits[rows].isnan().any()))
        else:
            check_logits(path.has_nan)
            rows, bonus = path.rows, path.tokens[-1]
        accepted = keep_path(output.features, tree, rows, bonus, self._cache, part.slot)
        if sequence.records_logprobs:
            sequence.record_logprobs(logits[accepted.rows], accepted.emitted)
        sequence.keep(accepted, part.tree_rows)
        part.accepted = accepted


def _tree_of(part: CyclePart) -> DraftTree:
    assert part.tree is not None, "a part that is verified has a tree"
    return part.tree


def _rows_of(output: TargetOutput, begin: int, end: int) -> TargetOutput:
    logits = None if output.logits is None else output.logits[begin:end]
    return TargetOutput(logits, output.features[begin:end], output.last_hidden_state[begin:end])
