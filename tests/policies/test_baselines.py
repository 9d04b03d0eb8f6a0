"""The baselines: what each is made to find, and that all of them decode live."""

import math

import numpy as np
import pytest
import torch

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    ConstantPolicy,
    CycleState,
    TreeParams,
    TreePolicy,
    as_policy,
)
from eaglerl.eagle3.session import StepResult
from eaglerl.policies.baselines import (
    DraftConfidencePolicy,
    Exp3Policy,
    RandomPolicy,
    ShuffledStates,
    TierPolicy,
    UCB1Policy,
    best_constant,
)
from eaglerl.traces.oracle import bounds
from eaglerl.traces.simulation import DraftProgress, StagedPolicy, simulate, total

from ..traces.test_oracle import ACTIONS, COST
from ..traces.tiny import made_up_trace, tiny_decoder

STATE = CycleState(torch.zeros(6), 10, None)
LIMIT = TreeParams(9, 2, 2)


def result(tree: TreeParams, tokens: int, seconds: float) -> StepResult:
    return StepResult(
        token_ids=(0,) * tokens,
        params=tree,
        accepted=tokens - 1,
        draft_seconds=0.0,
        verify_seconds=seconds,
        features=torch.zeros(6),
        context_length=10,
    )


def policies() -> dict[str, TreePolicy]:
    tiers = [TreeParams(2, 0, 1), TreeParams(3, 1, 1), TreeParams(6, 2, 2)]
    return {
        "random": RandomPolicy(ACTIONS),
        "ucb1": UCB1Policy(ACTIONS),
        "exp3": Exp3Policy(ACTIONS),
        "tiers": TierPolicy(tiers),
        "confidence": DraftConfidencePolicy(COST, limit=LIMIT),
        "shuffled": ShuffledStates(RandomPolicy(ACTIONS)),
    }


@pytest.mark.parametrize("name", policies())
def test_all_are_policies_that_decode_live(name: str) -> None:
    policy = policies()[name]
    assert as_policy(policy) is policy
    decoder = tiny_decoder()
    arguments = {"max_new_tokens": 30, "eos_token_id": []}
    plain = decoder.generate([1, 2, 3], NO_DRAFT, **arguments).sequences
    for _ in range(2):
        assert torch.equal(decoder.generate([1, 2, 3], policy, **arguments).sequences, plain)


@pytest.mark.parametrize("name", policies())
def test_all_run_on_traces(name: str) -> None:
    traces = [made_up_trace(30, seed=seed) for seed in range(3)]
    outcomes = simulate(policies()[name], traces, COST)
    assert [outcome.tokens for outcome in outcomes] == [30, 30, 30]
    # Whatever the policy, no sequence of trees of the whole grid is faster than the oracle.
    grid = ActionSpace.grid(range(2, 12), (0, 1, 2), (1, 2)).with_no_draft()
    assert total(outcomes).seconds >= bounds(traces, grid, COST).oracle * (1 - 1e-9)


def test_best_constant_is_the_best_when_simulated() -> None:
    traces = [made_up_trace(40, seed=seed) for seed in range(4)]
    policy = best_constant(traces, ACTIONS, COST)
    assert isinstance(policy, ConstantPolicy)
    seconds = {tree: total(simulate(tree, traces, COST)).seconds for tree in ACTIONS}
    assert seconds[policy.params] == pytest.approx(min(seconds.values()))
    assert bounds(traces, ACTIONS, COST).constant == pytest.approx(min(seconds.values()))


def run_bandit(policy: TreePolicy, cycles: int) -> list[TreeParams]:
    """Arms of 1, 2, ... tokens in a second each; the last but one is the best."""
    tokens = [1, 2, 3, 6, 4]
    chosen = []
    for _ in range(cycles):
        tree = policy.choose(STATE)
        chosen.append(tree)
        policy.observe(result(tree, tokens[ACTIONS.index(tree)], 1.0))
    return chosen


def test_bandits_find_the_best_arm() -> None:
    for policy in (UCB1Policy(ACTIONS), Exp3Policy(ACTIONS)):
        chosen = run_bandit(policy, 1500)
        assert set(chosen[:60]) == set(ACTIONS)
        assert chosen[-300:].count(ACTIONS[3]) > 200


def test_ucb1_chooses_by_its_index() -> None:
    policy = UCB1Policy(ACTIONS, exploration=0.5, window=20)
    history: list[tuple[int, int]] = []
    tokens = [1, 2, 3, 6, 4]
    for cycle in range(60):
        arm = ACTIONS.index(policy.choose(STATE))
        if cycle >= len(ACTIONS):
            recent = history[-20:]
            counts = [sum(a == i for a, _ in recent) for i in range(5)]
            if min(counts) == 0:
                assert arm == counts.index(0)
            else:
                rates = [sum(t for a, t in recent if a == i) / counts[i] for i in range(5)]
                index = [
                    rate / max(rates) + 0.5 * math.sqrt(2 * math.log(len(recent)) / count)
                    for rate, count in zip(rates, counts, strict=True)
                ]
                assert index[arm] == pytest.approx(max(index))
        history.append((arm, tokens[arm]))
        policy.observe(result(ACTIONS[arm], tokens[arm], 1.0))


def test_exp3_weights_by_hand() -> None:
    policy = Exp3Policy(ACTIONS, gamma=0.2)
    np.testing.assert_allclose(policy.probabilities, np.full(5, 0.2))
    tree = policy.choose(STATE)
    policy.observe(result(tree, 4, 2.0))
    arm = ACTIONS.index(tree)
    # The first reward is the largest seen: 1, over its probability 0.2.
    weights = np.ones(5)
    weights[arm] = math.exp(0.2 * (1 / 0.2) / 5)
    np.testing.assert_allclose(policy.probabilities, 0.8 * weights / weights.sum() + 0.04)


def test_tiers_follow_the_acceptance() -> None:
    tiers = [TreeParams(2, 0, 1), TreeParams(4, 2, 1), TreeParams(7, 5, 1)]
    policy = TierPolicy(tiers)
    assert policy.choose(STATE) == tiers[1]
    for _ in range(10):
        policy.observe(result(tiers[1], 4, 1.0))
    assert policy.choose(STATE) == tiers[1], "the warm-up is not over"
    for _ in range(5):
        policy.observe(result(tiers[1], 4, 1.0))
    # Three accepted: four levels are wanted, which only the deepest tier has.
    assert policy.choose(STATE) == tiers[2]
    for _ in range(40):
        policy.observe(result(tiers[2], 1, 1.0))
    assert policy.choose(STATE) == tiers[0]
    policy.reset()
    assert policy.choose(STATE) == tiers[1]


def test_confidence_verifies_while_a_row_pays() -> None:
    policy = DraftConfidencePolicy(COST, limit=LIMIT)
    policy.observe(result(NO_DRAFT, 99, 100.0))
    assert isinstance(policy, StagedPolicy)
    # A rate of one token a second; the second to fourth row cost 1/30 s each, later ones 1/15 s.
    for nodes, expected in (
        ([0.9, 0.01], 2),
        ([0.02, 0.01], 1),
        ([0.9, 0.05, 0.05, 0.02, 0.02, 0.02], 4),
        ([0.9, 0.5, 0.3, 0.2, 0.1, 0.05], 6),
    ):
        progress = DraftProgress(2, 1, np.log(np.array(nodes)), 0)
        assert policy.choose_total_tokens(progress) == expected


def test_confidence_drafts_while_a_round_pays() -> None:
    policy = DraftConfidencePolicy(COST, limit=LIMIT)
    policy.observe(result(NO_DRAFT, 99, 100.0))
    # A round costs 0.09 tokens. The share that survived the last level is taken to survive again.
    assert policy.should_continue(DraftProgress(2, 0, np.log(np.array([0.3, 0.1])), 0))
    assert not policy.should_continue(DraftProgress(2, 0, np.log(np.array([0.2, 0.05])), 0))
    after = np.log(np.array([0.3, 0.1, 0.1, 0.05, 0.01, 0.01]))
    assert not policy.should_continue(DraftProgress(2, 1, after, 0))


def test_confidence_uses_the_largest_expected_gain() -> None:
    policy = DraftConfidencePolicy(COST, limit=LIMIT)
    scores = -np.sort(np.random.default_rng(0).random(10) * 4)
    progress = DraftProgress(2, 2, scores, 50)
    best, chosen = -np.inf, 0
    rate = 1 / COST.verify_seconds(1, 0)
    for rows in range(1, 10):
        value = 1 + np.exp(np.sort(scores)[::-1][: rows - 1]).sum()
        value -= rate * COST.verify_seconds(rows, 50)
        if value > best:
            best, chosen = value, rows
    assert policy.choose_total_tokens(progress) == chosen


def test_shuffled_states_are_those_that_were_seen() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def reset(self) -> None:
            pass

        def choose(self, state: CycleState) -> TreeParams:
            self.seen.append(float(state.features[0]))
            return NO_DRAFT

        def observe(self, result: StepResult) -> None:
            pass

    recorder = Recorder()
    policy = ShuffledStates(recorder, memory=50)
    features = torch.zeros(1)
    for cycle in range(400):
        features[0] = cycle
        policy.choose(CycleState(features, 10, None))
    same = sum(seen == cycle for cycle, seen in enumerate(recorder.seen))
    assert all(seen <= cycle for cycle, seen in enumerate(recorder.seen))
    # One in 50 by chance once the memory is full, and the harmonic sum of the first 50.
    assert same < 40
    assert len(set(recorder.seen)) > 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UCB1Policy(ACTIONS, window=3), "at least the number of actions, 5, got 3"),
        (lambda: Exp3Policy(ACTIONS, gamma=0.0), "gamma must be in"),
        (lambda: TierPolicy([]), "ascending depth"),
        (lambda: TierPolicy([LIMIT, LIMIT]), "ascending depth"),
        (lambda: DraftConfidencePolicy(COST, limit=NO_DRAFT), "at least one node"),
        (lambda: DraftConfidencePolicy(COST, limit=LIMIT, temperature=0), "temperature"),
        (lambda: ShuffledStates(RandomPolicy(ACTIONS), memory=0), "memory"),
    ],
)
def test_wrong_arguments_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
