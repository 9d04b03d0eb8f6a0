"""The fallback: a bad policy gives way to the constant tree, a good one hardly notices."""

from dataclasses import replace

import numpy as np
import pytest

from eaglerl.actions import ActionSpace
from eaglerl.eagle3.policy import (
    ConstantPolicy,
    CycleState,
    DraftPlan,
    DraftProgress,
    SelectingPolicy,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.fitting.fit_acceptance import AcceptanceOptions
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.baselines import best_constant
from eaglerl.policies.fallback import FallbackPolicy
from eaglerl.traces.simulation import simulate, total

from ..fitting.fitted import fit_acceptance
from .test_acceptance import COSTLY, D, K, planted_trace

GRID = ActionSpace.grid(range(2, 9), (0, 1, 2), (K,)).with_no_draft()


class Always:
    """Drafts to one depth and verifies so many rows, whatever the candidates are."""

    def __init__(self, rows: int, depth: int) -> None:
        self.plan = DraftPlan(TreeParams(rows, depth, K))
        self.observed = 0

    def reset(self) -> None:
        pass

    def choose(self, state: CycleState) -> DraftPlan:
        return self.plan

    def observe(self, result: StepResult) -> None:
        self.observed += 1

    def should_continue(self, progress: DraftProgress) -> bool:
        return True

    def select(self, progress: DraftProgress) -> Selection:
        best = np.argsort(-progress.scores, kind="stable")
        return Selection(best[: self.plan.params.total_tokens - 1])

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        return self.select(progress).choose_total_tokens(progress)


@pytest.fixture(scope="module")
def traces():
    return [planted_trace(seed) for seed in range(200, 230)]


def test_a_constant_cycle_is_that_of_the_constant_tree(traces) -> None:
    tree = TreeParams(4, 1, K)
    with_fallback = FallbackPolicy(Always(8, 2), tree, gain=-0.9)
    assert isinstance(with_fallback, SelectingPolicy)
    expected, found = (
        simulate(tree, traces[:1], COSTLY),
        simulate(with_fallback, traces[:1], COSTLY),
    )
    # Trials of the policy apart: the first is due after a dozen cycles.
    assert found[0].trees[(4, 1, K)] > 0.9 * sum(found[0].trees.values())
    assert expected[0].trees.keys() == {(4, 1, K)}
    assert with_fallback.policy.observed == found[0].cycles


@pytest.mark.parametrize("gain", [0.03, 0.2])
def test_a_bad_policy_is_put_aside(traces, gain: float) -> None:
    constant = best_constant(traces, GRID, COSTLY).params
    best = total(simulate(constant, traces, COSTLY)).tokens_per_second
    bad = total(simulate(Always(8, D), traces, COSTLY)).tokens_per_second
    assert bad < 0.75 * best
    with_fallback = FallbackPolicy(Always(8, D), constant, gain)
    outcomes = simulate(with_fallback, traces, COSTLY)
    cycles = np.cumsum([outcome.cycles for outcome in outcomes])
    # The learning time that the class states: 500 cycles, twice that where a gain of 20 % was
    # promised.
    begin = int(np.searchsorted(cycles, 500 if gain < 0.1 else 1000)) + 1
    assert len(outcomes) - begin > 5
    later = total(outcomes[begin:]).tokens_per_second
    reference = total(simulate(constant, traces[begin:], COSTLY)).tokens_per_second
    assert later >= 0.99 * reference
    assert with_fallback.advantage < 0


def test_a_model_with_wrong_predictions_is_put_aside(traces) -> None:
    options = AcceptanceOptions(top_k=K, max_depth=D, max_rows=8, lookup_tokens=0, steps=200)
    model = fit_acceptance([planted_trace(seed) for seed in range(10)], COSTLY, options)
    constant = best_constant(traces, GRID, COSTLY).params
    reference = simulate(constant, traces, COSTLY)

    def later(policy) -> tuple[float, float]:
        outcomes = simulate(policy, traces, COSTLY)
        begin = int(np.searchsorted(np.cumsum([o.cycles for o in outcomes]), 500)) + 1
        return (
            total(outcomes).tokens_per_second / total(reference).tokens_per_second,
            total(outcomes[begin:]).tokens_per_second / total(reference[begin:]).tokens_per_second,
        )

    # Every probability turned into its complement: what is hopeless is verified.
    last = len(model.pool_net.weights) - 1
    net = replace(
        model.pool_net,
        weights=(*model.pool_net.weights[:last], -model.pool_net.weights[last]),
        biases=(*model.pool_net.biases[:last], -model.pool_net.biases[last]),
    )
    wrong = replace(model, pool_net=net)
    assert later(AcceptancePolicy(wrong, COSTLY))[0] < 0.8
    assert later(FallbackPolicy(AcceptancePolicy(wrong, COSTLY), constant, 0.03))[1] >= 0.99
    # The good one keeps nearly all of its gain.
    free, with_fallback = (
        later(policy)[0]
        for policy in (
            AcceptancePolicy(model, COSTLY),
            FallbackPolicy(AcceptancePolicy(model, COSTLY), constant, 0.05),
        )
    )
    assert free > 1.05
    assert with_fallback > 1 + 0.8 * (free - 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="policy must be a SelectingPolicy, got ConstantPolicy"):
        FallbackPolicy(ConstantPolicy(TreeParams(1)), TreeParams(1))
    with pytest.raises(TypeError, match="constant must be TreeParams"):
        FallbackPolicy(Always(4, 1), None)
    with pytest.raises(ValueError, match="gain must be finite and above -1, got -1"):
        FallbackPolicy(Always(4, 1), TreeParams(1), -1)
