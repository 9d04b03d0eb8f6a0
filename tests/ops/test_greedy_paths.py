"""Greedy acceptance of several trees against torch's argmax, with every instruction set."""

import pytest
import torch

from eaglerl._ext import C
from eaglerl.ops import DraftTree, greedy_paths, greedy_paths_ref


def random_tree(rows: int, vocab: int, draw: torch.Generator) -> DraftTree:
    parents = [-1] + [int(torch.randint(row, (1,), generator=draw)) for row in range(1, rows)]
    tokens = torch.randint(min(vocab, 3), (rows,), generator=draw)
    return DraftTree(tokens, torch.tensor(parents, dtype=torch.int32), *[torch.empty(0)] * 3)


@pytest.fixture(params=C.available_isas())
def isa(request):
    before = C.cpu_isa()
    C.set_isa(request.param)
    yield request.param
    C.set_isa(before)


# Shorter than a vector, a block of 512 logits, and with a rest behind whole blocks.
@pytest.mark.parametrize("vocab", [1, 3, 17, 511, 512, 513, 1024, 5000])
def test_random_trees(isa, vocab: int) -> None:
    draw = torch.Generator().manual_seed(vocab)
    for count in (1, 2, 7):
        trees = [random_tree(1 + index * 5 % 17, vocab, draw) for index in range(count)]
        rows = sum(len(tree.token_ids) for tree in trees)
        # Few values, so that there are ties, and few tokens, so that paths are long.
        logits = torch.randint(-3, 3, (rows, vocab), generator=draw).float()
        logits[:, : min(vocab, 3)] += 2.0
        assert greedy_paths(logits, trees) == greedy_paths_ref(logits, trees)
        logits = torch.randn(rows + 4, vocab, generator=draw)
        first = [4 + sum(len(tree.token_ids) for tree in trees[:index]) for index in range(count)]
        assert greedy_paths(logits, trees, first) == greedy_paths_ref(logits, trees, first)


@pytest.mark.parametrize("place", [0, 1, 511, 512, 700, 1023, 1024, 1030])
def test_every_place_of_the_largest(isa, place: int) -> None:
    root = random_tree(1, 1, torch.Generator())
    row = torch.randn(1, 1031, generator=torch.Generator().manual_seed(0))
    row[0, place] = 9.0
    assert greedy_paths(row, [root])[0].tokens == [place]
    # The first of two.
    row[0, -1] = 9.0
    assert greedy_paths(row, [root])[0].tokens == [place]
    # The first NaN is the largest, as torch has it.
    row[0, place] = torch.nan
    row[0, -1] = torch.nan
    path = greedy_paths(row, [root])[0]
    assert (path.tokens, path.has_nan) == ([int(row.argmax())], True)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, 0.0, -3.4e38])
@pytest.mark.parametrize("vocab", [7, 512, 1300])
def test_equal_logits_give_the_first(isa, value: float, vocab: int) -> None:
    root = random_tree(1, 1, torch.Generator())
    path = greedy_paths(torch.full((1, vocab), value), [root])[0]
    assert path == ([0], [0], False)


def test_rows_off_the_path_are_not_looked_at() -> None:
    tree = DraftTree(
        torch.tensor([5, 1, 2]), torch.tensor([-1, 0, 0], dtype=torch.int32), *[torch.empty(0)] * 3
    )
    logits = torch.zeros(3, 4)
    logits[0, 2] = logits[2, 3] = 1.0
    logits[1] = torch.nan
    assert greedy_paths(logits, [tree]) == [([0, 2], [2, 3], False)]
    logits[2, 1] = torch.nan
    assert greedy_paths(logits, [tree]) == [([0, 2], [2, 1], True)]


def test_wrong_arguments() -> None:
    tree = random_tree(3, 4, torch.Generator().manual_seed(0))
    logits = torch.zeros(3, 4)
    assert greedy_paths(logits, []) == []
    with pytest.raises(TypeError, match="logits"):
        greedy_paths(logits.double(), [tree])
    with pytest.raises(ValueError, match="logits"):
        greedy_paths(logits[0], [tree])
    with pytest.raises(ValueError, match="logits"):
        greedy_paths(torch.zeros(4, 3).t(), [tree])
    with pytest.raises(ValueError, match=r"first_row must be in 0\.\.0, got 1"):
        greedy_paths(logits, [tree], [1])
    with pytest.raises(ValueError, match="first_row"):
        greedy_paths(logits[:2], [tree])
    with pytest.raises(ValueError, match="parents"):
        greedy_paths(logits, [tree._replace(parents=tree.parents[:2])])
    broken = torch.tensor([-1, 1, 0], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"parents\[1\] = 1"):
        greedy_paths(logits, [tree._replace(parents=broken)])
    with pytest.raises(TypeError, match="token_ids"):
        greedy_paths(logits, [tree._replace(token_ids=tree.token_ids.int())])
    with pytest.raises(ValueError, match="vocab must be in 1"):
        greedy_paths(torch.zeros(3, 0), [tree])
