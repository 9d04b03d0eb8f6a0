"""The policy's MLP alone, from features that were reduced elsewhere."""

import pytest
import torch

from eaglerl.ops import ActionCache, fused_encode, policy_mlp, policy_mlp_ref

from .policies import make_features, make_modules

K = 24


def test_features_that_are_reduced_already() -> None:
    """From g, the policy's MLP alone: by `policy_mlp`, and by `fused_encode` where widths tell."""
    modules = make_modules(K)
    weights = modules.weights()
    g = torch.randn(6, 20)
    expected = policy_mlp_ref(g, weights.to(dtype=torch.float64)).logits
    for out in (policy_mlp(g, weights), fused_encode(g, None, None, weights)):
        torch.testing.assert_close(out.logits.double(), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(out.params, weights.actions[out.action])
    rows = torch.tensor([5, 1])
    out = fused_encode(g, None, None, weights, rows=rows)
    assert torch.equal(out.features, g[rows])
    assert torch.equal(out.logits, policy_mlp(g, weights, rows=rows).logits)


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("hidden", [(8,), (33, 17), (16, 16, 16, 16)])
def test_equals_torch_in_float64(activation: str, hidden: tuple[int, ...]) -> None:
    modules = make_modules(K, 20, hidden, activation=activation)
    g = torch.randn(40, 20)
    actual = policy_mlp(g, modules.weights()).logits
    expected = modules.mlp.double()(g.double())
    # Sums of up to 33 products of float32 a layer; the output's weights are ten times the usual.
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-5)


def test_it_is_the_second_half_of_fused_encode() -> None:
    weights = make_modules(K).weights()
    whole = fused_encode(*make_features(6, K), weights)
    half = policy_mlp(whole.features, weights)
    torch.testing.assert_close(half.logits, whole.logits)
    assert torch.equal(half.action, whole.action)


def test_gradients_reach_features_and_weights() -> None:
    weights = make_modules(K).weights()
    for tensor in weights.hidden_weights:
        tensor.requires_grad_()
    results = []
    for function in (policy_mlp, policy_mlp_ref):
        g = torch.linspace(-1, 1, 100).view(5, 20).requires_grad_()
        loss = function(g, weights).logits.cos().sum()
        results.append(torch.autograd.grad(loss, [g, *weights.hidden_weights]))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_adaptive_cache_compares_the_features() -> None:
    weights = make_modules(K).weights()
    cache = ActionCache(1, 100, "adaptive", threshold=0.9, reference_size=20)
    g = torch.randn(1, 20)
    first = policy_mlp(g, weights, cache=cache)
    policy_mlp(3 * g, weights, cache=cache)
    assert (cache.stats().hits, cache.stats().misses) == (1, 1)
    other = policy_mlp(-g, weights, cache=cache)
    assert cache.stats().misses == 2
    assert torch.isfinite(first.logits).all()
    assert torch.isfinite(other.logits).all()
