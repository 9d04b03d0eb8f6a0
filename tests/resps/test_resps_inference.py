"""Decisions of the policies of Re-SpS are those of their networks."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from ..traces.planted import ACTIONS, WIDTH
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.tiny import tiny_decoder, tiny_prompts
from .small_policies import BOTH, DQN, PPO, features, make_policy, policy_for


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
    assert chosen == [tuple(ACTIONS.tensor[action].tolist()) for action in expected]
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
    observed = np.array([counts[tuple(tree)] for tree in ACTIONS.tensor.tolist()])
    assert expected.min() > 5
    assert chisquare(observed, expected).pvalue > 0.001


def test_dropout_is_off_at_inference_unless_as_in_resps() -> None:
    """With one state and the best action, only dropout can make a difference."""
    options = {"action_cache_enabled": False, "net_arch": (32, 16, 8), "hidden_size": WIDTH}
    policy = make_policy(DQN, **options)
    assert not any(isinstance(m, torch.nn.Dropout) for m in policy.learner.model.policy.modules())
    kinds = [type(layer).__name__ for layer in policy.learner.model.q_net.q_net]
    assert kinds == ["Linear", "ReLU"] * 3 + ["Linear"]
    reference = make_policy(DQN, reference=True, **options)
    model = reference.learner.model
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
    assert chisquare([counts[tuple(t)] for t in ACTIONS.tensor.tolist()]).pvalue > 0.001
    greedy = make_policy(DQN, epsilon_start=0.0, epsilon_end=0.0, action_cache_steps=1)
    trees = {
        greedy.predict_parameters(hidden_states=features(), training_mode=True) for _ in range(30)
    }
    assert len(trees) == 1


@BOTH
@pytest.mark.parametrize("reference", [False, True])
def test_output_stays_identical(policy_class: type, reference: bool) -> None:
    decoder = tiny_decoder()
    width = decoder.target.hidden_size if reference else decoder.draft_head.config.hidden_size
    policy = make_policy(
        policy_class, hidden_size=width, actions=TREES, head=decoder.draft_head, reference=reference
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
    policy = policy_for(decoder, PPO, max_entropy_inference=False)
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
    # In the loop, which has the features too.
    decoder = tiny_decoder()
    live = PPO(
        hidden_size=decoder.draft_head.config.hidden_size, actions=TREES, use_eagle3_features=False,
        text_encoder=embed, head=decoder.draft_head,
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
