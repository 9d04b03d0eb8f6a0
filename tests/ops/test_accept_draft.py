"""Acceptance in one call, and prompt lookup in hash tables: against the loop's own ways."""

from __future__ import annotations

import pytest
import torch

from eaglerl.eagle3.device_acceptance import accepted_rows
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import ContextLookup
from eaglerl.ops import (
    AcceptedDrafts,
    NgramTable,
    accept_draft,
    accept_draft_ref,
    accept_path_ref,
    extend_ngrams,
    extend_ngrams_ref,
)

from .accept_cases import SENTINEL, Trees, clone, random_trees, sharing_memory, values


@pytest.mark.parametrize("rows", [1, 2, 9, 33, 64, 130])
def test_paths_are_those_of_a_walk(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    lengths = set()
    for _ in range(60 if rows < 100 else 10):
        trees = random_trees(generator, 3, rows)
        longest = int(trees.levels.max()) + 1
        ours, plain = AcceptedDrafts(3, longest), AcceptedDrafts(3, longest)
        accept_draft(*trees, ours)
        accept_draft_ref(*trees, plain)
        for mine, theirs in zip(values(ours), values(plain), strict=True):
            assert torch.equal(mine, theirs)
        for slot, tree in enumerate(map(Trees._make, zip(*trees, strict=True))):
            ids, parents, levels, ancestors, enabled, choices = tree
            device_tree = DeviceTree(ids, parents, levels, ancestors, ids.float(), enabled, longest)
            expected, count = accepted_rows(device_tree, choices)
            assert ours.rows[slot].tolist() == expected.tolist()
            assert int(ours.counts[slot]) == int(count)
            # A row that is not enabled is no child: the walk must not find it.
            walked = accept_path_ref(torch.where(enabled, parents, -1).int(), ids, choices).tolist()
            kept = int(count)
            assert ours.rows[slot, :kept].tolist() == walked
            assert ours.token_ids[slot, :kept].tolist() == choices[walked].tolist()
            lengths.add(kept)
    assert rows < 9 or len(lengths) > 3


@pytest.mark.parametrize("longest", [2, 5, 16, 64])
@pytest.mark.parametrize("vocabulary", [1, 2, 5, 200_000])
def test_proposals_are_those_of_prompt_lookup(vocabulary: int, longest: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary + longest)
    slots, capacity = 4, 150
    table, plain = (NgramTable(slots, capacity, 7, longest=longest) for _ in range(2))
    texts = [ContextLookup(longest=longest) for _ in range(slots)]
    matched = 0
    while int(table.lengths.max()) < capacity - 12:
        width = int(torch.randint(1, 13, (1,), generator=generator))
        token_ids = torch.randint(vocabulary, (slots, width), generator=generator)
        if vocabulary > 5 and int(table.lengths[0]) > 40:
            # Repeats a part of the text, so that there are matches at all.
            token_ids = table.texts[:, 5 : 5 + width].clone()
        counts = torch.randint(-1, width + 2, (slots,), generator=generator)
        for compute, of in ((extend_ngrams, table), (extend_ngrams_ref, plain)):
            compute(of, token_ids, counts)
        for slot, text in enumerate(texts):
            text.extend(token_ids[slot, : max(int(counts[slot]), 0)].tolist())
            expected = text.propose(7)
            match, count, proposed = (part[slot] for part in table.looked_up)
            assert int(match) == expected.match_length
            assert proposed[: int(count)].tolist() == [*expected.token_ids]
            matched += expected.match_length > 0
            assert table.texts[slot, : len(text)].tolist() == [*text.token_ids]
        for mine, theirs in zip(table.tensors, plain.tensors, strict=True):
            if mine is not table.ends:
                assert torch.equal(mine, theirs)
    assert matched > 10


def test_a_text_that_does_not_fit_proposes_nothing_until_it_is_reset() -> None:
    table = NgramTable(2, 8, 3)
    repeated = torch.tensor([[1, 2, 1, 2, 1, 2]] * 2)
    extend_ngrams(table, repeated, torch.tensor([6, 4]))
    assert table.looked_up.match_lengths.tolist() == [4, 2]
    extend_ngrams(table, repeated, torch.tensor([3, 4]))
    assert table.lengths.tolist() == [-1, 8]
    assert table.looked_up.counts.tolist() == [0, 3]
    extend_ngrams(table, repeated, torch.tensor([1, 0]))
    assert table.lengths.tolist() == [-1, 8]
    table.reset([0])
    extend_ngrams(table, repeated, torch.tensor([4, 0]))
    assert table.lengths.tolist() == [4, 8]
    assert table.looked_up.counts.tolist() == [3, 3]
    assert table.looked_up.token_ids[0].tolist() == [1, 2, 1]


def test_accepted_tokens_extend_the_text() -> None:
    generator = torch.Generator().manual_seed(2)
    table = NgramTable(3, 500, 5)
    extend_ngrams(table, torch.randint(3, (3, 20), generator=generator), torch.tensor([20, 9, 1]))
    plain = clone(table)
    for _ in range(20):
        trees = random_trees(generator, 3, 17)
        ours, theirs = AcceptedDrafts(3, 8), AcceptedDrafts(3, 8)
        accept_draft(*trees, ours, table)
        accept_draft(*trees, theirs)
        extend_ngrams(plain, theirs.token_ids, theirs.counts)
        for mine, other in zip(table.tensors, plain.tensors, strict=True):
            assert torch.equal(mine, other)
    assert int(table.lengths[0]) > 40


def test_numbers_that_anyone_may_have_written() -> None:
    """They lead to no other memory, and end the call as usual."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        trees = random_trees(generator, 2, 9)
        table, accepted = NgramTable(2, 16, 4), AcceptedDrafts(2, 5)
        for tensor in (*trees[:3], table.lengths, table.ends, table.texts, table.looked_up[1]):
            noise = torch.randint(-(2**31), 2**31 - 1, tensor.shape, generator=generator)
            tensor.copy_(torch.where(noise % 3 == 0, noise, tensor))
        accept_draft(*trees, accepted, table)
        assert ((accepted.rows >= 0) & (accepted.rows < 9)).all()
        assert ((accepted.counts >= 1) & (accepted.counts <= 5)).all()
        assert ((table.lengths >= -1) & (table.lengths <= 16)).all() or table.lengths.max() > 16


def test_outputs_that_share_memory() -> None:
    """What was written over is not used as a row, nor as a number of tokens."""
    for trees, accepted, table in sharing_memory():
        accept_draft(*trees, accepted, table)
        assert table.lengths.tolist() == [2]
        assert SENTINEL not in torch.cat([table.texts[0], *values(accepted)[2]]).tolist()


def test_compiles() -> None:
    trees = random_trees(torch.Generator().manual_seed(1), 2, 9)
    table, accepted = NgramTable(2, 64, 4), AcceptedDrafts(2, 5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(trees: Trees) -> torch.Tensor:
        accept_draft(*trees, accepted, table)
        return accepted.counts + 1

    counts = step(trees)
    expected = AcceptedDrafts(2, 5)
    accept_draft(*trees, expected)
    assert torch.equal(counts, expected.counts + 1)
    assert table.lengths.tolist() == expected.counts.tolist()


def test_bad_arguments() -> None:
    trees = random_trees(torch.Generator().manual_seed(1), 2, 9)
    accepted, table = AcceptedDrafts(2, 5), NgramTable(2, 64, 4)
    for index, field in enumerate(Trees._fields):
        given = list(trees)
        given[index] = trees[index].to(torch.float32)
        with pytest.raises(TypeError, match=f"{field} must be torch"):
            accept_draft(*given, accepted)
        given[index] = trees[index][:, :8]
        with pytest.raises(ValueError, match=r"must be (contiguous|\(S, R\))"):
            accept_draft(*given, accepted)
    with pytest.raises(ValueError, match="table must have 2 slots"):
        accept_draft(*trees, accepted, NgramTable(3, 64, 4))
    with pytest.raises(ValueError, match=r"R must be in 1\.\.256, got 257"):
        accept_draft(*random_trees(torch.Generator(), 1, 257), AcceptedDrafts(1, 5))
    with pytest.raises(ValueError, match=r"counts must be contiguous and have shape \(2,\)"):
        extend_ngrams(table, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3).long())
    with pytest.raises(TypeError, match=r"token_ids must be torch\.int64"):
        extend_ngrams(table, torch.zeros(2, 3), torch.zeros(2).long())
    table.ends = table.ends[:, :, :64].contiguous()
    with pytest.raises(ValueError, match="must be that of an NgramTable"):
        extend_ngrams(table, torch.zeros(2, 3).long(), torch.zeros(2).long())
    for name, bad in {"slots": 0, "capacity": 0, "lookup_tokens": 65}.items():
        sizes = {"slots": 1, "capacity": 8, "lookup_tokens": 2} | {name: bad}
        with pytest.raises(ValueError, match=f"{name} must be in"):
            NgramTable(**sizes)
    with pytest.raises(TypeError, match="longest must be an int"):
        NgramTable(1, 8, 2, longest=2.0)
    with pytest.raises(ValueError, match="longest_path must be in"):
        AcceptedDrafts(1, 0)
    with pytest.raises(ValueError, match="slots must lie in"):
        NgramTable(2, 8, 2).reset([2])
