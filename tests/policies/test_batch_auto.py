"""`BatchAutoPolicy` on made-up texts whose truth is known, and its choice of rows against NumPy."""

import numpy as np
import pytest
import torch

from eaglerl.cost import OnlineCost
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTreeBuilder
from eaglerl.policies import AutoPolicy, BatchAutoPolicy
from eaglerl.policies.batch_auto import batch_cost

from ..simulated_clock import FLAT, STEEP, STEP, WIDTH
from .batch_texts import (
    FLAT_64,
    STEEP_64,
    STEP_64,
    Batch,
    BatchClock,
    BatchDecoded,
    State,
    made_up_state,
    to_64_rows,
    uniform_rates,
)
from .made_up_texts import Cycle, Text, decode
from .random_drafts import Sizes, at_depth, random_draft, random_sizes
from .test_auto_policy import (
    GOOD_LOOKUP,
    LYING_LOOKUP,
    OWN_HEAD,
    RANDOM_HEAD,
    SURE_AND_WRONG,
    TREES,
)

HALF_RIGHT = {"trust": 0.5}
HEADS = {
    "own head": (OWN_HEAD,),
    "random head": (RANDOM_HEAD,),
    "half right": (HALF_RIGHT,),
    "all kinds": (OWN_HEAD, HALF_RIGHT, SURE_AND_WRONG, RANDOM_HEAD),
    "lookups": (OWN_HEAD, GOOD_LOOKUP, LYING_LOOKUP, RANDOM_HEAD),
}
MACHINES = {"steep": STEEP_64, "step": STEP_64, "flat": FLAT_64}
CYCLES, LEARNED = 1200, 500


def texts_of(heads: tuple[dict, ...], slots: int, seed: int, cycles: int) -> list[list[Cycle]]:
    return [
        Text(seed=1000 * seed + slot, **heads[slot % len(heads)]).cycles(cycles)
        for slot in range(slots)
    ]


def clock_of(machine: str, seed: int) -> BatchClock:
    table, another = MACHINES[machine]
    return BatchClock(table, seed=seed, another=another)


def decoded(machine: str, texts: list[list[Cycle]], seed: int) -> BatchDecoded:
    slots = len(texts)
    return Batch(BatchAutoPolicy(slots), clock_of(machine, seed), slots).decode(texts)


def gain(heads: str, machine: str, slots: int, seed: int) -> float:
    """Return the rate after 500 cycles, beside the best of plain and uniform constant trees."""
    texts = texts_of(HEADS[heads], slots, seed, CYCLES)
    found = decoded(machine, texts, seed).rate(LEARNED)
    rates = uniform_rates(TREES, [text[LEARNED:] for text in texts], clock_of(machine, seed))
    return found / max(rates.values())


GUARDED = [
    pytest.param(heads, machine, slots, id=f"{heads}-{machine}-{slots}")
    for i, heads in enumerate(HEADS)
    for j, machine in enumerate(MACHINES)
    # All numbers of slots with all heads, and with all machines.
    for slots in np.roll([4, 8, 16], i + j).tolist()
]


@pytest.mark.parametrize(("heads", "machine", "slots"), GUARDED[::3])
def test_after_500_cycles_it_loses_to_no_uniform_tree(heads: str, machine: str, slots: int) -> None:
    assert gain(heads, machine, slots, 0) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "machine", "slots"), GUARDED)
def test_nor_on_average_over_six_batches(heads: str, machine: str, slots: int) -> None:
    found = [gain(heads, machine, slots, seed) for seed in range(6)]
    assert np.mean(found) > 0.99, found
    assert min(found) > 0.96, found


@pytest.mark.parametrize("table", [STEEP, STEP, FLAT], ids=lambda table: table.machine)
@pytest.mark.parametrize("text", [OWN_HEAD, RANDOM_HEAD, LYING_LOOKUP, GOOD_LOOKUP, HALF_RIGHT])
def test_one_slot_decides_as_alone(text: dict, table) -> None:
    table = to_64_rows(table, 0.2)
    cycles = Text(seed=5, **text).cycles(400)
    alone, policy = AutoPolicy(), BatchAutoPolicy(1)
    expected = decode(alone, cycles, BatchClock(table, seed=5))
    found = Batch(policy, BatchClock(table, seed=5), 1).decode([cycles])
    np.testing.assert_array_equal(found.rows[:, 0], expected.rows)
    np.testing.assert_array_equal(found.tokens[:, 0], expected.tokens)
    np.testing.assert_array_equal(found.drafted[:, 0], expected.drafted)
    assert policy.rate == pytest.approx(alone.rate)


def test_rows_are_within_the_budget_and_every_slot_has_its_root() -> None:
    found = decoded("flat", texts_of(HEADS["all kinds"], 16, 1, 150), 1)
    assert found.rows.sum(axis=1).max() <= 64
    assert found.rows.min() == 1  # some get no more
    assert found.rows.sum(axis=1)[100:].mean() > 60


def test_slots_whose_lookups_are_right_get_more_rows() -> None:
    found = decoded("flat", texts_of((GOOD_LOOKUP, RANDOM_HEAD), 8, 0, 800), 0)
    rows = found.rows[LEARNED:].mean(axis=0)
    assert rows[::2].mean() > 1.5 * rows[1::2].mean()


def test_the_rate_is_that_of_as_many_slots() -> None:
    # With the rate of 16, one slot would neither draft nor verify what it looked up.
    clock = clock_of("step", 0)
    policy = BatchAutoPolicy(16)
    texts = texts_of(HEADS["own head"], 16, 0, 400)
    Batch(policy, clock, 16).decode(texts)
    among = policy.rate
    single = Batch(policy, clock, 1)
    later = texts_of(HEADS["own head"], 1, 7, 400)
    found = single.decode(later)
    rates = uniform_rates(TREES, [later[0][100:]], clock)
    assert found.rate(100) > 0.97 * max(rates.values())
    assert policy.rate < 0.5 * among


def test_the_passes_of_more_slots_are_learned() -> None:
    clock = clock_of("flat", 3)
    policy = BatchAutoPolicy(16)
    Batch(policy, clock, 16).decode(texts_of(HEADS["own head"], 16, 3, 400))
    first, later = policy.cost._native.passes(4)
    unit = policy.cost._native.speed
    one = clock.passes_seconds([16])
    assert unit * first == pytest.approx(one, rel=0.1)
    assert unit * later == pytest.approx(clock.passes_seconds([16, 16]) - one, rel=0.1)


def known_costs(policy: BatchAutoPolicy, draw: np.random.Generator) -> np.ndarray:
    """Let a policy know its costs so well that nothing is tried; return those of rows."""
    native = policy.cost._native
    mean, spread = native.belief()
    knots = native.knots()
    rising = np.cumsum(draw.choice([0.0, 0.02, 0.3], len(knots) - 1))
    mean[1 : len(knots)] = rising
    mean[len(knots)] = np.log(1e-9)
    native.restore(mean, np.full_like(spread, 1e-3), 1)
    return native.verify()


def best_rows(survivals: list[np.ndarray], fixed: int, rate: float, costs: np.ndarray) -> list[int]:
    """Return how many of each slot's best candidates are worth their rows."""
    slot = np.repeat(np.arange(len(survivals)), [len(each) for each in survivals])
    joined = np.concatenate(survivals)
    order = np.argsort(-joined, kind="stable")[: len(costs) - fixed]
    values = (
        np.concatenate(([0.0], np.cumsum(joined[order])))
        - rate * costs[fixed - 1 :][: len(order) + 1]
    )
    chosen = slot[order[: int(values.argmax())]]
    return np.bincount(chosen, minlength=len(survivals)).tolist()


def score_random(
    policy: BatchAutoPolicy, slot: int, draw: np.random.Generator, sizes: Sizes
) -> np.ndarray:
    """Let a policy look at a draft; return the survivals of its best candidates."""
    depth = int(draw.integers(sizes.depth + 1))
    progress = at_depth(random_draft(draw, sizes), depth)
    match, tokens = progress.lookup
    nodes = progress.lookup_nodes
    policy._native.score(slot, progress.scores, depth, 100, match, len(tokens), nodes)
    pool, looked_up = policy._native.survival(slot)
    inside = 0 if nodes is None else int((nodes >= 0).sum())
    joined = np.concatenate((pool, looked_up[inside : len(tokens)]))
    return np.sort(joined)[::-1][: sizes.rows - 1]


def check_selection(policy: BatchAutoPolicy, slot: int, best: np.ndarray, count: int) -> None:
    """Check that the `count` best of a slot are selected."""
    nodes, _ = policy._native.selection(slot)
    pool, looked_up = policy._native.survival(slot)
    least = best[count - 1] if count else 1.1
    assert set(np.flatnonzero(pool > least)) <= set(nodes.tolist())
    assert len(nodes) <= count <= len(nodes) + (looked_up >= least).sum()


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_of_rows_equals_that_in_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes, slots = random_sizes(draw), int(draw.integers(1, 17))
    limit = TreeParams(sizes.rows, sizes.depth, sizes.top_k)
    policy = BatchAutoPolicy(slots, limit=limit, lookup_tokens=sizes.lookup_tokens)
    native = policy._native
    for _ in range(6):
        costs = known_costs(policy, draw)
        native.plan([(slot, 100, 0, 0, 0, 1000) for slot in range(slots)])
        survivals = [score_random(policy, slot, draw, sizes) for slot in range(slots)]
        native.decide()
        native.select()
        counts = best_rows(survivals, slots, native.rate, costs)
        for slot, best in enumerate(survivals):
            check_selection(policy, slot, best, counts[slot])
            native.observe(slot, [], [1], [])
        native.end_cycle(slots + sum(counts), 0.0, 0.0)


class Twins:
    """Two equal policies of three slots: one looks at builders, the other at arrays."""

    lookup = Lookup(3, (5, 6, 7))

    def __init__(self) -> None:
        limit = TreeParams(12, 2, 3)
        self.first, self.second = (
            BatchAutoPolicy(3, limit=limit, lookup_tokens=4) for _ in range(2)
        )
        self.builders = [DraftTreeBuilder() for _ in range(3)]
        self.draw = torch.Generator().manual_seed(0)

    def plan(self) -> None:
        for policy in (self.first, self.second):
            policy.plan([State(slot, made_up_state(40, self.lookup)) for slot in range(3)])

    def look(self, slot: int, depth: int) -> None:
        logits, builder = 3 * torch.randn(3, 20, generator=self.draw), self.builders[slot]
        if depth == 0:
            builder.begin(1, 3)
            builder.first(logits[0])
        else:
            builder.expand(logits)
        self.first.look(slot, builder, depth, 40, self.lookup)
        scores, nodes = builder.progress(self.lookup.token_ids, depth + 1)
        self.second._native.score(slot, scores, depth, 40, 3, 3, nodes)

    def check_tree(self, slot: int) -> None:
        tree, params = self.first.finish(slot, self.builders[slot], self.lookup)
        nodes, looked_up = self.second._native.selection(slot)
        assert params.total_tokens == 1 + len(nodes)
        expected = self.builders[slot].finish_selected(nodes, self.lookup.token_ids[:looked_up])
        assert tree.token_ids.tolist() == expected.token_ids.tolist()


def test_what_looks_at_builders_decides_as_with_arrays() -> None:
    twins = Twins()
    for _ in range(4):
        twins.plan()
        going = [0, 1, 2]
        for depth in range(3):
            for slot in going:
                twins.look(slot, depth)
            going = twins.first.continuing()
            assert going == twins.second.continuing()
        for policy in (twins.first, twins.second):
            policy.select()
        for slot in range(3):
            twins.check_tree(slot)
        for policy in (twins.first, twins.second):
            for slot in range(3):
                policy._native.observe(slot, [], [5, 1], twins.lookup.token_ids)
            policy._native.end_cycle(12, 0.01, 0.001)


def test_a_slot_at_its_end_drafts_nothing() -> None:
    policy = BatchAutoPolicy(2)
    texts = texts_of(HEADS["own head"], 2, 0, 50)
    Batch(policy, clock_of("flat", 0), 2).decode(texts)

    class AtItsEnd(State):
        def cut(self, plan):
            return plan.limited_to(self.most_tokens - 1)

    state = made_up_state(2000, Lookup(9, (1, 2, 3, 4)))
    plans = policy.plan([AtItsEnd(0, state, 1), AtItsEnd(1, state, 3)])
    assert plans[0].params == NO_DRAFT
    assert plans[0].lookup_tokens == 0
    assert plans[1].params.depth <= 1
    assert plans[1].lookup_tokens <= 2
    assert policy.plan([]) == []


def test_forks_learn_together_with_slots_of_their_own() -> None:
    policy = BatchAutoPolicy(8)
    clock = clock_of("flat", 0)
    Batch(policy, clock, 8).decode(texts_of(HEADS["own head"], 8, 0, 300))
    fork = policy.fork(4)
    assert (fork.slots, policy.slots) == (4, 8)
    assert fork.cost is policy.cost
    texts = texts_of(HEADS["own head"], 4, 1, 60)
    found = Batch(fork, clock, 4).decode(texts)
    # It begins with what was learned; one without knowledge tries first.
    fresh = Batch(BatchAutoPolicy(4), clock_of("flat", 0), 4).decode(texts)
    assert found.rate() > 1.05 * fresh.rate()
    for slots in (0, 9):
        with pytest.raises(ValueError, match=rf"slots must be in 1..8, got {slots}"):
            policy.fork(slots)


def test_decisions_are_the_same_in_every_run() -> None:
    texts = texts_of(HEADS["lookups"], 4, 0, 100)
    first, second = (decoded("step", texts, 0) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": NO_DRAFT}, "limit must draft at least one node"),
        ({"slots": 0}, "slots must be in 1..64, got 0"),
        ({"slots": 65}, "slots must be in 1..64, got 65"),
        ({"cost": OnlineCost((4,))}, "top_k must be one of \\[4\\], got 8"),
        ({"cost": batch_cost(8, max_rows=32)}, "max_rows must be in 1..32, got 64"),
        ({"lookup_tokens": -1}, "lookup_tokens must be in 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchAutoPolicy(**({"slots": 8} | arguments))


def test_a_slot_that_is_not_part_of_the_cycle_is_refused() -> None:
    policy = BatchAutoPolicy(2)
    policy._native.plan([(0, 10, 0, 0, 0, 100)])
    scores = np.zeros(WIDTH, dtype=np.float32)
    with pytest.raises(ValueError, match="slot 1 is not part of this cycle"):
        policy._native.score(1, scores, 0, 10, 0, 0, None)
    policy._native.score(0, scores, 0, 10, 0, 0, None)
    with pytest.raises(ValueError, match="select\\(\\) must be called first"):
        policy._native.selection(0)
    with pytest.raises(ValueError, match="slot 0 occurs twice"):
        policy._native.plan([(0, 10, 0, 0, 0, 100)] * 2)
