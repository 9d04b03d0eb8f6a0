"""Acceptance and prompt lookup on a device: all bits of native code, no waits, in a CUDA graph."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from eaglerl.ops import AcceptedDrafts, NgramTable, accept_draft, extend_ngrams

from ..ops.accept_cases import random_trees, values

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]
SLOTS = 40


def assert_same(ours: list[torch.Tensor], native: list[torch.Tensor]) -> None:
    for mine, theirs in zip(ours, native, strict=True):
        assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize("rows", [1, 9, 64, 256])
def test_equals_native_code(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    table, native_table = NgramTable(SLOTS, 90, 7, device="cuda"), NgramTable(SLOTS, 90, 7)
    ours, native = AcceptedDrafts(SLOTS, 13, device="cuda"), AcceptedDrafts(SLOTS, 13)
    for _ in range(12):
        trees = random_trees(generator, SLOTS, rows)
        moved = [tensor.cuda() for tensor in trees]
        torch.cuda.set_sync_debug_mode("error")
        try:
            accept_draft(*moved, ours, table)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        accept_draft(*trees, native, native_table)
        assert_same(values(ours), values(native))
        assert_same(table.tensors, native_table.tensors)


@pytest.mark.parametrize("vocabulary", [2, 5, 200_000])
def test_texts_equal_native_code(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    table, native = NgramTable(SLOTS, 400, 7, device="cuda"), NgramTable(SLOTS, 400, 7)
    for _ in range(30):
        token_ids = torch.randint(vocabulary, (SLOTS, 16), generator=generator)
        counts = torch.randint(-1, 18, (SLOTS,), generator=generator)
        extend_ngrams(table, token_ids.cuda(), counts.cuda())
        extend_ngrams(native, token_ids, counts)
        assert_same(table.tensors, native.tensors)


def test_in_a_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    cases = [random_trees(generator, SLOTS, 33) for _ in range(5)]
    table, native_table = NgramTable(SLOTS, 200, 7, device="cuda"), NgramTable(SLOTS, 200, 7)
    ours, native = AcceptedDrafts(SLOTS, 9, device="cuda"), AcceptedDrafts(SLOTS, 9)
    static = [tensor.cuda() for tensor in cases[0]]
    accept_draft(*static, ours, table)
    accept_draft(*cases[0], native, native_table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        accept_draft(*static, ours, table)
    for case in cases[1:]:
        for kept, new in zip(static, case, strict=True):
            kept.copy_(new)
        graph.replay()
        accept_draft(*case, native, native_table)
        assert_same(values(ours), values(native))
        assert_same(table.tensors, native_table.tensors)
