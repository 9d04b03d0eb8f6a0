"""`AutoPolicy` on made-up texts whose truth is known, and in live decoding."""

import numpy as np
import pytest

from eaglerl.cost import CostTable, OnlineCost
from eaglerl.eagle3.policy import NO_DRAFT, SelectingPolicy, TreeParams
from eaglerl.policies import AutoPolicy

from ..simulated_clock import FLAT, ONE_THREAD, STEEP, STEP, WIDTH, Clock
from ..traces.test_record import tiny_decoder, tiny_prompts
from .made_up_texts import Decoded, Informed, Text, constant_rates, decode

TREES = [NO_DRAFT] + [
    TreeParams(rows, depth, WIDTH)
    for depth in range(6)
    for rows in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
    if depth + 1 < rows <= 1 + WIDTH + depth * WIDTH**2
]
OWN_HEAD: dict = {}
RANDOM_HEAD = {"trust": 0.0, "sharpness": 5.0}
SURE_AND_WRONG = {"trust": 0.0, "sharpness": 0.1}
LYING_LOOKUP = {"match": 0.8, "lookup_right": 0.05}
GOOD_LOOKUP = {"match": 0.7, "lookup_right": 0.9}
CYCLES, LEARNED = 1500, 500


def gains(text: dict, table: CostTable, seed: int) -> tuple[float, Decoded]:
    """Return the rate after 500 cycles, beside the best of plain and constant trees."""
    cycles = Text(seed=seed, **text).cycles(CYCLES)
    clock = Clock(table, seed=seed)
    decoded = decode(AutoPolicy(), cycles, clock)
    return decoded.rate(LEARNED) / max(constant_rates(TREES, cycles[LEARNED:], clock)), decoded


def check_guard(text: dict, table: CostTable, seeds: range) -> None:
    """Check that no seed loses more than 1 %."""
    found = {seed: gains(text, table, seed)[0] for seed in seeds}
    assert min(found.values()) > 0.99, {seed: gain for seed, gain in found.items() if gain < 0.99}


GUARDED = [
    pytest.param(text, table, id=f"{name}-{table.machine}")
    for name, text in (
        ("own head", OWN_HEAD),
        ("random head", RANDOM_HEAD),
        ("sure and wrong", SURE_AND_WRONG),
        ("lying lookup", LYING_LOOKUP),
        ("lying lookup, random head", LYING_LOOKUP | RANDOM_HEAD),
    )
    for table in (STEEP, STEP, FLAT)
]


@pytest.mark.parametrize(("text", "table"), GUARDED)
def test_after_500_cycles_it_loses_to_no_constant_tree(text: dict, table: CostTable) -> None:
    check_guard(text, table, range(2))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "table"), GUARDED)
def test_nor_with_any_of_200_seeds(text: dict, table: CostTable) -> None:
    check_guard(text, table, range(200))


@pytest.mark.parametrize("table", [STEEP, STEP, FLAT], ids=lambda table: table.machine)
def test_lookups_that_are_right_are_verified_without_a_draft(table: CostTable) -> None:
    gain, decoded = gains(GOOD_LOOKUP, table, 0)
    assert gain > 1.4
    assert decoded.drafted[LEARNED:].mean() < 0.5


def test_a_head_that_is_right_is_drafted_with_in_every_cycle() -> None:
    _, decoded = gains(OWN_HEAD, FLAT, 0)
    assert decoded.drafted.mean() > 0.99


@pytest.mark.parametrize(
    ("first", "least"), [(STEEP, 0.99), (FLAT, 0.95)], ids=("two threads", "flat")
)
def test_a_machine_that_changes_is_followed_within_200_cycles(
    first: CostTable, least: float
) -> None:
    cycles, policy = Text(seed=3).cycles(2200), AutoPolicy()
    decode(policy, cycles[:1000], Clock(first, seed=3))
    decode(policy, cycles[1000:1200], Clock(ONE_THREAD, seed=4))
    after = decode(policy, cycles[1200:], Clock(ONE_THREAD, seed=5))
    clock = Clock(ONE_THREAD)
    known = Informed(clock)
    decode(known, cycles[:1200], clock)
    # The same 1,000 cycles with costs that were right from the start.
    assert after.rate() / decode(known, cycles[1200:], clock).rate() > least


def test_the_text_stays_whatever_is_drafted() -> None:
    decoder = tiny_decoder()
    policy = AutoPolicy(limit=TreeParams(8, 2, 2), lookup_tokens=4)
    assert isinstance(policy, SelectingPolicy)
    for prompt in tiny_prompts(4, seed=3):
        ids = list(prompt.token_ids)
        arguments = {"max_new_tokens": 80, "eos_token_id": []}
        plain = decoder.generate(ids, NO_DRAFT, **arguments).sequences
        assert decoder.generate(ids, policy, **arguments).sequences.tolist() == plain.tolist()
    assert policy.cost.cycles > 50


def test_sequences_learn_together() -> None:
    policy = AutoPolicy()
    other = policy.fork()
    decode(other, Text().cycles(50), Clock(STEEP))
    assert policy.cost is other.cost
    assert policy.cost.cycles == 50
    assert policy.rate == pytest.approx(other.rate)
    # The rate is that of this clock: 50 cycles of some 15 ms.
    assert 40 < policy.rate < 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": NO_DRAFT}, "limit must draft at least one node"),
        ({"cost": OnlineCost((2,))}, "top_k must be one of \\[2\\], got 4"),
        ({"cost": OnlineCost((4,), max_rows=8)}, "max_rows must be in 1..8, got 32"),
        ({"lookup_tokens": -1}, "lookup_tokens must be 0 or positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoPolicy(**arguments)


def test_decisions_are_the_same_in_every_run() -> None:
    rates = [decode(AutoPolicy(), Text().cycles(200), Clock(STEP)) for _ in range(2)]
    np.testing.assert_array_equal(rates[0].tokens, rates[1].tokens)
    np.testing.assert_array_equal(rates[0].seconds, rates[1].seconds)
