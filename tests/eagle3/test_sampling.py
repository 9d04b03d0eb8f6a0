"""Sampling is exact: the joint distribution of three tokens is the target's own."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.policy import StagedPolicy, TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier, SamplingVerifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.ops import DraftTree

from .tiny import tiny_head, tiny_model, tiny_runner

VOCAB, DRAFT_VOCAB = 10, 8
PROMPT = (3, 1, 4, 1, 5)
TREE = TreeParams(total_tokens=8, depth=2, top_k=3)
TEMPERATURE, TOP_K, TOP_P = 0.8, 7, 0.93
CAPACITY = 40
Triple = tuple[int, ...]


class MemoVerifier(SamplingVerifier):
    """Warps a row of logits once; every token is still drawn."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        # The memory of a row names it: the memo of the session keeps all of them alive.
        address = logits.data_ptr()
        if address not in self.known:
            self.known[address] = (logits, super().probabilities(logits))
        return self.known[address][1]


class FirstChildVerifier(MemoVerifier):
    """Wrong on purpose: takes the first child whatever the target says."""

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        parents = tree.parents.tolist()
        rows = [0]
        while rows[-1] in parents:
            rows.append(parents.index(rows[-1]))
        return rows, self.next_token(logits[rows[-1]])


class SecondTryVerifier(MemoVerifier):
    """Wrong in a subtler way: draws once more where the first draw met no child."""

    def accept(self, logits: torch.Tensor, tree: DraftTree) -> tuple[list[int], int]:
        rows, bonus = super().accept(logits, tree)
        if len(rows) == 1:
            rows, bonus = super().accept(logits, tree)
        return rows, bonus


class ForcedVerifier(GreedyVerifier):
    """Says that a given token comes first."""

    first_token: int

    def next_token(self, logits: torch.Tensor) -> int:
        return self.first_token


class MemoSession(DecodingSession):
    """The real cycle over memoised passes: a prefix fixes its tree and the target's logits."""

    def __init__(
        self, target: TargetModel, draft: CachedDraft, verifier: SamplingVerifier, cache: KVCache
    ) -> None:
        super().__init__(target, draft, verifier, cache)
        self._source = DecodingSession(target, draft, ForcedVerifier(), target.new_cache(CAPACITY))
        self._passes: dict[Triple, tuple[DraftTree, SimpleNamespace]] = {}
        rows = RowBatch.causal(PROMPT, 0)
        output = target.forward(rows, self._source.cache, "last")
        self._prompt_logits = output.logits[0].clone()

    def prefill(self, prompt_ids: Triple) -> int:
        self.cache.lengths[self.slot] = len(prompt_ids)
        self.token_ids = [*prompt_ids, self.verifier.next_token(self._prompt_logits)]
        return self.token_ids[-1]

    def _keep(self, accepted: Accepted) -> None:
        """Features are part of the memo."""
        self.token_ids.extend(accepted.emitted)

    def _compute(self, prefix: Triple, params: TreeParams) -> tuple[DraftTree, SimpleNamespace]:
        source = self._source
        DecodingSession.__init__(source, self.target, self.draft, source.verifier, source.cache)
        source.verifier.first_token = prefix[-1]
        source.prefill(prefix[:-1])
        tree, _ = source._draft_tree(params)
        output = source._verify_tree(tree)
        return tree, SimpleNamespace(
            logits=output.logits.clone(), features=torch.zeros(len(tree[0]), 1)
        )

    def _draft_tree(
        self,
        params: TreeParams,
        staged: StagedPolicy | None = None,
        lookup: Lookup = NO_LOOKUP,
        most_tokens: int | None = None,
    ) -> tuple[DraftTree, TreeParams]:
        prefix = tuple(self.token_ids)
        if prefix not in self._passes:
            self._passes[prefix] = self._compute(prefix, params)
        return self._passes[prefix][0], params

    def _verify_tree(self, tree: DraftTree) -> SimpleNamespace:
        return self._passes[tuple(self.token_ids)][1]


class Setup:
    """A small random target whose distributions are far from flat, and a random head."""

    def __init__(self) -> None:
        self.model = tiny_model(vocab_size=VOCAB, num_hidden_layers=3, logit_scale=0.75, seed=2)
        self.target = make_target(self.model, feature_layers=(0, 1, 2), backend="packed")
        head = tiny_head(self.target, draft_vocab_size=DRAFT_VOCAB, seed=3)
        self.draft = tiny_runner(head, CAPACITY)
        self.cache = self.target.new_cache(CAPACITY)

    def verifier(self, kind: type[SamplingVerifier], seed: int) -> SamplingVerifier:
        generator = torch.Generator().manual_seed(seed)
        return kind(TEMPERATURE, TOP_P, TOP_K, generator)

    def memo_session(self, kind: type[SamplingVerifier], seed: int) -> MemoSession:
        return MemoSession(self.target, self.draft, self.verifier(kind, seed), self.cache)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


def draw(new_session: Callable[[], DecodingSession], count: int) -> list[Triple]:
    """The first three tokens of `count` sequences."""
    triples = []
    for _ in range(count):
        session = new_session()
        session.prefill(PROMPT)
        while len(session.token_ids) < len(PROMPT) + 3:
            session.step(TREE)
        triples.append(tuple(session.token_ids[len(PROMPT) : len(PROMPT) + 3]))
    return triples


def warp(logits: np.ndarray) -> np.ndarray:
    """Probabilities (V,) after temperature, top_k and top_p, in transformers' order."""
    scaled = logits / TEMPERATURE
    scaled = np.where(scaled >= np.sort(scaled)[-TOP_K], scaled, -np.inf)
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    order = np.argsort(-weights)
    mass_before = np.cumsum(weights[order]) - weights[order]
    weights[order[mass_before >= TOP_P]] = 0
    return weights / weights.sum()


def exact_distribution(model: torch.nn.Module) -> dict[Triple, float]:
    """Joint probability of all triples: the chain rule over a float64 model."""
    model = copy.deepcopy(model).double()

    def conditional(length: int) -> dict[Triple, np.ndarray]:
        prefixes = list(itertools.product(range(VOCAB), repeat=length))
        ids = torch.tensor([[*PROMPT, *prefix] for prefix in prefixes])
        with torch.no_grad():
            logits = model(ids).logits[:, -1].numpy()
        return {prefix: warp(row) for prefix, row in zip(prefixes, logits, strict=True)}

    first, second, third = (conditional(length) for length in range(3))
    return {
        (a, b, c): float(first[()][a] * second[a,][b] * third[a, b][c])
        for a, b, c in itertools.product(range(VOCAB), repeat=3)
    }


def p_value(triples: list[Triple], expected: dict[Triple, float]) -> float:
    """Chi-square test of goodness of fit; cells that expect fewer than five are one cell."""
    counts, total = Counter(triples), len(triples)
    large = [cell for cell, p in expected.items() if p * total >= 5]
    observed = [counts[cell] for cell in large]
    wanted = [expected[cell] * total for cell in large]
    rest = total - sum(wanted)
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    freedom = len(large) - 1
    if rest > 1e-6 * total:
        statistic += (total - sum(observed) - rest) ** 2 / rest
        freedom += 1
    return float(chi2.sf(statistic, freedom))


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_joint_distribution_is_the_targets(setup: Setup, count: int) -> None:
    expected = exact_distribution(setup.model)
    # Neither flat nor nearly deterministic, or the test would show little.
    assert max(expected.values()) < 0.1
    assert sum(p > 1e-4 for p in expected.values()) > 200

    session = setup.memo_session(MemoVerifier, seed=11)
    triples = draw(lambda: session, count)
    assert all(expected[triple] > 0 for triple in set(triples))
    assert p_value(triples, expected) > 0.01

    trees = [tree for tree, _ in session._passes.values()]
    assert all(len(tree.token_ids) == TREE.total_tokens for tree in trees)
    # Wider than one path: some node has two children.
    assert all(len(set(tree.parents.tolist())) < TREE.total_tokens - 1 for tree in trees)


def test_memo_changes_no_token(setup: Setup) -> None:
    session = setup.memo_session(MemoVerifier, seed=12)
    memoised = draw(lambda: session, 400)
    verifier = setup.verifier(SamplingVerifier, seed=12)
    accepted = Counter()

    class Counting(DecodingSession):
        def step(self, params: TreeParams):
            result = super().step(params)
            accepted[result.accepted] += 1
            return result

    direct = draw(lambda: Counting(setup.target, setup.draft, verifier, setup.cache), 400)
    assert direct == memoised
    # Rejected at once, partly and wholly accepted: all three were exercised.
    assert set(accepted) >= {0, 1, 2}
    # Passes that were used again and again, and computed anew in the other half.
    assert len(session._passes) >= 30


@pytest.mark.parametrize("kind", [FirstChildVerifier, SecondTryVerifier])
def test_wrong_verifiers_are_found(setup: Setup, kind: type[SamplingVerifier]) -> None:
    # With a tenth of the draws that the right one is tested with.
    session = setup.memo_session(kind, seed=13)
    triples = draw(lambda: session, 2_000)
    assert p_value(triples, exact_distribution(setup.model)) < 1e-6
