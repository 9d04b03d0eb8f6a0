"""`BatchChainPolicy` on made-up texts whose truth is known, and its choices against NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eaglerl._ext import C
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup, common_length
from eaglerl.policies import BatchChainPolicy
from eaglerl.policies.batch_chains import Chain, ChainState, chain_cost

TOKENS = 5
NOWHERE = np.full(1, -1)


class Engine:
    """Texts of which head and lookups know a part, on a machine with known costs."""

    def __init__(
        self, slots: int, row: float, *, seed: int, lookups: float = 0.3, trust=(3.0, 1.2)
    ):
        self.slots, self.row = slots, row
        self.lookups, self.trust = lookups, trust
        self.source = np.random.default_rng(seed)
        self.first, self.later, self.base = 0.004, 0.003, 0.02

    def step(self) -> tuple[list[ChainState], np.ndarray, np.ndarray, np.ndarray]:
        """The states, the true tokens, the head's tokens and its log-probabilities."""
        source, shape = self.source, (self.slots, TOKENS)
        truth = source.integers(0, 1000, (self.slots, TOKENS + 1))
        chance = np.clip(source.beta(*self.trust, shape), 0.02, 0.99)
        head = np.where(source.random(shape) < chance, truth[:, :TOKENS], 1000)
        states = []
        for slot in range(self.slots):
            right = 0.95 if source.random() < 0.7 else 0.1
            tokens = np.where(source.random(TOKENS) < right, truth[slot, :TOKENS], 2000)
            found = source.random() < self.lookups
            lookup = Lookup(int(source.integers(2, 16)), tuple(tokens.tolist()))
            states.append(ChainState(slot, 100, lookup if found else NO_LOOKUP, 2, TOKENS))
        return states, truth, head, np.log(chance)

    def seconds(self, rows: int, passes: int) -> tuple[float, float]:
        noise = self.source.lognormal(0.0, 0.05, 2)
        draft = self.first + (passes - 1) * self.later if passes else 0.0
        return draft * noise[0], (self.base + self.row * rows) * noise[1]

    @staticmethod
    def emitted(truth: np.ndarray, chain: list[int]) -> list[int]:
        accepted = 0
        while accepted < len(chain) and chain[accepted] == truth[accepted]:
            accepted += 1
        return truth[: accepted + 1].tolist()

    def constant(self, length: int, steps: int) -> float:
        """Tokens per second of one length for all."""
        tokens = seconds = 0.0
        for _ in range(steps):
            _, truth, head, _ = self.step()
            for slot in range(self.slots):
                tokens += len(self.emitted(truth[slot], head[slot, :length].tolist()))
            seconds += sum(self.seconds(self.slots * (1 + length), length))
        return tokens / seconds


def drive(policy: BatchChainPolicy, engine: Engine, steps: int) -> tuple[float, dict[str, int]]:
    """Tokens per second, and the number of chains from each source."""
    tokens = seconds = 0.0
    sources = {"head": 0, "lookup": 0, "none": 0}
    for _ in range(steps):
        states, truth, head, logprobs = engine.step()
        passes = 0
        if policy.plan(states):
            going = True
            while going:
                for state in states:
                    if policy.drafts(state.slot):
                        token, logprob = head[state.slot, passes], logprobs[state.slot, passes]
                        policy.look(state.slot, int(token), float(logprob))
                passes += 1
                going = policy.continues() and passes < TOKENS
            policy.select()
        rows, emitted = 0, []
        for state in states:
            source, length = policy.chain(state.slot)
            sources[source] += 1
            own = head[state.slot].tolist() if source == "head" else state.lookup.token_ids
            chain = [*own[:length]]
            assert len(chain) == length
            rows += 1 + length
            emitted.append(engine.emitted(truth[state.slot], chain))
        draft, verify = engine.seconds(rows, passes)
        for state, new in zip(states, emitted, strict=True):
            policy.observe(state.slot, new)
            tokens += len(new)
        policy.end_step(rows, draft, verify)
        seconds += draft + verify
    return tokens / seconds, sources


@pytest.mark.parametrize(
    ("slots", "row", "more"),
    [(1, 0.0005, 1.2), (8, 0.0005, 1.08), (8, 0.003, 1.04), (16, 0.002, 1.03)],
)
def test_it_is_faster_than_the_best_length_in_hindsight(
    slots: int, row: float, more: float
) -> None:
    best = max(Engine(slots, row, seed=1).constant(length, 300) for length in range(TOKENS + 1))
    policy = BatchChainPolicy(slots, TOKENS)
    drive(policy, Engine(slots, row, seed=2), 150)
    rate, sources = drive(policy, Engine(slots, row, seed=3), 500)
    assert rate > more * best
    assert min(sources["head"], sources["lookup"]) > 0
    assert policy.rate == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("slots", [1, 4])
def test_where_nothing_pays_it_decodes_plainly(slots: int) -> None:
    """Rows cost as much as steps, and neither head nor lookup knows anything."""
    wrong = {"lookups": 0.0, "trust": (1.0, 40.0)}
    plain = Engine(slots, 0.02, seed=1, **wrong).constant(0, 300)
    policy = BatchChainPolicy(slots, TOKENS)
    drive(policy, Engine(slots, 0.02, seed=2, **wrong), 200)
    rate, sources = drive(policy, Engine(slots, 0.02, seed=3, **wrong), 600)
    assert rate > 0.985 * plain
    assert sources["none"] > 0.95 * sum(sources.values())


def test_a_lookup_that_is_right_replaces_the_head() -> None:
    policy = BatchChainPolicy(2, TOKENS)
    sure = {"lookups": 1.0, "trust": (1.0, 3.0)}
    drive(policy, Engine(2, 0.002, seed=4, **sure), 300)
    _, sources = drive(policy, Engine(2, 0.002, seed=5, **sure), 300)
    assert sources["lookup"] > 0.6 * sum(sources.values())


class Judge:
    """What a policy of two sequences has chosen, computed again with NumPy."""

    def __init__(self, policy: BatchChainPolicy) -> None:
        native = policy._native
        self.policy = policy
        self.verify = policy.cost._native.verify()
        self.rate = native.rate * (1.0 + 100 * policy.cost._native.context_growth)
        slots = policy.slots
        more = self.verify[3 * slots - 1] - self.verify[slots - 1]
        self.price = self.rate * more / (2 * slots)

    def value(self, survivals: np.ndarray) -> float:
        return float(np.maximum(survivals - self.price, 0.0).sum())

    def path(self, slot: int, head: list[int], looked_up: tuple[int, ...]) -> np.ndarray:
        """The survivals of the better chain; the policy has chosen no other."""
        drafted, found = self.policy._native.survival(slot)
        shared = common_length(head, looked_up)
        tail, other = drafted[shared:], found[shared : len(looked_up)]
        lookup_leads = self.value(other) > self.value(tail)
        source, length = self.policy.chain(slot)
        if length > shared:
            assert source == ("lookup" if lookup_leads else "head")
        return np.concatenate([drafted[:shared], other if lookup_leads else tail])

    def worth(self, paths: list[np.ndarray], lengths: tuple[int, ...]) -> float:
        tokens = sum(path[:length].sum() for path, length in zip(paths, lengths, strict=True))
        return float(tokens - self.rate * self.verify[len(paths) + sum(lengths) - 1])


def test_the_choice_is_the_best_of_all() -> None:
    """Each sequence takes the chain that is worth more at the price of a row; the lengths are the
    best of all combinations for the true costs, once these are known."""
    slots, known, best = 2, 0, 0
    policy, engine = BatchChainPolicy(slots, 3), Engine(slots, 0.001, seed=7, lookups=0.5)
    seen = {"head": 0, "lookup": 0, "none": 0}
    for step in range(300):
        states, truth, head, logprobs = engine.step()
        states = [
            state._replace(room=3, lookup=Lookup(state.lookup[0], state.lookup.token_ids[:3]))
            for state in states
        ]
        passes = 1 + step % 3 if policy.plan(states) else 0
        for level in range(passes):
            for slot in range(slots):
                policy.look(slot, int(head[slot, level]), float(logprobs[slot, level]))
            policy.continues()
        if passes:
            policy.select()
            judge = Judge(policy)
            paths = [
                judge.path(slot, head[slot, :passes].tolist(), states[slot].lookup.token_ids)
                for slot in range(slots)
            ]
            lengths = itertools.product(*(range(len(path) + 1) for path in paths))
            most = max(judge.worth(paths, each) for each in lengths)
            got = judge.worth(paths, tuple(policy.chain(slot).length for slot in range(slots)))
            assert got <= most + 1e-9
            if policy.cost.cycles > 60:
                known, best = known + 1, best + (got > most - 1e-9)
        rows = 0
        for slot in range(slots):
            source, length = policy.chain(slot)
            seen[source] += 1
            own = head[slot].tolist() if source == "head" else states[slot].lookup.token_ids
            policy.observe(slot, engine.emitted(truth[slot], [*own[:length]]))
            rows += 1 + length
        policy.end_step(rows, *engine.seconds(rows, passes))
    assert min(seen["head"], seen["lookup"]) > 10
    # Now and then a length is tried for what it teaches of its cost.
    assert best > 0.9 * known > 50


def test_the_chain_that_was_not_verified_teaches_too() -> None:
    """Whichever chain is verified, a lookup that the text went on with is believed more."""
    believed = {}
    for right in (True, False):
        cost = chain_cost(1, 3)
        batch = C.OnlineBatch(C.OnlineAcceptance(2, 1.0), 1, 2, 4, 3, cost._native, 1, 4, True)
        for _ in range(6):
            batch.plan([(0, 50, 2, 3, 1, 3)])
            batch.score(0, np.full(1, -1e-3, np.float32), 0, 50, 2, 3, NOWHERE)
            batch.score(0, np.full(2, -1e-3, np.float32), 1, 50, 2, 3, np.full(2, -1))
            believed[right] = batch.survival(0)[1][0]
            batch.select()
            batch.selection(0)
            tokens = [1, 2, 3, 4] if right else [7, 8, 9]
            batch.observe_chains(0, [7, 8], [1, 2, 3], tokens)
            batch.end_cycle(2, 0.01, 0.001)
    assert believed[True] > believed[False] + 0.1


def test_wrong_calls_are_refused() -> None:
    cost = chain_cost(2, 3)
    shared = C.OnlineAcceptance(2, 1.0)
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.1, got 2"):
        C.OnlineBatch(shared, 2, 2, 4, 3, cost._native, 2, 8, True)
    trees = C.OnlineBatch(shared, 1, 2, 4, 3, cost._native, 2, 8, False)
    trees.plan([(0, 5, 0, 0, 1, 3)])
    with pytest.raises(ValueError, match="not made for chains"):
        trees.observe_chains(0, [], [], [1])
    with pytest.raises(ValueError, match=r"most_tokens must be in 1\.\.128, got 0"):
        BatchChainPolicy(2, 0)
    policy = BatchChainPolicy(2, 3)
    state = ChainState(0, 5, NO_LOOKUP, 1, 3)
    with pytest.raises(ValueError, match="slot 0 occurs twice"):
        policy.plan([state, state])
    with pytest.raises(ValueError, match=r"slot must be in 0\.\.1, got 2"):
        policy.plan([state._replace(slot=2)])
    policy.plan([state])
    policy.look(0, 1, -0.5)
    policy.select()
    policy.chain(0)
    with pytest.raises(ValueError, match="slot 1 is not part of this cycle"):
        policy.observe(1, [3])
    with pytest.raises(ValueError, match="number of drafted tokens"):
        policy._native.observe_chains(0, [1, 2], [], [3])
    with pytest.raises(ValueError, match="token_ids"):
        policy.observe(0, [])


def test_a_sequence_without_room_gets_nothing() -> None:
    policy = BatchChainPolicy(2, 3)
    found = Lookup(8, (1, 2, 3))
    for _ in range(20):
        drafts = policy.plan([ChainState(0, 9, NO_LOOKUP, 1, 3), ChainState(1, 9, found, 1, 0)])
        assert not policy.drafts(1)
        if drafts:
            policy.look(0, 5, -0.01)
            policy.continues()
            policy.select()
        assert policy.chain(1) == Chain("none", 0)
        policy.chain(0)
        policy.observe(0, [5, 6])
        policy.observe(1, [9])
        policy.end_step(3, 0.001, 0.01)
