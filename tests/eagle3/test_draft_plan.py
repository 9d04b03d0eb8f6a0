"""Drafts from the text itself, alone and merged into the tree; trees that are grown in stages."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from eaglerl.eagle3 import DraftPlan, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.device_acceptance import accepted_rows
from eaglerl.eagle3.sampling import GreedyVerifier, make_verifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.merge import merge_looked_up, merge_looked_up_on_device
from eaglerl.ops import DraftTree, accept_path_ref, tree_structure

from .emulated_device import EmulatedDevice
from .test_device_loop import MODEL, PROMPT, emulated_decoder
from .tiny import tiny_head, tiny_model, tiny_runner

TREE = TreeParams(8, 2, 3)
PLANS = {
    "lookup": DraftPlan(lookup_tokens=6),
    "merged": DraftPlan(TREE, 6),
    "tree": DraftPlan(TREE),
    "nothing": DraftPlan(),
}
NEW_TOKENS = 50


@pytest.fixture(scope="module")
def model():
    return tiny_model(**MODEL)


@pytest.fixture(scope="module")
def expected(model) -> list[int]:
    prompt = torch.tensor([PROMPT])
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0].tolist()


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    target = make_target(model)
    head = tiny_head(target, draft_vocab_size=10, seed=5)
    return SpeculativeDecoder(target, head, draft_dtype="float32")


@pytest.mark.parametrize("name", PLANS)
def test_greedy_text_is_that_of_generate(decoder, expected, name) -> None:
    output = decoder.generate(PROMPT, PLANS[name], max_new_tokens=NEW_TOKENS)
    assert output.sequences[0].tolist() == expected
    cycles = output.statistics.cycles
    if PLANS[name].lookup_tokens:
        assert sum(cycle.lookup_accepted for cycle in cycles) >= 5
        assert any(cycle.lookup.match_length for cycle in cycles)
    else:
        assert all(cycle.lookup.token_ids == () for cycle in cycles)
    for cycle in cycles:
        assert cycle.rows <= PLANS[name].most_rows
        assert cycle.accepted >= cycle.lookup_accepted


@pytest.mark.parametrize("name", ["lookup", "merged"])
def test_on_a_device_too(expected, name) -> None:
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        mode.waits.clear()
        output = decoder.generate(PROMPT, PLANS[name], max_new_tokens=NEW_TOKENS)
        assert mode.waits.total() == output.statistics.num_cycles + 1, mode.waits
    assert output.sequences[0].tolist() == expected
    assert sum(cycle.lookup_accepted for cycle in output.statistics.cycles) >= 5


def test_a_merged_plan_accepts_the_larger_of_the_two(decoder, expected) -> None:
    """At every position: each source alone, then both together."""
    differing = 0
    for length in range(len(PROMPT), len(expected) - 8):
        accepted = {}
        for name in ("lookup", "tree", "merged"):
            session = decoder.new_session(GreedyVerifier(), 100)
            session.prefill(expected[:length])
            accepted[name] = session.step(PLANS[name]).accepted
        assert accepted["merged"] == max(accepted["lookup"], accepted["tree"])
        differing += accepted["lookup"] != accepted["tree"]
    assert differing >= 10


def random_tree(generator: torch.Generator) -> DraftTree:
    """Tokens are distinct among siblings, as a drafted tree's are."""
    total = int(torch.randint(1, 20, (1,), generator=generator))
    parents = [-1]
    parents += [int(torch.randint(row, (1,), generator=generator)) for row in range(1, total)]
    tokens, seen = [9] * total, Counter()
    for row in range(1, total):
        tokens[row] = seen[parents[row]]
        seen[parents[row]] += 1
    rows = torch.tensor(parents, dtype=torch.int32)
    levels, mask = tree_structure(rows)
    return DraftTree(torch.tensor(tokens), rows, levels, mask, torch.zeros(total))


def paths(tree: DraftTree) -> set[tuple[int, ...]]:
    """The tokens from the root to every node."""
    found: list[tuple[int, ...]] = [()]
    for row in range(1, len(tree.parents)):
        found.append((*found[int(tree.parents[row])], int(tree.token_ids[row])))
    assert len(set(found)) == len(found), "two rows carry the same tokens"
    return set(found)


def test_merging_joins_what_is_shared() -> None:
    generator = torch.Generator().manual_seed(1)
    shared = 0
    for _ in range(200):
        tree = random_tree(generator)
        looked_up = torch.randint(3, (int(torch.randint(8, (1,), generator=generator)),),
                              generator=generator).tolist()  # fmt: skip
        merged = merge_looked_up(tree, looked_up)
        prefixes = {tuple(looked_up[: end + 1]) for end in range(len(looked_up))}
        assert paths(merged) == paths(tree) | prefixes
        levels, mask = tree_structure(merged.parents)
        assert torch.equal(merged.levels, levels)
        assert torch.equal(merged.mask, mask)
        total = len(tree.token_ids)
        assert torch.equal(merged.token_ids[:total], tree.token_ids)
        assert merged.scores[total:].isnan().all()
        shared += len(paths(tree) & prefixes)
    assert shared >= 50


def test_merging_on_a_device_accepts_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = Counter()
    for _ in range(200):
        tree = random_tree(generator)
        count = int(torch.randint(1, 8, (1,), generator=generator))
        looked_up = torch.randint(3, (count,), generator=generator).tolist()
        total = len(tree.parents)
        ancestors = ((tree.mask >> torch.arange(total)) & 1).bool()
        parents = tree.parents.long().clamp(min=0)
        on_device = merge_looked_up_on_device(
            DeviceTree(
                tree.token_ids,
                parents,
                tree.levels.long(),
                ancestors,
                tree.scores,
                torch.ones(total, dtype=torch.bool),
                int(tree.levels.max()) + 1,
            ),
            looked_up,
        )
        # The choice after a node follows from its tokens, so that both see the same ones.
        merged = merge_looked_up(tree, looked_up)

        def choices(parents: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
            found: list[tuple[int, ...]] = [()]
            for row in range(1, len(parents)):
                found.append((*found[int(parents[row])], int(token_ids[row])))
            return torch.tensor([hash(path) % 3 for path in found])

        wanted = choices(merged.parents, merged.token_ids)
        path = accept_path_ref(merged.parents, merged.token_ids, wanted).long()
        rows, kept = accepted_rows(on_device, choices(on_device.parents, on_device.token_ids))
        assert int(kept) == len(path)
        rows = rows[: int(kept)]
        assert on_device.token_ids[rows].tolist() == merged.token_ids[path].tolist()
        lengths[len(path)] += 1
    assert len(lengths) >= 4


def test_sampling_keeps_its_distribution() -> None:
    """Draft the next token, after a prompt whose end occurred in it before, from both sources."""
    model = tiny_model(vocab_size=10, num_hidden_layers=3, logit_scale=0.75, seed=2)
    target = make_target(model, feature_layers=(0, 1, 2), backend="packed")
    draft = tiny_runner(tiny_head(target, draft_vocab_size=8, seed=3), 64)
    cache = target.new_cache(64)
    # Every token has followed a 4 before.
    prompt = [token for after in range(10) for token in (4, after)] + [4]
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)
        pairs = torch.stack(
            [
                torch.softmax(model(torch.tensor([[*prompt, t]])).logits[0, -1].double(), -1)
                for t in range(10)
            ]
        )
    expected = (first[:, None] * pairs).flatten()
    verifier = make_verifier(1.0, 1.0, 0, seed=4, device="cpu")
    counts, looked_up = torch.zeros(100), 0
    for _ in range(4_000):
        session = DecodingSession(target, draft, verifier, cache)
        session.prefill(prompt)
        looked_up += session.step(DraftPlan(TreeParams(4, 1, 2), 3)).lookup_accepted
        one, two = session.token_ids[len(prompt) : len(prompt) + 2]
        counts[10 * one + two] += 1
    assert looked_up >= 100
    wanted = expected * counts.sum()
    often = wanted >= 5
    observed = torch.cat((counts[often], counts[~often].sum()[None]))
    wanted = torch.cat((wanted[often], wanted[~often].sum()[None]))
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 0.01


class Staged:
    """Stops after some rounds and verifies some rows; writes down what it was shown."""

    def __init__(self, rounds: int, rows: int) -> None:
        self.rounds, self.wanted = rounds, rows
        self.shown = []

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state) -> TreeParams:
        return TreeParams(40, 4, 4)

    def observe(self, result) -> None:
        """Nothing to learn."""

    def should_continue(self, progress) -> bool:
        self.shown.append(progress)
        return progress.depth < self.rounds

    def choose_total_tokens(self, progress) -> int:
        return min(self.wanted, 1 + len(progress.scores))


@pytest.mark.parametrize(("rounds", "rows"), [(0, 3), (1, 9), (2, 9), (4, 40), (9, 40), (1, 1)])
def test_a_staged_tree_is_that_of_its_parameters(decoder, expected, rounds, rows) -> None:
    staged = Staged(rounds, rows)
    output = decoder.generate(PROMPT, staged, max_new_tokens=NEW_TOKENS)
    assert output.sequences[0].tolist() == expected
    depth = min(rounds, 4)
    constant = decoder.generate(PROMPT, TreeParams(rows, depth, 4), max_new_tokens=NEW_TOKENS)
    trees = [cycle.params for cycle in output.statistics.cycles if cycle.params.top_k == 4]
    # The last trees are cut to the tokens that are left.
    assert set(trees[: -depth - 2]) == {TreeParams(rows, depth, 4)}
    accepted = [cycle.accepted for cycle in output.statistics.cycles]
    assert accepted[:-5] == [cycle.accepted for cycle in constant.statistics.cycles][:-5]
    for progress in staged.shown:
        assert progress.scores.shape == (4 + 16 * progress.depth,)
        # Log-probabilities; a node's children are no likelier than it, so rounds get no better.
        assert progress.scores.max() <= 0
        rounds_best = [progress.scores[:4].max()]
        rounds_best += [progress.scores[4 + 16 * i :][:16].max() for i in range(progress.depth)]
        assert rounds_best == sorted(rounds_best, reverse=True)


def test_a_staged_policy_on_a_device_is_refused() -> None:
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        with pytest.raises(ValueError, match="staged policy decides on the host"):
            decoder.generate(PROMPT, Staged(1, 4), max_new_tokens=5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lookup_tokens": -1}, ValueError, "lookup_tokens must be 0 or positive, got -1"),
        ({"lookup_tokens": 1.5}, TypeError, "lookup_tokens must be an int"),
        ({"tree": (8, 2, 3)}, TypeError, "tree must be TreeParams or None"),
    ],
)
def test_wrong_plans_are_named(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        DraftPlan(**arguments)


def test_a_choice_that_is_no_plan_is_named(decoder) -> None:
    class Wrong(Staged):
        def choose(self, state):
            return (8, 2, 3)

    with pytest.raises(TypeError, match="a cycle needs TreeParams or a DraftPlan, got tuple"):
        decoder.generate(PROMPT, Wrong(1, 4), max_new_tokens=5)
