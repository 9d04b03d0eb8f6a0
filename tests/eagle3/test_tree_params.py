"""The tree's parameters: what is allowed, and how a tree is cut to the tokens that are left."""

import dataclasses

import pytest

from eaglerl.eagle3 import NO_DRAFT, TreeParams


@pytest.mark.parametrize(
    ("values", "pool"),
    [((1, 0, 1), 1), ((2, 0, 1), 1), ((60, 7, 10), 710), ((31, 7, 2), 30), ((9, 7, 1), 8)],
)
def test_pool_size(values, pool):
    assert TreeParams(*values).pool_size == pool


@pytest.mark.parametrize("values", [(3, 0, 1), (32, 7, 2), (10, 7, 1), (12, 0, 10)])
def test_tree_larger_than_its_pool(values):
    total_tokens, depth, top_k = values
    message = rf"total_tokens={total_tokens} .*depth={depth} and top_k={top_k} give a pool of only"
    with pytest.raises(ValueError, match=message):
        TreeParams(*values)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("total_tokens", (0, 0, 1)),
        ("total_tokens", (-3, 0, 1)),
        ("depth", (1, -1, 1)),
        ("top_k", (1, 0, 0)),
    ],
)
def test_value_below_its_minimum(name, values):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        TreeParams(*values)


@pytest.mark.parametrize(
    ("name", "values"),
    [("total_tokens", (8.0, 2, 4)), ("depth", (8, "2", 4)), ("top_k", (2, 1, True))],
)
def test_value_that_is_no_int(name, values):
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        TreeParams(*values)


def test_params_cannot_be_changed_unchecked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TreeParams(8, 2, 4).total_tokens = 100


@pytest.mark.parametrize("levels", range(-1, 12))
@pytest.mark.parametrize("values", [(60, 7, 10), (8, 7, 1), (9, 3, 2), (5, 0, 8), (1, 3, 8)])
def test_limited_to_keeps_only_the_levels_that_are_left(values, levels):
    """Levels go from 1 to depth + 1; the cut tree is as large as its smaller pool allows."""
    params = TreeParams(*values)
    limited = params.limited_to(levels)
    if params.total_tokens == 1 or levels >= params.depth + 1:
        assert limited == params
    elif levels < 1:
        assert limited == NO_DRAFT
    else:
        assert limited.depth + 1 == levels
        assert limited.top_k == params.top_k
        assert limited.total_tokens == min(params.total_tokens, limited.pool_size + 1)
