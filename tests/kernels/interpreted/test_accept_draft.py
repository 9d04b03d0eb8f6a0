"""Acceptance and prompt lookup in interpreted kernels: bit for bit as in C++."""

from __future__ import annotations

import pytest
import torch

from eaglerl.kernels.accept_draft_kernel import prepare_accept_draft, prepare_extend_ngrams
from eaglerl.ops import AcceptedDrafts, NgramTable, accept_draft, extend_ngrams
from eaglerl.ops.ngram_table import check_table

from ...ops.accept_cases import SENTINEL, Trees, clone, random_trees, sharing_memory, values


def launch_accept(trees: Trees, accepted: AcceptedDrafts, table: NgramTable | None) -> None:
    tensors = [] if table is None else table.tensors
    sizes = None if table is None else check_table(tensors)
    prepare_accept_draft(trees, values(accepted), tensors, sizes).run(torch.device("cpu"))


def launch_extend(table: NgramTable, token_ids: torch.Tensor, counts: torch.Tensor) -> None:
    sizes = check_table(table.tensors)
    prepare_extend_ngrams(table.tensors, token_ids, counts, sizes).run(torch.device("cpu"))


@pytest.mark.parametrize("rows", [1, 9, 40, 130])
def test_paths_equal_native_code(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for _ in range(5):
        trees = random_trees(generator, 2, rows)
        ours, native = AcceptedDrafts(2, 6), AcceptedDrafts(2, 6)
        launch_accept(trees, ours, None)
        accept_draft(*trees, native)
        for mine, theirs in zip(values(ours), values(native), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("vocabulary", "longest", "proposed"), [(2, 16, 0), (5, 4, 5), (200_000, 6, 5)]
)
def test_texts_and_tables_equal_native_code(vocabulary: int, longest: int, proposed: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    ours = NgramTable(2, 12, proposed, longest=longest)
    native = clone(ours)
    repeats = 0
    # Until the texts do not fit, too.
    for step in range(7):
        token_ids = torch.randint(vocabulary, (2, 5), generator=generator)
        if step > 1 and vocabulary > 5:
            token_ids = native.texts[:, :5].clone()
        counts = torch.randint(-1, 7, (2,), generator=generator)
        launch_extend(ours, token_ids, counts)
        extend_ngrams(native, token_ids, counts)
        for mine, theirs in zip(ours.tensors, native.tensors, strict=True):
            assert torch.equal(mine, theirs), step
        repeats += int((native.looked_up.match_lengths > 0).sum())
    assert repeats > 1 or proposed == 0
    assert -1 in native.lengths.tolist()


def test_accepted_tokens_extend_the_text() -> None:
    generator = torch.Generator().manual_seed(4)
    ours = NgramTable(2, 9, 5)
    native = clone(ours)
    for _ in range(6):
        trees = random_trees(generator, 2, 9)
        launch_accept(trees, AcceptedDrafts(2, 5), ours)
        accept_draft(*trees, AcceptedDrafts(2, 5), native)
        for mine, theirs in zip(ours.tensors, native.tensors, strict=True):
            assert torch.equal(mine, theirs)
    assert -1 in native.lengths.tolist()


def test_numbers_that_anyone_may_have_written() -> None:
    """They lead to no other memory: the interpreter would raise or crash."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        trees = random_trees(generator, 1, 9)
        ours = NgramTable(1, 16, 4, longest=4)
        for tensor in (*trees[:3], ours.lengths, ours.ends, ours.texts):
            noise = torch.randint(-(2**31), 2**31 - 1, tensor.shape, generator=generator)
            tensor.copy_(torch.where(noise % 3 == 0, noise, tensor))
        native = clone(ours)
        accepted, expected = AcceptedDrafts(1, 5), AcceptedDrafts(1, 5)
        launch_accept(trees, accepted, ours)
        accept_draft(*trees, expected, native)
        assert torch.equal(accepted.rows, expected.rows)
        for mine, theirs in zip(ours.tensors, native.tensors, strict=True):
            assert torch.equal(mine, theirs)


def test_outputs_that_share_memory() -> None:
    for trees, accepted, table in sharing_memory():
        launch_accept(trees, accepted, table)
        assert table.lengths.tolist() == [2]
        assert SENTINEL not in torch.cat([table.texts[0], *values(accepted)[2]]).tolist()


@pytest.mark.parametrize("count", [-(2**63), -(2**33) + 5, -(2**32) + 9, -1, 2**32 + 1, 2**63 - 1])
def test_counts_of_any_size(count: int) -> None:
    """Of -2^32 + 9, the low word is 9: five tokens more than there are."""
    ours = NgramTable(1, 32, 3, longest=4)
    native = clone(ours)
    token_ids = torch.tensor([1, 2, 1, 2, *[SENTINEL] * 12])[:4].view(1, 4)
    launch_extend(ours, token_ids, torch.tensor([count]))
    extend_ngrams(native, token_ids, torch.tensor([count]))
    for mine, theirs in zip(ours.tensors, native.tensors, strict=True):
        assert torch.equal(mine, theirs)
    assert native.lengths.tolist() == [4 if count > 0 else 0]
