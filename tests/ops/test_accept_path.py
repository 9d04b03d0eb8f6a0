"""Greedy acceptance against a search over all paths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl.ops import accept_path, accept_path_ref


@st.composite
def trees(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a tree whose siblings have distinct tokens, and choices that often follow it."""
    rows = draw(st.integers(1, 40))
    parents = [-1] + [draw(st.integers(0, row - 1)) for row in range(1, rows)]
    tokens = [0]
    children: dict[int, int] = {}
    for parent in parents[1:]:
        children[parent] = children.get(parent, 0) + 1
        tokens.append(children[parent])
    choices = [draw(st.integers(0, 3)) for _ in range(rows)]
    return (
        torch.tensor(parents, dtype=torch.int32),
        torch.tensor(tokens),
        torch.tensor(choices),
    )


@settings(max_examples=200, deadline=None)
@given(trees())
def test_equals_reference(tree: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    path = accept_path(*tree)
    assert path.dtype is torch.int32
    assert path.tolist() == accept_path_ref(*tree).tolist()
    parents, tokens, choices = (values.tolist() for values in tree)
    accepted = set(path.tolist())
    # A row is accepted iff its parent is and the target chose its token there.
    for row in range(1, len(parents)):
        follows = parents[row] in accepted and tokens[row] == choices[parents[row]]
        assert (row in accepted) == follows


def test_root_alone() -> None:
    root = torch.tensor([-1], dtype=torch.int32)
    assert accept_path(root, torch.tensor([5]), torch.tensor([5])).tolist() == [0]


def test_invalid_arguments_are_named() -> None:
    parents = torch.tensor([-1, 0], dtype=torch.int32)
    tokens = torch.tensor([1, 2])
    with pytest.raises(TypeError, match="parents must be int32"):
        accept_path(parents.long(), tokens, tokens)
    with pytest.raises(ValueError, match="choices must have shape \\(2,\\)"):
        accept_path(parents, tokens, tokens[:1])
    with pytest.raises(ValueError, match="1 to 16384 rows"):
        accept_path(parents[:0], tokens[:0], tokens[:0])
