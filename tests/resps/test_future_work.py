"""What Re-SpS leaves to future work: similarity, compression, several windows at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eaglerl.envs.action_repeat import resembles
from eaglerl.envs.observations import ObservationSpec
from eaglerl.envs.trace_windows import TraceWindows
from eaglerl.resps.policies import (
    OptimizedOnlineTreePolicy,
    OptimizedSB3DiscretePPOOnlineTreePolicy,
    PolicySettings,
    load_resps_policy,
)
from eaglerl.sb3.greedy_outcome import greedy_outcome, greedy_outcomes
from eaglerl.sb3.train_policy import TrainPolicyOptions, train_policy
from eaglerl.traces.recording import RecordOptions, record
from eaglerl.traces.simulation import simulate, total
from eaglerl.traces.trace_set import TraceSet

from ..envs.test_live_env import clear_threshold
from ..traces.planted import ACTIONS, COST, WIDTH, planted_traces
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.test_oracle import COST as TREE_COST
from ..traces.tiny import tiny_decoder, tiny_prompts
from .small_policies import same_weights

PPO, DQN = OptimizedSB3DiscretePPOOnlineTreePolicy, OptimizedOnlineTreePolicy
SMALL = {PPO: {"n_steps": 8, "batch_size": 4, "n_epochs": 2}, DQN: {"net_arch": (16, 8)}}
KEPT = {
    "similar": {"action_cache_steps": 6, "similarity_threshold": None},
    "ahead": {"action_cache_steps": 2, "horizon": 3},
}


def make_policy(policy_class: type = PPO, **options: object):
    """A policy that takes the best action, which differs from state to state."""
    settings = {"hidden_size": WIDTH, "actions": ACTIONS, "max_entropy_inference": False}
    policy = policy_class(**{**settings, **SMALL[policy_class], **options})
    with torch.no_grad():
        for parameter in policy.learner.model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return policy


class Watched:
    """A policy, and the trees that it chose."""

    def __init__(self, policy) -> None:
        self.policy, self.trees = policy, []
        self.reset, self.observe = policy.reset, policy.observe

    def choose(self, state):
        """As the policy does."""
        self.trees.append(self.policy.choose(state))
        return self.trees[-1]


def test_what_resembles_what() -> None:
    rows = np.array([[1.0, 0], [3, 3], [0, 2], [0, 0], [np.inf, 0], [np.nan, 1]])
    similar = resembles(rows, rows[:3], np.sqrt(0.5) - 1e-9)
    assert similar.astype(int).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]] + [[0, 0, 0]] * 3
    assert not resembles(rows, rows[3:], -1.0).any()


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_traces_the_host_and_the_decoding_loop_decide_the_same(kept: dict, tmp_path: Path) -> None:
    decoder = tiny_decoder()
    prompts = tiny_prompts(3)
    options = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=40, slots=2)
    record(decoder, prompts, tmp_path, options=options)
    traces = {tuple(trace.prompt_ids.tolist()): trace for trace in TraceSet(tmp_path)}
    if "similarity_threshold" in kept:
        kept = {**kept, "similarity_threshold": clear_threshold(traces.values())}
    policy = make_policy(
        hidden_size=decoder.draft_head.config.hidden_size,
        actions=TREES,
        head=decoder.draft_head,
        **kept,
    )
    served, seen = [], set()
    for prompt in prompts:
        host = Watched(policy)
        output = decoder.generate(prompt.token_ids, host, max_new_tokens=40)
        before = policy.get_performance_stats()
        fused = decoder.generate(prompt.token_ids, policy.fused(), max_new_tokens=40)
        assert torch.equal(output.sequences, fused.sequences)
        pair = [[c.params for c in o.per_sequence[0].cycles] for o in (output, fused)]
        assert pair[0] == pair[1]
        replayed = Watched(policy)
        simulate(replayed, [traces[tuple(prompt.token_ids)]], TREE_COST)
        assert replayed.trees == host.trees
        after = policy.get_performance_stats()
        served.append(len(replayed.trees) / (after["decisions"] - before["decisions"]))
        seen |= set(host.trees)
    assert len(seen) > 1
    # Similarity ends windows of 6 early; several windows at once last for more cycles than one.
    low, high = (1.0, 5.5) if "similarity_threshold" in kept else (2.0, 6.0)
    assert low < np.mean(served) < high


@pytest.mark.parametrize("policy_class", [PPO, DQN])
@pytest.mark.parametrize("size", [3, 8])
def test_compression_folds_away(policy_class: type, size: int, tmp_path: Path) -> None:
    spec = ObservationSpec("features", WIDTH, ("position", "acceptance"))
    policy = make_policy(policy_class, observation=spec, compressed_size=size)
    model, weights = policy.learner.model, policy.weights
    assert weights.hidden_weights[0].shape[1] == spec.size
    rows = np.random.default_rng(0).standard_normal((300, spec.size)).astype(np.float32)
    expected, _ = model.predict(rows, deterministic=True)
    chosen = [policy._infer(row)[0] for row in rows]
    assert chosen == expected.tolist()
    assert len(set(chosen)) > 2
    # In float64, the folded layer differs from the two by the rounding of its own float32.
    if policy_class is PPO:
        extractor, first = model.policy.pi_features_extractor, model.policy.mlp_extractor.policy_net
    else:
        extractor, first = model.q_net.features_extractor, model.q_net.q_net
    with torch.no_grad():
        x = torch.from_numpy(rows).double()
        folded = x @ weights.hidden_weights[0].double().T + weights.hidden_biases[0].double()
        apart = first[0].double()(extractor.double()(x))
        magnitude = x.abs() @ weights.hidden_weights[0].double().abs().T
    bound = 2.0**-24 * (magnitude + weights.hidden_biases[0].double().abs())
    assert bool(((folded - apart).abs() <= bound).all())
    # A loaded policy continues to learn from where it was.
    policy.save(tmp_path)
    again = load_resps_policy(tmp_path)
    assert again.settings.compressed_size == size
    assert same_weights(again.weights, weights)
    expected, _ = again.learner.model.predict(rows, deterministic=True)
    assert np.mean(expected == chosen) > 0.99
    # Weights of a higher rank do not belong to such a policy.
    again.use_weights(make_policy(policy_class, observation=spec).weights)
    again._learner = None
    with pytest.raises(ValueError, match=f"compressed to {size}"):
        _ = again.learner


def test_actions_ahead_are_those_of_stable_baselines3() -> None:
    policy = make_policy(horizon=4)
    assert policy.weights.horizon == 4
    rows = torch.randn(200, WIDTH)
    expected, _ = policy.learner.model.predict(rows.numpy(), deterministic=True)
    assert [policy._infer(row.numpy()) for row in rows] == [tuple(row) for row in expected.tolist()]
    trees = [policy.predict_parameters(hidden_states=rows[0]) for _ in range(40)]
    assert trees == [tuple(ACTIONS.tensor[a].tolist()) for a in expected[0] for _ in range(10)]
    assert policy.get_performance_stats()["decisions"] == 1
    with pytest.raises(ValueError, match="horizon must be 1, got 2: DQN values single actions"):
        make_policy(DQN, horizon=2)


@pytest.mark.parametrize("changes", [
    {"similarity_threshold": 0.5, "cache_steps": 12},
    {"horizon": 2},
    {"compressed_size": 4, "extras": ("confidence", "acceptance")},
])  # fmt: skip
def test_training_on_traces(changes: dict, tmp_path: Path) -> None:
    traces, unseen = planted_traces(6), planted_traces(4, seed=2)
    small = {"n_steps": 8, "batch_size": 16, "n_epochs": 2}
    settings = {"cache_steps": 3, "n_envs": 8, "checkpoint_steps": 128, "net_arch": (16,)}
    options = TrainPolicyOptions("ppo", 384, model=small, **{**settings, **changes})
    trained = train_policy(traces, ACTIONS, COST, tmp_path, options)
    # The checkpoint holds the policy's whole state.
    again = train_policy(traces, ACTIONS, COST, tmp_path, options)
    assert same_weights(trained.policy.weights, again.policy.weights)
    policy = load_resps_policy(trained.path)
    assert policy.settings == trained.policy.settings
    # The vectorised walk agrees with decoding cycle by cycle.
    outcome = total(simulate(policy, unseen, COST))
    windows = TraceWindows(
        unseen, ACTIONS, COST, cache_steps=options.cache_steps, extras=options.extras,
        similarity_threshold=options.similarity_threshold,
    )  # fmt: skip
    tokens, seconds = greedy_outcome(policy.weights, windows)
    assert (tokens, seconds) == (outcome.tokens, pytest.approx(outcome.seconds, rel=1e-6))
    outcomes = greedy_outcomes(policy.weights, windows)
    assert outcomes.cycles.sum() == outcome.cycles
    assert outcomes.decisions.sum() == policy.get_performance_stats()["decisions"]


def test_online_several_windows_are_one_transition() -> None:
    policy = make_policy(horizon=2, action_cache_steps=2)
    policy.training_mode = True

    simulate(policy, planted_traces(4), COST)
    policy.end_sequence()
    stats = policy.get_performance_stats()
    assert stats["updates"] > 0
    assert stats["windows"] == stats["decisions"]
    assert sum(stats["actions"].values()) == 2 * stats["decisions"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity_threshold": 1.5}, r"similarity_threshold must lie in -1..1 .*got 1.5"),
        ({"similarity_threshold": 0.5, "horizon": 2}, "horizon must be 1 where"),
        ({"horizon": 0}, "horizon must be an int of at least 1, got 0"),
        ({"compressed_size": 12, "hidden_size": 12}, r"compressed_size must be .*1..11.*got 12"),
        ({"horizon": 2, "action_cache_enabled": False}, "action_cache_enabled must be True"),
        ({"reference": True, "compressed_size": 4}, "reference must be False with"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicySettings(**options)
