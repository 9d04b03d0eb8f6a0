"""The public op: against float64, under autograd and torch.compile, and with wrong arguments."""

import pytest
import torch

from eaglerl.ops import (
    ActionCache,
    PolicyWeights,
    _encode_library,
    fused_encode,
    fused_encode_ref,
)

from .policies import make_features, make_modules, with_lookup

K = 24


def rows_and_last() -> dict[str, torch.Tensor]:
    return {"rows": torch.tensor([4, 2, 0, 1]), "last": torch.tensor([1, 3])}


def differentiable(weights: PolicyWeights) -> PolicyWeights:
    for tensor in weights.tensors().values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    return weights


@pytest.mark.parametrize("norm_chunks", [0, 1, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("indexed", [False, True])
def test_gradients_equal_those_of_float64(norm_chunks: int, activation: str, indexed: bool) -> None:
    modules = make_modules(K, norm_chunks=norm_chunks, activation=activation)
    options = rows_and_last() if indexed else {}
    results = []
    for dtype in (torch.float32, torch.float64):
        weights = differentiable(modules.weights().to(dtype=dtype))
        taps = [tap.to(dtype).requires_grad_() for tap in make_features(5, K)]
        encode = fused_encode if dtype == torch.float32 else fused_encode_ref
        out = encode(*taps, weights, **options)
        assert out.features.requires_grad
        assert not out.action.requires_grad
        loss = (out.features.sin() * 0.3).sum() + out.logits.cos().sum()
        inputs = [*taps, *(t for t in weights.tensors().values() if t.is_floating_point())]
        results.append(torch.autograd.grad(loss, inputs))
    for actual, expected in zip(*results, strict=True):
        # Sums of up to 72 products of float32 after five layers; relative to the largest entry.
        scale = float(expected.abs().max())
        torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0, atol=2e-5)


def test_gradients_of_the_folded_policy() -> None:
    modules = make_modules(K)
    taps = torch.cat(make_features(5, K), -1)
    grads = []
    for weights in (modules.weights(), modules.weights().fold()):
        x = taps.clone().requires_grad_()
        fused_encode(x, None, None, weights).logits.cos().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_training_through_the_op_learns() -> None:
    """Gradient descent on the logits alone, as a user would."""
    torch.manual_seed(1)
    modules = make_modules(K, norm_chunks=0)
    weights = differentiable(modules.weights())
    parameters = [t for t in weights.tensors().values() if t.is_floating_point()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    taps, wanted = make_features(64, K), torch.randint(7, (64,))
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(fused_encode(*taps, weights).logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("indexed", [False, True])
def test_opcheck(indexed: bool) -> None:
    weights = make_modules(K).weights()
    options = rows_and_last() if indexed else {"rows": None, "last": None}
    inputs = (*make_features(5, K), options["rows"], options["last"])
    draw = (0.0, 0, 0, True)
    arguments = (*inputs, *_encode_library.flatten(weights), *draw)
    torch.library.opcheck(torch.ops.eaglerl.fused_encode.default, arguments)
    taps = [tap.requires_grad_() for tap in make_features(5, K)]
    arguments = (*taps, *inputs[3:], *_encode_library.flatten(differentiable(weights)), *draw)
    torch.library.opcheck(torch.ops.eaglerl.fused_encode.default, arguments)


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_tokens_to_look_up_change_nothing_else(mode: str) -> None:
    horizon = 3 if mode == "scheduled" else 1
    weights = make_modules(K, horizon=horizon).weights(horizon=horizon)
    both = weights, with_lookup(weights)
    caches = [ActionCache(5, 2, mode, horizon=horizon, reference_size=20) for _ in both]
    for seed in range(6):
        features = make_features(5, K, seed // 2)
        three, four = (
            fused_encode(*features, w, cache=cache) for w, cache in zip(both, caches, strict=True)
        )
        for ours, expected in zip(four[:3], three[:3], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(four.params[:, :3], three.params)
        assert torch.equal(four.params[:, 3], four.action)
        reference = fused_encode_ref(*features, both[1]).params
        assert reference.shape == four.params.shape
        if seed == 0:
            assert torch.equal(reference, four.params)
    assert caches[1].stats().hits > 0


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_opcheck_with_a_cache(mode: str) -> None:
    horizon = 3 if mode == "scheduled" else 1
    weights = make_modules(K, horizon=horizon).weights(horizon=horizon)
    weights = weights if mode == "fixed" else with_lookup(weights)
    cache = ActionCache(5, 2, mode, horizon=horizon, reference_size=20)
    kept = (cache.state, cache.reference, cache.ring, None, cache.mode)
    arguments = (
        *make_features(5, K), None, None, *_encode_library.flatten(weights), 0.0, 0, 0, True, *kept,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.eaglerl.fused_encode_cached.default, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_compiles_as_one_graph(cached: bool) -> None:
    weights = make_modules(K).weights()
    caches = [ActionCache(5, 3) if cached else None for _ in range(2)]

    def decide(low, mid, high, cache):
        out = fused_encode(low * 2, mid, high, weights, cache=cache)
        return out.features + 1, out.params, out.action

    compiled = torch.compile(decide, fullgraph=True)
    for seed in range(4):
        taps = make_features(5, K, seed)
        for actual, expected in zip(
            compiled(*taps, caches[0]), decide(*taps, caches[1]), strict=True
        ):
            torch.testing.assert_close(actual, expected)
    if cached:
        assert torch.equal(caches[0].state, caches[1].state)
        assert caches[0].stats().hits > 0


@pytest.mark.slow
def test_compiled_training_step() -> None:
    weights = differentiable(make_modules(K).weights())
    taps = make_features(5, K)

    def loss(low, mid, high):
        return fused_encode(low, mid, high, weights).logits.cos().sum()

    parameters = [t for t in weights.tensors().values() if t.is_floating_point()]
    expected = torch.autograd.grad(loss(*taps), parameters)
    actual = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*taps), parameters)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_no_features_where_none_are_asked_for() -> None:
    weights = make_modules(K).weights()
    taps = make_features(5, K)
    both = fused_encode(*taps, weights)
    alone = fused_encode(*taps, weights, return_features=False)
    assert alone.features is None
    assert torch.equal(alone.action, both.action)
    assert fused_encode(*taps, weights.fold()).features is None


def test_features_keep_the_dtype_of_the_input() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = fused_encode(*make_features(3, K, dtype=dtype), make_modules(K).weights())
        assert out.features.dtype == dtype
        assert out.logits.dtype == torch.float32


def test_taps_are_meant_where_the_widths_are_one() -> None:
    weights = make_modules(8, 24).weights()
    x = torch.randn(3, 24)
    assert torch.equal(
        fused_encode(x, None, None, weights).logits,
        fused_encode(*x.chunk(3, -1), weights).logits,
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_taps_that_are_not_finite_give_the_fallback(value: float) -> None:
    weights = make_modules(K).weights(fallback_action=4)
    low, mid, high = make_features(3, K)
    mid[1, 5] = value
    cache = ActionCache(3, 10)
    for _ in range(2):
        out = fused_encode(low, mid, high, weights, cache=cache)
        assert int(out.action[1]) == 4
        assert torch.equal(out.params, weights.actions[out.action])
    stats = cache.stats()
    # The fallback was not kept: its slot decided twice, the others once.
    assert (stats.fallbacks, stats.misses, stats.hits) == (2, 4, 2)
    assert fused_encode(low, mid, high, weights, cache=cache).action[0] != 4


def test_empty_batches() -> None:
    weights = make_modules(K).weights()
    out = fused_encode(*make_features(0, K), weights)
    assert [tuple(t.shape) for t in out] == [(0, 20), (0, 7), (0,), (0, 3)]
    cache = ActionCache(2)
    before = cache.state.clone()
    fused_encode(*make_features(0, K), weights, cache=cache)
    assert torch.equal(cache.state, before)
