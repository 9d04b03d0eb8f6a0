"""The published policies: cache, transitions, inference, faults put right and restored."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from eaglerl.eagle3.params import TreeParams
from eaglerl.rl.observations import ObservationSpec
from eaglerl.rl.published import (
    OptimizedOnlineTreePolicy,
    OptimizedSB3DiscretePPOOnlineTreePolicy,
    PolicySettings,
)
from eaglerl.rl.published.window import RewardWindow
from eaglerl.rl.simulate import simulate, total

from .planted import ACTIONS, COST, WIDTH, planted_traces
from .test_oracle import ACTIONS as TREES
from .worlds import tiny_decoder, tiny_prompts

PPO, DQN = OptimizedSB3DiscretePPOOnlineTreePolicy, OptimizedOnlineTreePolicy
SMALL = {PPO: {"n_steps": 8, "batch_size": 4, "n_epochs": 2}, DQN: {"net_arch": (16, 8, 8)}}
BOTH = pytest.mark.parametrize("policy_class", [PPO, DQN])


def make_policy(policy_class: type, **options: object):
    settings = {"hidden_size": WIDTH, "actions": ACTIONS, "action_cache_steps": 3}
    return policy_class(**{**settings, **SMALL[policy_class], **options})


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The transitions that learners are given, in place of learning from them."""
    from eaglerl.rl.published import learner

    transitions: list[tuple] = []

    def add(self, observation, action, reward, following, done):
        transitions.append((observation, action, reward, following, done))
        return False

    for kind in (learner.PPOLearner, learner.DQNLearner):
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
@pytest.mark.parametrize("published", [False, True])
def test_the_cache_can_be_turned_off_and_on_again(policy_class: type, published: bool) -> None:
    policy = make_policy(policy_class, reference=published)

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
def test_the_published_defaults(policy_class: type) -> None:
    policy = policy_class()
    assert policy.settings.hidden_size == 4096
    assert len(policy.settings.actions) == 177
    assert policy.settings.interval == 10
    assert policy.predict_parameters() == (96, 8, 20)
    # What needs stable-baselines3 is not made before it is needed.
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
    # lambda begins with the first window's own rate, which counts for 100 tokens.
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
def test_as_published(policy_class: type, recorded: list) -> None:
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
    # The first tree is nobody's decision; cycle i's decision is given what cycle i - 1 made.
    assert chosen[0] == policy.default_params
    expected = [np.mean(rates[start - 1 : start + 2]) for start in range(1, len(rates) - 2, 3)]
    policy.reset()
    assert [reward for _, _, reward, _, _ in recorded][: len(expected)] == pytest.approx(expected)
    assert all(done for *_, done in recorded)
    assert policy.formulation == "contextual bandit"
    # The state is the mean of low, mid and high, not what the head makes of them.
    taps = cycles[0].features.reshape(3, k).mean(0)
    assert recorded[0][0].shape == taps.shape


@BOTH
def test_put_right_live(policy_class: type, recorded: list) -> None:
    """Rewards with drafting, for the decision that drafted."""
    decoder = tiny_decoder()
    policy = make_policy(
        policy_class,
        hidden_size=decoder.head.config.hidden_size,
        actions=TREES,
        head=decoder.head,
        reward="throughput",
    )
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


@BOTH
def test_best_actions_are_those_of_stable_baselines3(policy_class: type) -> None:
    policy = make_policy(policy_class, max_entropy_inference=False, action_cache_enabled=False)
    model = policy.learner.model
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    policy._weights = None
    rows = torch.randn(300, WIDTH)
    expected, _ = model.predict(rows.numpy(), deterministic=True)
    chosen = [policy.predict_parameters(hidden_states=row) for row in rows]
    assert chosen == [tuple(ACTIONS.bins[action].tolist()) for action in expected]
    assert len(set(chosen)) > 2


@BOTH
def test_max_entropy_inference_draws_from_the_softmax(policy_class: type) -> None:
    policy = make_policy(policy_class, action_cache_enabled=False, inference_temperature=0.5)
    with torch.no_grad():
        for parameter in policy.learner.model.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    row = torch.randn(WIDTH)
    weights = policy.weights
    hidden = row
    for matrix, bias in zip(weights.hidden_weights, weights.hidden_biases, strict=True):
        hidden = matrix @ hidden + bias
        hidden = torch.tanh(hidden) if policy_class is PPO else torch.relu(hidden)
    scores = weights.output_weight @ hidden + weights.output_bias
    expected = 3000 * torch.softmax(scores.double() / 0.5, -1).numpy()
    counts = Counter(policy.predict_parameters(hidden_states=row) for _ in range(3000))
    observed = np.array([counts[tuple(tree)] for tree in ACTIONS.bins.tolist()])
    assert expected.min() > 5
    assert chisquare(observed, expected).pvalue > 0.001


def test_dropout_is_off_at_inference_unless_as_published() -> None:
    """With one state and the best action, only dropout can make a difference."""
    options = {"action_cache_enabled": False, "net_arch": (32, 16, 8), "hidden_size": WIDTH}
    policy = make_policy(DQN, **options)
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.learner.model.policy.modules())
    kinds = [type(layer).__name__ for layer in policy.learner.model.q_net.q_net]
    assert kinds == ["Linear", "ReLU"] * 3 + ["Linear"]
    published = make_policy(DQN, reference=True, **options)
    model = published.learner.model
    kinds = [type(layer).__name__ for layer in model.q_net.q_net]
    assert kinds == ["Linear", "ReLUDropout"] * 2 + ["Linear", "ReLU", "Linear"]
    row = torch.randn(1, WIDTH)
    with torch.no_grad():
        assert not torch.equal(model.q_net(row), model.q_net(row))
    assert all(
        torch.equal(layer.bias, torch.full_like(layer.bias, 0.1))
        for layer in model.q_net.q_net
        if isinstance(layer, torch.nn.Linear)
    )


def test_exploration_of_dqn() -> None:
    even = make_policy(DQN, enable_max_entropy=False, epsilon_start=1.0, action_cache_steps=1)
    counts = Counter(
        even.predict_parameters(hidden_states=features(), training_mode=True) for _ in range(1200)
    )
    assert chisquare([counts[tuple(t)] for t in ACTIONS.bins.tolist()]).pvalue > 0.001
    greedy = make_policy(DQN, epsilon_start=0.0, epsilon_end=0.0, action_cache_steps=1)
    trees = {
        greedy.predict_parameters(hidden_states=features(), training_mode=True) for _ in range(30)
    }
    assert len(trees) == 1


@pytest.mark.parametrize("policy_class", [PPO, pytest.param(DQN, marks=pytest.mark.slow)])
def test_online_it_finds_a_planted_rule(policy_class: type) -> None:
    """Fed cycle by cycle, as a decoding loop does, it comes to beat every constant tree."""
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


@BOTH
@pytest.mark.parametrize("reference", [False, True])
def test_output_stays_identical(policy_class: type, reference: bool) -> None:
    decoder = tiny_decoder()
    width = decoder.target.hidden_size if reference else decoder.head.config.hidden_size
    policy = make_policy(
        policy_class, hidden_size=width, actions=TREES, head=decoder.head, reference=reference
    )
    policies = [policy] if reference else [policy, policy.fused()]
    for training in (False, True):
        policy.training_mode = training
        for prompt in tiny_prompts(3):
            expected = decoder.generate(prompt.token_ids, TREES[0], max_new_tokens=30).sequences
            for chosen in policies:
                output = decoder.generate(prompt.token_ids, chosen, max_new_tokens=30)
                assert torch.equal(output.sequences, expected)
    assert policy.get_performance_stats()["windows"] > 0


def test_fused_decides_the_same() -> None:
    decoder = tiny_decoder()
    policy = make_policy(
        PPO,
        hidden_size=decoder.head.config.hidden_size,
        actions=TREES,
        head=decoder.head,
        max_entropy_inference=False,
    )
    with torch.no_grad():
        for parameter in policy.learner.model.policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    prompt = tiny_prompts(1)[0].token_ids
    trees = [
        [cycle.params for cycle in decoder.generate(prompt, chosen, max_new_tokens=40)
         .per_sequence[0].cycles]
        for chosen in (policy, policy.fused())
    ]  # fmt: skip
    assert trees[0] == trees[1]
    assert len(set(trees[0])) > 1


def test_text_in_place_of_features() -> None:
    def embed(text: str) -> np.ndarray:
        return np.random.default_rng(len(text)).standard_normal(384).astype(np.float32)

    policy = make_policy(PPO, text_encoder=embed, use_eagle3_features=False)
    policy.predict_parameters("some text", features())
    assert policy.get_performance_stats()["feature_sources"] == {"projected_context": 1}
    with pytest.raises(ValueError, match="a policy of text with"):
        policy.fused()
    # In the loop, where the features are at hand as well.
    decoder = tiny_decoder()
    live = PPO(
        hidden_size=decoder.head.config.hidden_size, actions=TREES, use_eagle3_features=False,
        text_encoder=embed, head=decoder.head,
        tokenizer=SimpleNamespace(decode=lambda ids, **_: "x" * len(ids)),
    )  # fmt: skip
    decoder.generate(tiny_prompts(1)[0].token_ids, live, max_new_tokens=4)
    assert live.get_performance_stats()["feature_sources"] == {"projected_context": 1}
    alone = make_policy(PPO, text_encoder=embed, use_context_only_state=True)
    alone.predict_parameters("some text", features())
    assert alone.get_performance_stats()["feature_sources"] == {"context": 1}
    assert alone.weights.mlp_in_features == 384
    with pytest.raises(ValueError, match="cannot decide within the decoding loop"):
        alone.fused()


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
