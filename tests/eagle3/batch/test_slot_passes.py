"""Passes over rows of several slots do for each slot what a pass of its own does."""

import random
from itertools import pairwise

import pytest
import torch

from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.head.packed_slots import PackedSlots, SlotRows
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.ops import DraftTree, DraftTreeBuilder, tree_structure

from ..tiny import tiny_head, tiny_model

CAPACITY = 300
# Sums in another order: attention is cut into other pieces, and oneDNN multiplies other numbers of
# rows in other blocks.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def target():
    return make_target(tiny_model(), backend="packed")


def random_tree(rows: int, vocab: int, draw: random.Random) -> DraftTree:
    parents = [-1, *(draw.randrange(row) for row in range(1, rows))]
    parents = torch.tensor(parents, dtype=torch.int32)
    levels, mask = tree_structure(parents)
    tokens = torch.tensor([draw.randrange(vocab) for _ in range(rows)])
    return DraftTree(tokens, parents, levels, mask, torch.zeros(rows))


@pytest.mark.parametrize("sizes", [[1, 1], [1, 20, 3], [16, 16, 16, 16], [5], [40, 1, 2, 21]])
def test_trees_of_several_slots_get_the_bits_that_they_get_alone(target, sizes) -> None:
    draw = random.Random(sum(sizes))
    slots = draw.sample(range(6), len(sizes))
    starts = [draw.choice([1, 5, 33, 200]) for _ in sizes]
    trees = [random_tree(size, target.vocab_size, draw) for size in sizes]
    shared, alone = target.new_cache(CAPACITY, 6), target.new_cache(CAPACITY, 6)
    for slot, start in zip(slots, starts, strict=True):
        prompt = [draw.randrange(target.vocab_size) for _ in range(start)]
        for cache in (shared, alone):
            target.forward(RowBatch.causal(prompt, 0, slot), cache, "none")
            cache.commit(range(start), slot)
    output = target.forward(RowBatch.trees(trees, starts, slots), shared)
    bounds = pairwise([sum(sizes[:count]) for count in range(len(sizes) + 1)])
    for tree, start, slot, (begin, end) in zip(trees, starts, slots, bounds, strict=True):
        rows = RowBatch.tree(tree.token_ids, tree.levels, tree.mask, start, slot)
        own = target.forward(rows, alone)
        assert torch.equal(output.logits[begin:end], own.logits)
        assert torch.equal(output.features[begin:end], own.features)
        end = start + len(tree.token_ids)
        assert torch.equal(shared.data[slot, ..., :end, :], alone.data[slot, ..., :end, :])


def test_trees_with_masks_of_different_widths() -> None:
    draw = random.Random(3)
    trees = [random_tree(size, 60, draw) for size in (3, 130, 64)]
    rows = RowBatch.trees(trees, [10, 4, 7], [2, 0, 1])
    visible = rows.visibility(200)
    begin = 0
    for tree, start in zip(trees, (10, 4, 7), strict=True):
        size = len(tree.token_ids)
        alone = RowBatch.tree(tree.token_ids, tree.levels, tree.mask, start).visibility(200)
        assert torch.equal(visible[begin : begin + size], alone)
        begin += size
    assert rows.slots.tolist() == [2] * 3 + [0] * 130 + [1] * 64


class Draft:
    """Random rounds of drafting in every slot of a runner, by one pass per slot or per round."""

    def __init__(self, runner: PackedDraft, widths: list[int], seed: int) -> None:
        self.runner, self.widths = runner, widths
        self.slots = random.Random(seed).sample(range(len(runner.lengths)), len(widths))
        self.shared = PackedSlots(runner)
        self.builders = [DraftTreeBuilder() for _ in widths]

    def rows(self, counts: list[int], seed: int) -> list[SlotRows]:
        draw = torch.Generator().manual_seed(seed)
        width = self.runner.head_config.hidden_size
        return [
            SlotRows(
                slot,
                torch.randint(0, 60, (count,), generator=draw),
                torch.randn(count, width, generator=draw),
            )
            for slot, count in zip(self.slots, counts, strict=True)
        ]

    def extend(self, counts: list[int], seed: int, *, together: bool) -> list[torch.Tensor]:
        rows = self.rows(counts, seed)
        if together:
            hidden, logits = self.shared.extend_slots(rows)
        else:
            parts = [self.runner.extend(r[1], r[2], r.slot, reduced=True) for r in rows]
            hidden, logits = (torch.stack(part) for part in zip(*parts, strict=True))
        for builder, width, row in zip(self.builders, self.widths, logits, strict=True):
            builder.begin(0, width)
            builder.first(row.contiguous(), self.runner.draft_to_target)
        self.hidden = [row[None] for row in hidden]
        return [hidden, logits]

    def expand(self, round_index: int, *, together: bool) -> list[torch.Tensor]:
        rows = []
        for slot, builder, hidden in zip(self.slots, self.builders, self.hidden, strict=True):
            token_ids, parents, mask = builder.frontier()
            rows.append(SlotRows(slot, token_ids, hidden[parents], mask))
        if together:
            hidden, logits = self.shared.expand_slots(rows, round_index)
        else:
            parts = [self.runner.expand(r[1], r[2], round_index, r.mask, r.slot) for r in rows]
            hidden, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        self.hidden = list(hidden.split(self.widths))
        for builder, part in zip(self.builders, logits.split(self.widths), strict=True):
            builder.expand(part, self.runner.draft_to_target)
        return [hidden, logits]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize(
    ("widths", "changes"),
    [([4, 4, 4], {}), ([1, 8, 3, 2], {}), ([3], {}), ([2, 5], {"norm_before_residual": True})],
)
def test_drafts_of_several_slots_are_those_of_one_after_another(
    target, dtype, widths, changes
) -> None:
    head = tiny_head(target, **changes)
    one, all_at_once = (
        Draft(PackedDraft(head, capacity=CAPACITY, slots=5, dtype=dtype), widths, 1)
        for _ in range(2)
    )
    draw = random.Random(len(widths))
    for cycle in range(4):
        counts = [draw.choice([1, 2, 9, 70]) for _ in widths]
        expected = one.extend(counts, cycle, together=False)
        found = all_at_once.extend(counts, cycle, together=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        for round_index in range(4):
            expected = one.expand(round_index, together=False)
            found = all_at_once.expand(round_index, together=True)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
        for ours, theirs in zip(all_at_once.builders, one.builders, strict=True):
            count = min(10, 1 + ours.pool_size)
            assert ours.finish(count).token_ids.tolist() == theirs.finish(count).token_ids.tolist()
        assert all_at_once.runner.lengths == one.runner.lengths
    torch.testing.assert_close(
        all_at_once.runner.cache.data, one.runner.cache.data, rtol=0, atol=TOLERANCE
    )


def test_what_does_not_fit_is_refused_before_anything_is_written(target) -> None:
    runner = PackedDraft(tiny_head(target), capacity=20, slots=2)
    draft = Draft(runner, [4, 4], 1)
    draft.extend([3, 10], 0, together=True)
    before = runner.cache.data.clone()
    with pytest.raises(ValueError, match="cannot take 11 more"):
        draft.shared.extend_slots(draft.rows([2, 11], 1))
    rows = draft.rows([2, 2], 1)
    unknown = torch.tensor([1, 60])
    with pytest.raises(ValueError, match="must lie in"):
        draft.shared.extend_slots([rows[0], rows[1]._replace(token_ids=unknown)])
    # Two rounds of four rows fit behind 10, three do not.
    draft.expand(0, together=True)
    draft.expand(1, together=True)
    before = runner.cache.data.clone()
    with pytest.raises(ValueError, match="cannot take 12 more"):
        draft.expand(2, together=True)
    assert runner.lengths == [3, 10] if draft.slots == [0, 1] else [10, 3]
    assert torch.equal(runner.cache.data, before)


def test_a_head_with_a_window_is_refused(target) -> None:
    runner = PackedDraft(tiny_head(target, sliding_window=8), capacity=20, slots=2)
    with pytest.raises(ValueError, match="sliding window"):
        PackedSlots(runner)
