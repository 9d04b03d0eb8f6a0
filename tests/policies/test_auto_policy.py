"""`AutoPolicy` on made-up texts whose truth is known, and in live decoding."""

import numpy as np
import pytest

from eaglerl.cost import CostTable, OnlineCost
from eaglerl.eagle3.policy import NO_DRAFT, SelectingPolicy, TreeParams
from eaglerl.policies import AutoPolicy

from ..simulated_clock import FLAT, STEEP, STEP, WIDTH, Clock, repriced
from ..traces.test_record import tiny_decoder, tiny_prompts
from .made_up_texts import Decoded, Text, constant_rates, decode

TREES = [NO_DRAFT] + [
    TreeParams(rows, depth, WIDTH)
    for depth in range(6)
    for rows in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
    if depth + 1 < rows <= 1 + WIDTH + depth * WIDTH**2
]
OWN_HEAD: dict = {}
RANDOM_HEAD = {"trust": 0.0, "sharpness": 5.0}
SURE_AND_WRONG = {"trust": 0.0, "sharpness": 0.1}
#: The target's probabilities are the draft's to the power of 1 / 1.5.
FLATTER_TARGET = {"temperature": 1.5}
LYING_LOOKUP = {"match": 0.8, "lookup_right": 0.05}
GOOD_LOOKUP = {"match": 0.7, "lookup_right": 0.9}
CYCLES, LEARNED = 1500, 500


def gains(
    text: dict, table: CostTable, seed: int, believed: float | None = None
) -> tuple[float, Decoded]:
    """Return the rate after 500 cycles, beside the best of plain and constant trees.

    The policy begins with a table in which more than one row cost `believed` times too much.
    """
    cycles = Text(seed=seed, **text).cycles(CYCLES)
    clock, policy = Clock(table, seed=seed), AutoPolicy()
    if believed is not None:
        policy.cost.fill(repriced(table, lambda rows: 1.0 if rows == 1 else believed))
    decoded = decode(policy, cycles, clock)
    return decoded.rate(LEARNED) / max(constant_rates(TREES, cycles[LEARNED:], clock)), decoded


def check_guard(text: dict, table: CostTable, believed: float | None, seeds: range) -> None:
    """Check that no seed loses more than 1 %."""
    found = {seed: gains(text, table, seed, believed)[0] for seed in seeds}
    assert min(found.values()) > 0.99, {seed: gain for seed, gain in found.items() if gain < 0.99}


GUARDED = [
    pytest.param(text, table, believed, id=f"{name}-{table.machine}")
    for name, text, believed, tables in (
        ("own head", OWN_HEAD, None, (STEEP, STEP, FLAT)),
        ("random head", RANDOM_HEAD, None, (STEEP, STEP, FLAT)),
        ("sure and wrong", SURE_AND_WRONG, None, (STEEP, STEP, FLAT)),
        ("lying lookup", LYING_LOOKUP, None, (STEEP, STEP, FLAT)),
        ("lying lookup, random head", LYING_LOOKUP | RANDOM_HEAD, None, (STEEP, STEP, FLAT)),
        ("temperature 1.5", FLATTER_TARGET, None, (STEEP,)),
        ("rows believed twice as dear", OWN_HEAD, 2.0, (STEEP, STEP, FLAT)),
        ("rows believed half as dear", OWN_HEAD, 0.5, (STEEP, STEP, FLAT)),
        ("random head, rows believed half as dear", RANDOM_HEAD, 0.5, (STEEP, STEP, FLAT)),
    )
    for table in tables
]


@pytest.mark.parametrize(("text", "table", "believed"), GUARDED)
def test_after_500_cycles_it_loses_to_no_constant_tree(
    text: dict, table: CostTable, believed: float | None
) -> None:
    check_guard(text, table, believed, range(1))


@pytest.mark.slow
@pytest.mark.xfail(
    reason="of 30 seeds each, one lost 3.1 % (lookups that lie, step), one 2.7 % (temperature 1.5, "
    "flat), and five 1.1 % (sure and wrong, steep)",
    strict=False,
)
@pytest.mark.parametrize(("text", "table", "believed"), GUARDED)
def test_nor_with_any_of_200_seeds(text: dict, table: CostTable, believed: float | None) -> None:
    check_guard(text, table, believed, range(200))


@pytest.mark.parametrize("table", [STEEP, STEP, FLAT], ids=lambda table: table.machine)
@pytest.mark.parametrize("trust", [0.25, 0.5])
def test_a_head_that_believes_too_much_is_still_worth_its_drafts(
    trust: float, table: CostTable
) -> None:
    # Without the level as an input, and with drafts that were never tried again, it lost 3 to 17 %.
    found = [gains({"trust": trust}, table, seed)[0] for seed in range(6)]
    assert min(found) > 0.97
    assert np.mean(found) > 0.98


@pytest.mark.parametrize("table", [STEEP, STEP, FLAT], ids=lambda table: table.machine)
def test_lookups_that_are_right_are_verified_without_a_draft(table: CostTable) -> None:
    gain, decoded = gains(GOOD_LOOKUP, table, 0)
    assert gain > 1.4
    assert decoded.drafted[LEARNED:].mean() < 0.5


def test_a_head_that_is_right_is_drafted_with_in_every_cycle() -> None:
    _, decoded = gains(OWN_HEAD, FLAT, 0)
    assert decoded.drafted.mean() > 0.99


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
