"""The choice of nodes on a device: all bits of native code, no waits, and in a CUDA graph."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from eaglerl.ops import LookedUp, NodeSelection, SelectionSizes, select_draft_nodes

from ..ops.selection_cases import SIZES, Drafts, random_drafts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]
SLOTS = 40


def on_device(drafts: Drafts, level: int) -> tuple:
    *tensors, lookup, limits = drafts.call(level)
    moved = [each.cuda() if isinstance(each, torch.Tensor) else each for each in tensors]
    looked_up = LookedUp(*(each.cuda() for each in lookup))
    return (*moved, looked_up, None if limits is None else limits.cuda())


def assert_same(ours: NodeSelection, native: NodeSelection) -> None:
    for name, tensor in ours.tensors.items():
        if name != "scratch":
            tensor, expected = tensor.cpu(), native.tensors[name]
            if tensor.is_floating_point():
                tensor, expected = tensor.view(torch.int32), expected.view(torch.int32)
            assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_native_code(sizes: SelectionSizes, limited: bool) -> None:
    for seed in range(5):
        drafts = random_drafts(seed, sizes, SLOTS, limited)
        ours, native = NodeSelection(SLOTS, sizes, device="cuda"), NodeSelection(SLOTS, sizes)
        for level in range(sizes.depth + 1):
            arguments = on_device(drafts, level)
            torch.cuda.set_sync_debug_mode("error")
            try:
                select_draft_nodes(ours, *arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            select_draft_nodes(native, *drafts.call(level))
            assert_same(ours, native)


@pytest.mark.parametrize("limited", [False, True])
def test_all_passes_in_one_graph(limited: bool) -> None:
    """Captured once, replayed with other drafts: stopped slots stay as they are."""
    sizes = SIZES[0]
    drafts = [random_drafts(seed, sizes, SLOTS, limited) for seed in range(3)]
    levels = range(sizes.depth + 1)
    static = [on_device(drafts[0], level) for level in levels]
    ours = NodeSelection(SLOTS, sizes, device="cuda")
    for arguments in static:
        select_draft_nodes(ours, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in static:
            select_draft_nodes(ours, *arguments)
    for case in drafts[1:]:
        for level in levels:
            for kept, new in pairs_of(static[level], on_device(case, level)):
                kept.copy_(new)
        graph.replay()
        native = NodeSelection(SLOTS, sizes)
        for level in levels:
            select_draft_nodes(native, *case.call(level))
        # What a draft that stopped early has left from the one before is not looked at.
        for name in ("record", "row_ids", "row_parents", "row_levels", "ancestors", "enabled"):
            assert torch.equal(ours.tensors[name].cpu(), native.tensors[name]), name


def pairs_of(first: tuple, second: tuple) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(_tensors(first), _tensors(second), strict=True))


def _tensors(arguments: tuple) -> list[torch.Tensor]:
    *given, lookup, limits = arguments
    return [each for each in (*given, *lookup, limits) if isinstance(each, torch.Tensor)]
