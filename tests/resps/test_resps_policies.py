"""The policies of Re-SpS: cache, transitions, rewards, faults corrected and restored."""

import numpy as np
import pytest

from eaglerl.eagle3.policy import TreeParams
from eaglerl.envs.observations import ObservationSpec
from eaglerl.resps.policies import PolicySettings
from eaglerl.resps.policies.reward_window import RewardWindow
from eaglerl.traces.simulation import simulate, total

from ..traces.planted import ACTIONS, COST, WIDTH, planted_traces
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.tiny import tiny_decoder, tiny_prompts
from .small_policies import BOTH, DQN, PPO, features, make_policy, policy_for


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The transitions that learners are given; they do not learn from them."""
    from eaglerl.resps.policies import sb3_learner

    transitions: list[tuple] = []

    def add(self, observation, action, reward, following, done):
        transitions.append((observation, action, reward, following, done))
        return False

    for kind in (sb3_learner.PPOLearner, sb3_learner.DQNLearner):
        monkeypatch.setattr(kind, "add", add)
    return transitions


@BOTH
def test_a_decision_serves_a_window(policy_class: type) -> None:
    policy = make_policy(policy_class)
    trees = [policy.predict_parameters(hidden_states=features(i)) for i in range(12)]
    for start in range(0, 12, 3):
        assert len(set(trees[start : start + 3])) == 1
    assert {TreeParams(*tree) for tree in trees} <= set(ACTIONS)
    stats = policy.get_performance_stats()
    assert (stats["decisions"], stats["cache_hits"]) == (4, 8)
    assert stats["hit_rate"] == pytest.approx(8 / 12)
    assert sum(stats["actions"].values()) == 4
    assert stats["feature_sources"] == {"features": 4}
    policy.reset()
    policy.predict_parameters(hidden_states=features())
    assert policy.get_performance_stats()["decisions"] == 5


@BOTH
@pytest.mark.parametrize("off", [{"action_cache_enabled": False}, {"action_cache_steps": 1}])
def test_the_cache_can_be_turned_off(policy_class: type, off: dict) -> None:
    policy = make_policy(policy_class, **off)
    for seed in range(5):
        policy.predict_parameters(hidden_states=features(seed))
    assert policy.get_performance_stats()["decisions"] == 5


@BOTH
@pytest.mark.parametrize("reference", [False, True])
def test_the_cache_can_be_turned_off_and_on_again(policy_class: type, reference: bool) -> None:
    policy = make_policy(policy_class, reference=reference)

    def fresh() -> int:
        before = policy.get_performance_stats()["cache_hits"]
        for seed in range(6):
            policy.predict_parameters(hidden_states=features(seed))
        return 6 - (policy.get_performance_stats()["cache_hits"] - before)

    policy.set_action_cache(enabled=False)
    assert fresh() == 6
    assert policy.settings.interval == 1
    policy.set_action_cache(enabled=True)
    assert fresh() == 2


@BOTH
def test_the_defaults_of_resps(policy_class: type) -> None:
    policy = policy_class()
    assert policy.settings.hidden_size == 4096
    assert len(policy.settings.actions) == 177
    assert policy.settings.interval == 10
    assert policy.predict_parameters() == (96, 8, 20)
    # Nothing of stable-baselines3 is made before it is needed.
    assert policy._learner is None


@BOTH
def test_one_transition_a_window_with_the_reward_of_its_sums(
    policy_class: type, recorded: list
) -> None:
    policy = make_policy(policy_class, reward="throughput")
    draw = np.random.default_rng(0)
    windows = []
    for index in range(8):
        state = features(index)
        policy.predict_parameters(hidden_states=state, training_mode=True)
        tokens, seconds = int(draw.integers(1, 5)), float(draw.uniform(0.1, 0.5))
        policy.update_policy(generation_time=seconds, new_tokens=tokens)
        if index % 3 == 0:
            windows.append([state[0, -1].numpy(), 0, 0.0])
        windows[-1][1] += tokens
        windows[-1][2] += seconds
    assert len(recorded) == 2
    policy.reset()
    assert len(recorded) == 3
    for index, (observation, (action,), reward, following, done) in enumerate(recorded):
        state, tokens, seconds = windows[index]
        np.testing.assert_array_equal(observation, state)
        assert reward == pytest.approx(tokens / seconds)
        assert 0 <= action < len(ACTIONS)
        assert done == (index == 2)
        if not done:
            np.testing.assert_array_equal(following, windows[index + 1][0])
    assert policy.get_performance_stats()["tokens_per_second"] == pytest.approx(
        sum(w[1] for w in windows) / sum(w[2] for w in windows)
    )


def test_lambda_is_the_ratio_of_the_sums_so_far() -> None:
    window = RewardWindow("tokens")
    window.add(seconds=2.0, tokens=6)
    # The rate starts at that of the first window, with a weight of 100 tokens.
    assert window.close() == pytest.approx(0)
    window.add(seconds=1.0, tokens=2)
    window.add(seconds=1.0, tokens=1)
    rate = (100 + 6) / (100 / 3 + 2)
    assert window.close() == pytest.approx(3 - rate * 2)
    assert window.close() is None
    with pytest.raises(ValueError, match="generation_time must be positive, got 0"):
        window.add(seconds=0.0, tokens=1)
    with pytest.raises(ValueError, match="new_tokens and generation_time, or a reward"):
        window.add(tokens=1)


@BOTH
def test_as_in_resps(policy_class: type, recorded: list) -> None:
    """Rewards without drafting, one cycle late, their mean, and every window an episode."""
    decoder = tiny_decoder()
    k = decoder.target.hidden_size
    policy = make_policy(policy_class, hidden_size=k, actions=TREES, reference=True)
    policy.training_mode = True
    chosen: list[TreeParams] = []
    choose = policy.choose
    policy.choose = lambda state: chosen.append(choose(state)) or chosen[-1]
    output = decoder.generate(tiny_prompts(1)[0].token_ids, policy, max_new_tokens=40)
    cycles = output.per_sequence[0].cycles
    rates = [len(cycle.token_ids) / cycle.verify_seconds for cycle in cycles]
    # The first tree is no decision; the decision of cycle i gets the reward of cycle i - 1.
    assert chosen[0] == policy.default_params
    expected = [np.mean(rates[start - 1 : start + 2]) for start in range(1, len(rates) - 2, 3)]
    policy.reset()
    assert [reward for _, _, reward, _, _ in recorded][: len(expected)] == pytest.approx(expected)
    assert all(done for *_, done in recorded)
    assert policy.formulation == "contextual bandit"
    # The state is the mean of low, mid and high, not the head's reduction.
    taps = cycles[0].features.reshape(3, k).mean(0)
    assert recorded[0][0].shape == taps.shape


@BOTH
def test_put_right_live(policy_class: type, recorded: list) -> None:
    """Rewards with drafting, for the decision that drafted."""
    decoder = tiny_decoder()
    policy = policy_for(decoder, policy_class, reward="throughput")
    policy.training_mode = True
    output = decoder.generate(tiny_prompts(1)[0].token_ids, policy, max_new_tokens=40)
    policy.reset()
    cycles = output.per_sequence[0].cycles
    expected = []
    for start in range(0, len(cycles), 3):
        part = cycles[start : start + 3]
        tokens = sum(len(cycle.token_ids) for cycle in part)
        expected.append(tokens / sum(c.draft_seconds + c.verify_seconds for c in part))
    assert [reward for _, _, reward, _, _ in recorded] == pytest.approx(expected)
    assert [done for *_, done in recorded] == [False] * (len(expected) - 1) + [True]


def test_the_entropy_coefficient_of_every_mode() -> None:
    options = {"ent_coef": 0.03, "max_entropy_ent_coef": 0.2}
    coefficients = {
        (entropy, reference): make_policy(
            PPO, enable_max_entropy=entropy, reference=reference, **options
        ).learner.model.ent_coef
        for entropy in (False, True)
        for reference in (False, True)
    }
    assert coefficients == {
        (True, False): 0.2,
        (True, True): 0.2,
        (False, False): 0.03,
        (False, True): 0.01,
    }


@BOTH
def test_what_is_solved_is_called_by_its_name(policy_class: type) -> None:
    assert make_policy(policy_class).formulation == "Markov decision process"
    assert make_policy(policy_class, gamma=0).formulation == "contextual bandit"


@pytest.mark.parametrize("policy_class", [PPO, pytest.param(DQN, marks=pytest.mark.slow)])
def test_online_it_finds_a_planted_rule(policy_class: type) -> None:
    """Fed cycle by cycle, as in a decoding loop, it learns to beat every constant tree."""
    options = {
        PPO: {"n_steps": 256, "batch_size": 64, "n_epochs": 8, "ent_coef": 0.01},
        DQN: {"net_arch": (32,), "epsilon_decay": 0.999, "memory_size": 2000},
    }[policy_class]
    policy = make_policy(
        policy_class,
        learning_rate=3e-3,
        gamma=0.5,
        enable_max_entropy=False,
        max_entropy_inference=False,
        action_cache_steps=1,
        **options,
    )
    policy.training_mode = True
    simulate(policy, planted_traces(40), COST)
    policy.training_mode = False
    unseen = planted_traces(8, seed=9)
    learned = total(simulate(policy, unseen, COST)).tokens_per_second
    constants = [total(simulate(tree, unseen, COST)).tokens_per_second for tree in ACTIONS]
    assert learned > 1.1 * max(constants)


@BOTH
def test_equal_seeds_give_equal_policies(policy_class: type) -> None:
    def run(seed: int) -> list[tuple[int, int, int]]:
        policy = make_policy(policy_class, seed=seed, action_cache_steps=2)
        trees = []
        for index in range(60):
            trees.append(
                policy.predict_parameters(hidden_states=features(index), training_mode=True)
            )
            policy.update_policy(generation_time=0.1 + 0.01 * (index % 3), new_tokens=index % 4 + 1)
        return trees

    assert run(1) == run(1) != run(2)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="action_cache_steps must be an int of at least 1, got 0"):
        PPO(action_cache_steps=0)
    with pytest.raises(ValueError, match="inference_temperature must be positive, got 0"):
        DQN(inference_temperature=0)
    with pytest.raises(ValueError, match="temperature must be positive, got -1"):
        DQN(temperature=-1)
    with pytest.raises(ValueError, match="n_steps must be an int of at least 1, got 0"):
        PPO(n_steps=0)
    with pytest.raises(ValueError, match=r"net_arch must be widths of at least 1, got \[0\]"):
        DQN(net_arch=[0])
    with pytest.raises(ValueError, match="ent_coef must not be negative, got -1"):
        PPO(ent_coef=-1)
    with pytest.raises(TypeError, match="flavour"):
        PPO(flavour="sweet")
    with pytest.raises(TypeError, match=r"settings or \['seed'\], not both"):
        PPO(settings=PolicySettings(), seed=1)
    with pytest.raises(ValueError, match="checkpoint_freq must be an int of at least 1"):
        PPO(checkpoint_freq=0)
    policy = make_policy(PPO, observation=ObservationSpec("features", WIDTH, ("position",)))
    with pytest.raises(ValueError, match="asked by choose"):
        policy.predict_parameters(hidden_states=features())
