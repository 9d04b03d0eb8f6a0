"""The choice of nodes in interpreted kernels: bit for bit as in C++."""

from __future__ import annotations

import pytest
import torch

from eaglerl.kernels.select_draft_nodes_kernel import prepare_select_draft_nodes
from eaglerl.ops import NodeSelection, SelectionSizes, select_draft_nodes

from ...ops.selection_cases import SIZES, Drafts, random_drafts

SLOTS = 2
#: Elements that are sorted and not counted; ancestors of more than 64 rows, as bytes and as words.
LARGE = (SelectionSizes(16, 1, 66, 5), SelectionSizes(3, 2, 132, 3))


def launch(selection: NodeSelection, drafts: object, level: int) -> None:
    rule, _, *drafted, lookup, limits = drafts.call(level)
    tensors = list(selection.tensors.values())
    prepare_select_draft_nodes(
        tensors, selection.tables, rule, selection.sizes, level, (*drafted, *lookup), limits
    ).run(rule.device)


@pytest.mark.parametrize(
    ("sizes", "limited"),
    [
        *((sizes, False) for sizes in (*SIZES, *LARGE)),
        # Seconds each: one of them is enough in every run.
        *(
            pytest.param(sizes, True, marks=[pytest.mark.slow] if sizes.top_k == 10 else [])
            for sizes in SIZES
        ),
    ],
    ids=str,
)
def test_equals_native_code(sizes: SelectionSizes, limited: bool) -> None:
    compare(random_drafts(7, sizes, SLOTS, limited))


@pytest.mark.parametrize(
    "sizes", [SIZES[0], pytest.param(LARGE[0], marks=pytest.mark.slow)], ids=str
)
def test_scores_that_are_no_numbers_come_last(sizes: SelectionSizes) -> None:
    drafts = random_drafts(2, sizes, SLOTS)
    for _, log_probs in drafts.levels:
        log_probs[:, :, ::2] = float("nan")
    compare(drafts)


def compare(drafts: Drafts) -> None:
    ours, native = (NodeSelection(SLOTS, drafts.sizes) for _ in range(2))
    for level in range(drafts.sizes.depth + 1):
        launch(ours, drafts, level)
        select_draft_nodes(native, *drafts.call(level))
        for name, tensor in ours.tensors.items():
            if name != "scratch":
                expected = native.tensors[name]
                if tensor.is_floating_point():
                    tensor, expected = tensor.view(torch.int32), expected.view(torch.int32)
                assert torch.equal(tensor, expected), (name, level)


def test_a_level_that_was_left_out_changes_nothing() -> None:
    drafts = random_drafts(3, SIZES[0], SLOTS)
    selection = NodeSelection(SLOTS, SIZES[0])
    launch(selection, drafts, 0)
    before = {name: tensor.clone() for name, tensor in selection.tensors.items()}
    launch(selection, drafts, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in selection.tensors.items())


def test_state_that_anyone_may_write_to() -> None:
    """Numbers out of range lead to no other memory: the interpreter would raise or crash."""
    drafts = random_drafts(5, SIZES[0], SLOTS)
    selection = NodeSelection(SLOTS, SIZES[0])
    generator = torch.Generator().manual_seed(0)
    for level in range(3):
        for tensor in (selection.frontier, selection.lookup_nodes):
            noise = torch.randint(-(2**31), 2**31 - 1, tensor.shape, generator=generator)
            tensor.copy_(noise)
        selection.record[:, 4] = 2**31 - 1
        launch(selection, drafts, level)
    rows = torch.arange(SIZES[0].rows)
    assert ((selection.row_parents < rows) | (rows == 0)).all()
