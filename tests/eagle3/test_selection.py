"""Policies that name the nodes to verify: what is verified, and that the text stays the same."""

import random

import numpy as np
import pytest
import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.ops import DraftTree, DraftTreeBuilder, tree_structure

from .tiny import tiny_head, tiny_model

VOCAB = 12
WIDTH, DEPTH = 2, 2


def builder_of(seed: int, root: int = 3) -> DraftTreeBuilder:
    torch.manual_seed(seed)
    builder = DraftTreeBuilder()
    builder.begin(root, WIDTH)
    builder.first(torch.randn(VOCAB))
    for _ in range(DEPTH):
        builder.expand(torch.randn(WIDTH, VOCAB))
    return builder


def pool_of(builder: DraftTreeBuilder) -> DraftTree:
    return builder.finish(builder.pool_size + 1)


def random_nodes(pool: DraftTree, draw: random.Random) -> list[int]:
    """Some candidates and their ancestors."""
    nodes: set[int] = set()
    for _ in range(draw.randrange(5)):
        row = draw.randrange(1, len(pool.token_ids))
        while row > 0:
            nodes.add(row - 1)
            row = int(pool.parents[row])
    return draw.sample(sorted(nodes), len(nodes))


def test_selected_nodes_make_a_tree() -> None:
    draw = random.Random(0)
    for seed in range(20):
        builder = builder_of(seed)
        pool = pool_of(builder)
        nodes = random_nodes(pool, draw)
        tree = builder.finish_selected(nodes)
        rows = [0, *sorted(node + 1 for node in nodes)]
        assert tree.token_ids.tolist() == pool.token_ids[rows].tolist()
        assert tree.levels.tolist() == pool.levels[rows].tolist()
        assert tree.scores.tolist() == pool.scores[rows].tolist()
        whole, part = list(paths_in_order(pool)), list(paths_in_order(tree))
        assert part == [whole[row] for row in rows]
        for row in range(len(rows)):
            seen = {j for j in range(len(rows)) if int(tree.mask[row, 0]) >> j & 1}
            expected, at = set(), row
            while at >= 0:
                expected.add(at)
                at = int(tree.parents[at])
            assert seen == expected


def paths_in_order(tree: DraftTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    pairs = zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True)
    for row, (parent, token) in enumerate(pairs):
        found.append(() if row == 0 else (*found[parent], token))
    return found


def test_looked_up_tokens_are_merged_into_what_is_selected() -> None:
    draw = random.Random(2)
    shared = 0
    for seed in range(60):
        builder = builder_of(seed)
        pool = pool_of(builder)
        nodes = random_nodes(pool, draw)
        looked_up = draw.choice(paths_in_order(pool)) + draw.choice(((), (VOCAB,), (1, 1, 1)))
        plain = builder.finish_selected(nodes)
        tree = builder.finish_selected(nodes, looked_up)
        known, paths = paths_in_order(plain), paths_in_order(tree)
        prefixes = [looked_up[: end + 1] for end in range(len(looked_up))]
        # The looked-up tokens that remain stand behind the candidates, in their order.
        assert paths == known + [path for path in prefixes if path not in known]
        levels, mask = tree_structure(tree.parents)
        assert torch.equal(tree.levels, levels)
        assert torch.equal(tree.mask, mask)
        assert tree.scores[: len(known)].tolist() == plain.scores.tolist()
        assert tree.scores[len(known) :].isnan().all()
        shared += len(known) > 1 and prefixes[:1] != [] and prefixes[0] in known
    assert shared > 10


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([0, 0], "distinct and in 0..9, got 0 twice"),
        ([99], "0..9, got 99"),
        ([-1], "0..9, got -1"),
        ([2], "the parent of each; that of 2 is missing"),
    ],
)
def test_impossible_selections_are_refused(nodes: list[int], message: str) -> None:
    builder = builder_of(0)
    with pytest.raises(ValueError, match=message):
        builder.finish_selected(nodes)
    assert len(builder.finish_selected([0]).token_ids) == 2


def test_nodes_that_are_no_integers_are_refused() -> None:
    builder = builder_of(0)
    for nodes, looked_up, name in (
        ([0.5], (), "nodes"),
        ([0], ["a"], "lookup_tokens"),
        (None, (), "nodes"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be a sequence of integers"):
            builder.finish_selected(nodes, looked_up)
    with pytest.raises(TypeError, match="lookup_tokens must be a sequence of integers"):
        builder.lookup_nodes(["a"], 1)


def test_looked_up_tokens_are_found_as_far_as_the_pool_has_them() -> None:
    draw = random.Random(1)
    for seed in range(20):
        builder = builder_of(seed)
        known = paths_in_order(pool_of(builder))
        path = draw.choice(known[1:])
        for looked_up in (path, (*path, VOCAB), (VOCAB, *path), ()):
            nodes = builder.lookup_nodes(looked_up, DEPTH + 1)
            expected = []
            for level in range(DEPTH + 1):
                start = tuple(looked_up[: level + 1])
                inside = len(start) == level + 1 and start in known
                expected.append(known.index(start) - 1 if inside else -1)
            assert nodes.tolist() == expected
            scores, found = builder.progress(looked_up, DEPTH + 1)
            assert scores.tolist() == builder.scores().tolist()
            assert (found.tolist() if looked_up else found) == (expected if looked_up else None)


class RandomSelection:
    """Goes on and selects by chance, and keeps what it was shown."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.rows_wanted: list[int] = []
        self.rows_verified: list[int] = []
        self.lookups = 0

    def reset(self) -> None:
        pass

    def choose(self, state: CycleState) -> DraftPlan:
        return DraftPlan(TreeParams(9, DEPTH, WIDTH), self._draw.choice((0, 5)))

    def observe(self, result: StepResult) -> None:
        self.rows_verified.append(result.rows)
        self.lookups += result.lookup_accepted > 0

    def should_continue(self, progress: DraftProgress) -> bool:
        return self._draw.random() < 0.7

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        raise AssertionError("select is asked in its place")

    def select(self, progress: DraftProgress) -> Selection:
        width = progress.top_k
        parents = [-1] * width
        for level in range(1, progress.depth + 1):
            begin = 0 if level == 1 else width + (level - 2) * width**2
            block = progress.scores[begin : width + (level - 1) * width**2]
            best = np.argsort(-block, kind="stable")[:width] + begin
            parents += np.repeat(best, width).tolist()
        nodes: set[int] = set()
        for node in self._draw.sample(range(len(parents)), self._draw.randrange(3)):
            while node >= 0:
                nodes.add(node)
                node = parents[node]
        looked_up = self._draw.randrange(len(progress.lookup.token_ids) + 1)
        if progress.lookup_nodes is not None:
            inside = progress.lookup_nodes[:looked_up]
            nodes |= set(inside[inside >= 0].tolist())
        selection = Selection(np.array(sorted(nodes), dtype=np.int64), looked_up)
        self.rows_wanted.append(
            selection.choose_total_tokens(progress) if looked_up else 1 + len(nodes)
        )
        return selection


def test_what_is_selected_is_verified_and_the_text_stays() -> None:
    target = packed_target(tiny_model(vocab_size=VOCAB, logit_scale=3.0))
    decoder = SpeculativeDecoder(
        target, tiny_head(target, draft_vocab_size=VOCAB), draft_dtype="float32"
    )
    policy = RandomSelection(0)
    assert isinstance(policy, SelectingPolicy)
    for prompt in ([1, 2, 3], [4, 4, 5, 6]):
        arguments = {"max_new_tokens": 120, "eos_token_id": []}
        expected = decoder.generate(prompt, NO_DRAFT, **arguments).sequences
        policy.rows_wanted.clear()
        policy.rows_verified.clear()
        output = decoder.generate(prompt, policy, **arguments)
        assert torch.equal(output.sequences, expected)
        # The last cycles may have had no draft, or fewer looked-up tokens than were wanted.
        assert policy.rows_verified[: len(policy.rows_wanted)][:-3] == policy.rows_wanted[:-3]
    assert policy.lookups > 3
