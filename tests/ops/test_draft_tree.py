"""The tree builder against a slow implementation in float64, written from the algorithm."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from eaglerl.ops import DraftTreeBuilder, tree_structure

# Two scores closer than this may be ordered differently in float32: the sum of up to 8 log-
# probabilities of size 10 has an error of about 8 * 10 * 2**-24.
TIE = 1e-5


@dataclass
class Pool:
    """Candidates in the order in which they are drafted; parents as pool indices."""

    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    smallest_gap: float = float("inf")

    def best(self, candidates: list[int], count: int) -> list[int]:
        order = sorted(candidates, key=lambda index: (-self.scores[index], index))
        ranked = [self.scores[index] for index in order[: count + 1]]
        self.note_gaps(ranked)
        return order[:count]

    def note_gaps(self, descending: list[float]) -> None:
        gaps = -np.diff(descending)
        self.smallest_gap = min([self.smallest_gap, *gaps])

    def add_children(self, parent: int, logits: np.ndarray, ids: np.ndarray, top_k: int) -> None:
        shifted = logits.astype(np.float64)
        log_probabilities = shifted - np.logaddexp.reduce(shifted)
        order = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
        self.note_gaps([logits[index] for index in order[: top_k + 1]])
        for child in order[:top_k]:
            base = 0.0 if parent < 0 else self.scores[parent]
            self.tokens.append(int(ids[child]))
            self.scores.append(base + log_probabilities[child])
            self.parents.append(parent)

    def path(self, index: int) -> list[int]:
        """Return the node and its ancestors, without the root."""
        path = []
        while index >= 0:
            path.append(index)
            index = self.parents[index]
        return path


def logits_of(path_tokens: tuple[int, ...], vocab: int, seed: int, scale: float) -> np.ndarray:
    """Return logits that depend on the path only, as a draft's do."""
    generator = np.random.default_rng([seed, *path_tokens])
    return (generator.standard_normal(vocab) * scale).astype(np.float32)


def token_path(pool: Pool, index: int) -> tuple[int, ...]:
    return tuple(pool.tokens[node] for node in reversed(pool.path(index)))


def bits(mask: torch.Tensor, count: int) -> np.ndarray:
    return np.array(
        [[(int(row[bit // 64]) >> (bit % 64)) & 1 for bit in range(count)] for row in mask],
        dtype=bool,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    top_k=st.integers(1, 12),
    depth=st.integers(0, 6),
    total_fraction=st.floats(0, 1),
    extra_vocab=st.integers(0, 200),
    mapped=st.booleans(),
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.5, 2.0, 6.0]),
)
def test_tree_equals_float64_reference(
    top_k, depth, total_fraction, extra_vocab, mapped, seed, scale
) -> None:
    vocab = top_k + extra_vocab
    ids = np.arange(vocab) * 3 + 5 if mapped else np.arange(vocab)
    draft_to_target = torch.from_numpy(ids) if mapped else None
    root = 3 * vocab + 100
    pool = Pool()
    builder = DraftTreeBuilder()
    builder.begin(root, top_k)

    first = logits_of((), vocab, seed, scale)
    builder.first(torch.from_numpy(first), draft_to_target)
    pool.add_children(-1, first, ids, top_k)
    frontier = list(range(top_k))
    previous = [-1]
    scratch: dict[int, int] = {}
    for round_index in range(depth):
        actual = builder.frontier()
        scratch |= {node: round_index * top_k + rank for rank, node in enumerate(frontier)}
        assume(pool.smallest_gap > TIE)
        assert actual.token_ids.tolist() == [pool.tokens[node] for node in frontier]
        assert [previous[row] for row in actual.parents] == [pool.parents[n] for n in frontier]
        seen = bits(actual.mask, (round_index + 1) * top_k)
        for rank, node in enumerate(frontier):
            assert set(seen[rank].nonzero()[0]) == {scratch[index] for index in pool.path(node)}

        rows = np.stack([logits_of(token_path(pool, n), vocab, seed, scale) for n in frontier])
        builder.expand(torch.from_numpy(rows), draft_to_target)
        begin = len(pool.tokens)
        for node, row in zip(frontier, rows, strict=True):
            pool.add_children(node, row, ids, top_k)
        previous = frontier
        frontier = pool.best(list(range(begin, len(pool.tokens))), top_k)

    assert builder.pool_size == len(pool.tokens) == top_k + depth * top_k**2
    drafted = round(total_fraction * min(len(pool.tokens), 130))
    chosen = sorted(pool.best(list(range(len(pool.tokens))), drafted))
    assume(pool.smallest_gap > TIE)
    tree = builder.finish(drafted + 1)
    row_of = {-1: 0, **{node: row + 1 for row, node in enumerate(chosen)}}
    assert tree.token_ids.tolist() == [root] + [pool.tokens[node] for node in chosen]
    assert tree.parents.tolist() == [-1] + [row_of[pool.parents[node]] for node in chosen]
    assert tree.levels.tolist() == [0] + [len(pool.path(node)) for node in chosen]
    expected = np.array([0.0] + [pool.scores[node] for node in chosen])
    np.testing.assert_allclose(tree.scores.numpy(), expected, rtol=1e-5, atol=1e-5)
    seen = bits(tree.mask, drafted + 1)
    for row, node in enumerate([-1, *chosen]):
        assert set(seen[row].nonzero()[0]) == {0} | {row_of[index] for index in pool.path(node)}


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_ties_choose_what_was_drafted_first(top_k: int) -> None:
    # With one token of probability 1 every score is 0: any order that is not closed under
    # ancestors would show.
    vocab = 100
    for logits in (torch.zeros(vocab), torch.cat([torch.tensor([1e4]), torch.zeros(vocab - 1)])):
        builder = DraftTreeBuilder()
        builder.begin(7, top_k)
        builder.first(logits)
        for _ in range(4):
            assert builder.frontier().token_ids.shape == (top_k,)
            builder.expand(logits.repeat(top_k, 1))
        for total in range(1, builder.pool_size + 2):
            tree = builder.finish(total)
            parents = tree.parents[1:]
            assert (parents < torch.arange(1, total)).all()
            assert (parents >= 0).all()
            levels, mask = tree_structure(tree.parents)
            assert torch.equal(levels, tree.levels)
            assert torch.equal(mask, tree.mask)


def test_equal_logits_give_the_lowest_ids(isa: str) -> None:
    builder = DraftTreeBuilder()
    logits = torch.zeros(1000)
    logits[[3, 500, 999]] = 1.0
    builder.begin(0, 5)
    builder.first(logits)
    assert builder.finish(6).token_ids.tolist() == [0, 3, 500, 999, 0, 1]


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000, 8192, 32000])
def test_top_k_and_log_softmax(isa: str, vocab: int) -> None:
    top_k = min(vocab, 10)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 5
    builder = DraftTreeBuilder()
    builder.begin(0, top_k)
    builder.first(logits)
    tree = builder.finish(top_k + 1)
    values, ids = logits.double().log_softmax(0).topk(top_k)
    assert tree.token_ids[1:].tolist() == ids.tolist()
    torch.testing.assert_close(tree.scores[1:].double(), values, rtol=1e-6, atol=2e-6)


def test_rows_may_be_strided_and_threads_agree() -> None:
    wide = torch.randn(8, 40_000, generator=torch.Generator().manual_seed(0))
    trees = []
    for logits in (wide[:, :32_000], wide[:, :32_000].contiguous()):
        builder = DraftTreeBuilder()
        builder.begin(0, 8)
        builder.first(wide[0, :32_000])
        builder.frontier()
        builder.expand(logits)
        trees.append(builder.finish(40))
    for strided, contiguous in zip(*trees, strict=True):
        assert torch.equal(strided, contiguous)


def test_invalid_arguments_are_named() -> None:
    builder = DraftTreeBuilder()
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        builder.begin(0, 0)
    builder.begin(0, 4)
    with pytest.raises(ValueError, match="exceeds the draft vocabulary of 3"):
        builder.first(torch.zeros(3))
    with pytest.raises(TypeError, match="logits must be float32"):
        builder.first(torch.zeros(9, dtype=torch.float64))
    with pytest.raises(ValueError, match="draft_to_target must have shape"):
        builder.first(torch.zeros(9), torch.zeros(8, dtype=torch.int64))
    builder.first(torch.zeros(9))
    with pytest.raises(ValueError, match="logits must have 4 rows, not 3"):
        builder.expand(torch.zeros(3, 9))
    for total in (0, 6):
        with pytest.raises(ValueError, match="total_tokens must be from 1 to 1 \\+ the 4"):
            builder.finish(total)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 17, 999])
def test_logits_that_are_no_numbers_are_refused(isa: str, value: float, place: int) -> None:
    logits = torch.zeros(1000)
    logits[place] = value
    builder = DraftTreeBuilder()
    builder.begin(0, 4)
    with pytest.raises(ValueError, match="not a number, or infinity"):
        builder.first(logits)


def test_calls_in_the_wrong_order_are_refused() -> None:
    builder = DraftTreeBuilder()
    with pytest.raises(RuntimeError, match="begin"):
        builder.first(torch.zeros(9))
    builder.begin(0, 2)
    with pytest.raises(RuntimeError, match="first"):
        builder.expand(torch.zeros(2, 9))
    builder.first(torch.zeros(9))
    with pytest.raises(RuntimeError, match="must follow begin"):
        builder.first(torch.zeros(9))


def test_tree_structure_refuses_a_parent_that_comes_later() -> None:
    with pytest.raises(ValueError, match="parents\\[1\\] = 2"):
        tree_structure(torch.tensor([-1, 2, 0], dtype=torch.int32))
