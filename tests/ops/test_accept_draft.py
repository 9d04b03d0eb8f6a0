"""Acceptance in one call, and prompt lookup in hash tables: against the loop's own ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
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


def compare_paths(generator: torch.Generator, slots: int, rows: int, vocabulary: int) -> set[int]:
    """Compare random trees with the loop's own way and with a walk; return the paths' lengths."""
    trees = random_trees(generator, slots, rows, vocabulary)
    longest = int(trees.levels.max()) + 1
    ours, plain = AcceptedDrafts(slots, longest), AcceptedDrafts(slots, longest)
    accept_draft(*trees, ours)
    accept_draft_ref(*trees, plain)
    for mine, theirs in zip(values(ours), values(plain), strict=True):
        assert torch.equal(mine, theirs)
    for slot, tree in enumerate(map(Trees._make, zip(*trees, strict=True))):
        ids, parents, levels, ancestors, enabled, choices = tree
        device_tree = DeviceTree(ids, parents, levels, ancestors, ids.float(), enabled, longest)
        rows_of_path, count = accepted_rows(device_tree, choices)
        assert torch.equal(ours.rows[slot], rows_of_path)
        assert torch.equal(ours.counts[slot, None], count)
        assert torch.equal(ours.token_ids[slot], choices[rows_of_path])
        # A row that is not enabled is no child: the walk must not find it.
        walked = accept_path_ref(torch.where(enabled, parents, -1).int(), ids, choices)
        assert torch.equal(ours.rows[slot, : int(count)], walked.long())
    return set(ours.counts.tolist())


@pytest.mark.parametrize("rows", [1, 2, 9, 33, 64, 130])
def test_paths_are_those_of_a_walk(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    lengths = [compare_paths(generator, 3, rows, 3) for _ in range(600 // (10 + rows))]
    assert rows < 9 or len(set.union(*lengths)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 5, 17, 32, 60, 129, 256])
def test_thousands_of_paths(rows: int) -> None:
    generator = torch.Generator().manual_seed(1000 + rows)
    for vocabulary in (1, 2, 3, 6):
        for _ in range(max(2, 2000 // rows)):
            compare_paths(generator, 5, rows, vocabulary)


class Texts:
    """The same texts in native code, in plain torch, and in the loop's own index."""

    def __init__(self, slots: int, capacity: int, proposed: int, longest: int) -> None:
        self.native, self.plain = (
            NgramTable(slots, capacity, proposed, longest=longest) for _ in range(2)
        )
        self.texts = [ContextLookup(longest=longest) for _ in range(slots)]
        self.closed = [False] * slots
        self.capacity, self.proposed, self.matched = capacity, proposed, 0

    def extend(self, token_ids: Tensor, counts: Tensor) -> None:
        for compute, table in ((extend_ngrams, self.native), (extend_ngrams_ref, self.plain)):
            compute(table, token_ids, counts)
        for mine, theirs in zip(self.native.tensors, self.plain.tensors, strict=True):
            if mine is not self.native.ends:
                assert torch.equal(mine, theirs)
        for slot, text in enumerate(self.texts):
            given = token_ids[slot, : max(int(counts[slot]), 0)].tolist()
            self.closed[slot] |= len(given) > self.capacity - len(text)
            match, count, proposal = (part[slot] for part in self.native.looked_up)
            if self.closed[slot]:
                assert (int(self.native.lengths[slot]), int(match), int(count)) == (-1, 0, 0)
                continue
            text.extend(given)
            expected = text.propose(self.proposed)
            assert int(match) == expected.match_length
            assert proposal[: int(count)].tolist() == [*expected.token_ids]
            assert self.native.texts[slot, : len(text)].tolist() == [*text.token_ids]
            self.matched += expected.match_length > 0


def grow(texts: Texts, generator: torch.Generator, vocabulary: int) -> None:
    """Extend texts by random tokens until none takes any more."""
    slots = len(texts.texts)
    while not all(texts.closed):
        width = int(torch.randint(1, 13, (1,), generator=generator))
        token_ids = torch.randint(vocabulary, (slots, width), generator=generator)
        if vocabulary > 5 and int(texts.native.lengths.max()) > 40:
            # Repeats a part of the text, so that there are matches at all.
            token_ids = texts.native.texts[:, 5 : 5 + width].clone()
        texts.extend(token_ids, torch.randint(-1, width + 2, (slots,), generator=generator))


@pytest.mark.parametrize("longest", [2, 5, 16, 64])
@pytest.mark.parametrize("vocabulary", [1, 2, 5, 200_000])
def test_proposals_are_those_of_prompt_lookup(vocabulary: int, longest: int) -> None:
    texts = Texts(2, 120, 7, longest)
    grow(texts, torch.Generator().manual_seed(vocabulary + longest), vocabulary)
    assert texts.matched > 10


@pytest.mark.slow
def test_thousands_of_texts() -> None:
    """Among them texts of a repeated pattern, and capacities that are no powers of two."""
    generator = torch.Generator().manual_seed(9)
    for case in range(300):
        capacity, proposed, longest = (
            int(torch.randint(least, most, (1,), generator=generator))
            for least, most in ((1, 90), (0, 30), (2, 65))
        )
        texts = Texts(8, capacity, proposed, longest)
        if case % 3 == 0:
            period = int(torch.randint(1, 9, (1,), generator=generator))
            pattern = torch.randint(4, (8, period), generator=generator).repeat(1, 3)
            texts.extend(pattern, torch.randint(3 * period + 1, (8,), generator=generator))
        grow(texts, generator, (1, 2, 3, 9, 200_000)[case % 5])


def test_a_proposal_of_no_tokens() -> None:
    texts = Texts(1, 9, 0, 16)
    texts.extend(torch.tensor([[1, 2, 1, 2]]), torch.tensor([4]))
    assert texts.native.looked_up.match_lengths.tolist() == [0]


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
        assert ((table.lengths >= -1) & (table.lengths <= 16)).all()


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


@pytest.mark.parametrize("field", Trees._fields)
def test_bad_trees(field: str) -> None:
    trees, accepted = random_trees(torch.Generator().manual_seed(1), 2, 9), AcceptedDrafts(2, 5)
    good = getattr(trees, field)
    other = good.transpose(0, 1).contiguous().transpose(0, 1)
    changes: list[tuple[object, type, str]] = [
        (good.to(torch.float32), TypeError, f"{field} must be torch"),
        (good.tolist(), TypeError, f"{field} must be of type Tensor, got list"),
        (good[:, :8], ValueError, r"must be (contiguous|\(S, R\))"),
        (good[0], ValueError, "shape|must be"),
        (other, ValueError, f"{field} must be contiguous"),
        (good.to("meta"), ValueError, "must be on|must have memory"),
    ]
    for bad, error, message in changes:
        with pytest.raises(error, match=message):
            accept_draft(*trees._replace(**{field: bad}), accepted)
    assert not any(tensor.any() for tensor in values(accepted))


def test_bad_results_and_tables() -> None:
    trees = random_trees(torch.Generator().manual_seed(1), 2, 9)
    accepted = AcceptedDrafts(2, 5)
    with pytest.raises(ValueError, match="table must have 2 slots"):
        accept_draft(*trees, accepted, NgramTable(3, 64, 4))
    with pytest.raises(TypeError, match="table must be of type NgramTable, got int"):
        accept_draft(*trees, accepted, 5)
    with pytest.raises(TypeError, match="accepted must be of type AcceptedDrafts, got NoneType"):
        accept_draft(*trees, None)
    with pytest.raises(ValueError, match=r"token_ids must have 1\.\.256 columns, got 257"):
        accept_draft(*random_trees(torch.Generator(), 1, 257), AcceptedDrafts(1, 5))
    accepted.counts = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"accepted\.counts must be contiguous .* \(2,\)"):
        accept_draft(*trees, accepted)
    with pytest.raises(ValueError, match="must both be given"):
        C.accept_draft([0, 1, 1], [0] * 6, [0] * 3, [6, 3, 16, 2], None)


def test_bad_texts() -> None:
    table, none = NgramTable(2, 64, 4), torch.zeros(2, dtype=torch.int64)
    token_ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^counts must be contiguous and have shape \(2,\)"):
        extend_ngrams(table, token_ids, torch.zeros(3).long())
    with pytest.raises(TypeError, match=r"token_ids must be torch\.int64"):
        extend_ngrams(table, torch.zeros(2, 3), none)
    with pytest.raises(TypeError, match="counts must be of type Tensor, got list"):
        extend_ngrams(table, token_ids, [1, 1])
    with pytest.raises(TypeError, match="table must be of type NgramTable, got NoneType"):
        extend_ngrams(None, token_ids, none)
    long = torch.empty(1, 2**24 + 1, dtype=torch.int64, device="meta")
    on_meta = NgramTable(1, 8, 2, device="meta")
    with pytest.raises(ValueError, match="token_ids must have at most 16777216 columns"):
        extend_ngrams(on_meta, long, none[:1].to("meta"))
    table.lengths = table.lengths[:1]
    with pytest.raises(ValueError, match=r"table\.lengths must be contiguous .* \(2,\)"):
        extend_ngrams(table, token_ids, none)
    table.ends = table.ends[:, :, :64].contiguous()
    with pytest.raises(ValueError, match="must be that of an NgramTable"):
        extend_ngrams(table, token_ids, none)


@pytest.mark.parametrize(
    ("slots", "error", "message"),
    [
        ([2], ValueError, r"slots must lie in 0\.\.1, got 2"),
        ([0, -1], ValueError, r"slots must lie in 0\.\.1, got -1"),
        ([2**70], ValueError, r"slots must lie in 0\.\.1, got 1180591620717411303424"),
        ([0, 0.5], TypeError, r"slots must be ints, got 0\.5"),
        ([True], TypeError, "slots must be ints, got True"),
        (0, TypeError, "slots must be a sequence of ints, got 0"),
    ],
    ids=str,
)
def test_bad_slots_to_reset(slots: object, error: type, message: str) -> None:
    table = NgramTable(2, 8, 2)
    extend_ngrams(table, torch.tensor([[1, 2]] * 2), torch.tensor([2, 1]))
    before = clone(table)
    with pytest.raises(error, match=message):
        table.reset(slots)
    for mine, theirs in zip(table.tensors, before.tensors, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"slots": 0}, ValueError), ({"slots": True}, TypeError), ({"capacity": 0}, ValueError),
        ({"capacity": 2**25}, ValueError), ({"lookup_tokens": 65}, ValueError),
        ({"longest": 1}, ValueError), ({"longest": 2.0}, TypeError),
    ],
    ids=str,
)  # fmt: skip
def test_bad_sizes(change: dict, error: type) -> None:
    (name,) = change
    with pytest.raises(error, match=f"{name} must be"):
        NgramTable(**({"slots": 1, "capacity": 8, "lookup_tokens": 2} | change))
    with pytest.raises(ValueError, match="longest_path must be in"):
        AcceptedDrafts(1, 0)
