"""Moving rows of a cache in place against indexing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl.ops import move_rows, move_rows_ref


@settings(max_examples=100, deadline=None)
@given(
    rows=st.sets(st.integers(0, 29), max_size=12),
    gap=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(["all", "slot", "layer", "head", "flat"]),
)
def test_equals_indexing(rows: set[int], gap: int, dtype: torch.dtype, layout: str) -> None:
    cache = torch.randn(3, 2, 2, 3, 30, 8).to(dtype)
    expected = cache.clone()
    ordered = torch.tensor(sorted(rows), dtype=torch.int32)
    # The lowest destination that keeps every row at or above its target.
    offsets = ordered - torch.arange(len(ordered))
    destination = max(int(offsets.min()) - gap, 0) if len(ordered) else 0
    views = {
        "all": lambda data: data,
        "slot": lambda data: data[:, :, 1],
        "layer": lambda data: data[2, 0],
        "head": lambda data: data[:, 1, 0, 2],
        "flat": lambda data: data[1, 1, 1, 1],
    }
    move_rows(views[layout](cache), ordered, destination)
    move_rows_ref(views[layout](expected), ordered, destination)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("rows", [[4, 3], [4, 4], [1], [5, 30], [-1]])
def test_rows_that_cannot_be_moved_are_refused(rows: list[int]) -> None:
    cache = torch.randn(2, 30, 8)
    before = cache.clone()
    with pytest.raises(ValueError, match="rows must ascend strictly"):
        move_rows(cache, torch.tensor(rows, dtype=torch.int32), 2)
    assert torch.equal(cache, before)


def test_invalid_arguments_are_named() -> None:
    cache, rows = torch.randn(2, 30, 8), torch.tensor([3], dtype=torch.int32)
    with pytest.raises(TypeError, match="rows must be int32"):
        move_rows(cache, rows.long(), 0)
    with pytest.raises(ValueError, match="destination must not be negative"):
        move_rows(cache, rows, -1)
    with pytest.raises(ValueError, match="contiguous rows"):
        move_rows(cache[..., :4], rows, 0)
    with pytest.raises(ValueError, match="fold into two"):
        move_rows(torch.randn(3, 4, 3, 4, 3, 4, 30, 8)[:, 0, :, 0, :, 0], rows, 0)
