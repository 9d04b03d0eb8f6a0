"""An encoder's tensors are read where they are now, or refused, however they were changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops import ActionCache, DraftTreeBuilder, FusedEncoder, fused_encode

from .encode_model import make_weights


def replace_by_set(tensor: Tensor, other: Tensor) -> None:
    tensor.set_(other)


def replace_data(tensor: Tensor, other: Tensor) -> None:
    tensor.data = other


def resize_storage(tensor: Tensor, other: Tensor) -> None:
    tensor.untyped_storage().resize_(0)
    tensor.untyped_storage().resize_(4 * other.numel())
    tensor.copy_(other)


def share_memory(tensor: Tensor, other: Tensor) -> None:
    tensor.copy_(other)
    tensor.share_memory_()


REPLACEMENTS = [replace_by_set, replace_data, resize_storage, share_memory]


def assert_same(encoder: FusedEncoder, expected: tuple[Tensor | None, ...], rows: int) -> None:
    for name, wanted in zip(("features", "logits", "action", "params"), expected, strict=True):
        got = getattr(encoder, name)
        assert (got is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(got[:rows], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_an_input_whose_memory_was_replaced(
    replace: Callable[[Tensor, Tensor], None], part: int
) -> None:
    weights = make_weights(6, 5, (4,), 7)
    encoder = FusedEncoder(weights, max_rows=4, max_sequences=4)
    taps = [torch.randn(3, 6) for _ in range(3)]
    encoder.encode(*taps)
    for _ in range(3):
        replace(taps[part], torch.randn(3, 6))
        encoder.encode(*taps)
        assert_same(encoder, fused_encode(*taps, weights), 3)


def test_an_input_of_other_shape_or_strides() -> None:
    weights = make_weights(2, 6, (4,), 7)
    encoder = FusedEncoder(weights, max_rows=8, max_sequences=8)
    x = torch.randn(6, 6)
    encoder.encode(x)
    x.set_(torch.randn(2, 6))
    encoder.encode(x)
    assert_same(encoder, fused_encode(x, None, None, weights), 2)
    x.set_(torch.randn(40, 6))
    with pytest.raises(ValueError, match="at most 8 rows"):
        encoder.encode(x)
    encoder.encode(x, rows=torch.tensor([39, 7]))
    assert_same(encoder, fused_encode(x, None, None, weights, rows=torch.tensor([39, 7])), 2)
    x.set_(torch.randn(6, 6))
    encoder.encode(x)
    x.t_()
    with pytest.raises(ValueError, match="low must have contiguous rows"):
        encoder.encode(x)
    x.data = torch.randn(3, 5)
    with pytest.raises(ValueError, match="low must have 6 or 6 columns"):
        encoder.encode(x)
    x.data = torch.randn(3, 6).bfloat16()
    with pytest.raises(TypeError, match=r"low must be torch\.float32"):
        encoder.encode(x)
    x.data = torch.randn(3, 6)
    encoder.encode(x)
    assert_same(encoder, fused_encode(x, None, None, weights), 3)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_weights_whose_memory_was_replaced(replace: Callable[[Tensor, Tensor], None]) -> None:
    weights = make_weights(6, 5, (4,), 7, norm_chunks=3, norm_weight=True)
    encoder = FusedEncoder(weights, max_rows=2, max_sequences=2)
    x = torch.randn(2, 18)
    encoder.encode(x)
    for name, tensor in weights.tensors().items():
        if name != "bins":
            replace(tensor, torch.randn(tensor.shape))
            encoder.encode(x)
            assert_same(encoder, fused_encode(x, None, None, weights), 2)


def test_weights_that_fit_no_more_are_refused() -> None:
    weights = make_weights(6, 5, (5,), 7)
    encoder = FusedEncoder(weights, ActionCache(1, 10))
    x = torch.randn(1, 18)
    encoder.encode(x)
    square = weights.hidden_weights[0]
    for spoil, error, message in (
        (lambda: square.set_(torch.randn(4, 4)), ValueError, "hidden_weights"),
        (lambda: square.set_(torch.randn(5, 5).t()), ValueError, "hidden_weights.0 must be conti"),
        (lambda: setattr(square, "data", torch.randn(5, 5).half()), TypeError, "hidden_weights.0"),
    ):
        spoil()
        with pytest.raises(error, match=message):
            encoder.encode(x)
        square.data = torch.randn(5, 5)
        encoder.encode(x)
    assert encoder.action[0] == encoder._cache.state[0, C.cache_words["action"]]


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_a_cache_whose_memory_was_replaced(mode: str) -> None:
    horizon = 2 if mode == "scheduled" else 1
    weights = make_weights(4, 5, (6,), 7, reads="taps", horizon=horizon)
    caches = [ActionCache(1, 3, mode, horizon=horizon, threshold=0.0) for _ in range(2)]
    encoder = FusedEncoder(weights, caches[0])
    x = torch.rand(1, 12)
    for step in range(12):
        encoder.encode(x)
        _, _, action, _ = fused_encode(x, None, None, weights, cache=caches[1])
        assert torch.equal(encoder.action, action)
        assert torch.equal(caches[0].state, caches[1].state)
        if step % 2:
            for tensor in (caches[0].state, caches[0].reference, caches[0].ring):
                if tensor is not None:
                    tensor.set_(tensor.clone())
        x = torch.rand(1, 12) if step % 4 == 3 else x
    caches[0].state.set_(torch.zeros(1, 15, dtype=torch.int32))
    with pytest.raises(ValueError, match="state of the cache must be contiguous, of shape"):
        encoder.encode(x)


def test_outputs_whose_memory_was_replaced() -> None:
    weights = make_weights(4, 5, (6,), 7)
    encoder = FusedEncoder(weights)
    x = torch.randn(1, 12)
    for name in ("features", "logits", "action", "params"):
        output = getattr(encoder, name)
        output.set_(torch.zeros_like(output))
        encoder.encode(x)
        assert_same(encoder, fused_encode(x, None, None, weights), 1)
    encoder.logits.resize_(0)
    with pytest.raises(ValueError, match="logits must stay contiguous"):
        encoder.encode(x)


@pytest.mark.parametrize("direct", [True, False])
def test_the_guard_sees_every_change(direct: bool) -> None:
    changes = [
        lambda t: t.set_(torch.randn(4, 4)),
        lambda t: t.t_(),
        lambda t: t.resize_(2, 8),
        lambda t: t.unsqueeze_(0),
        lambda t: setattr(t, "data", torch.randn(4, 4)),
        lambda t: setattr(t, "data", t.data.view(torch.int32)),
        lambda t: t.untyped_storage().resize_(128),
        lambda t: t.share_memory_(),
    ]
    for number, change in enumerate(changes):
        tensors = [torch.randn(4, 4) for _ in range(3)]
        guard = C.TensorGuard(tensors, direct)
        tensors[0].mul_(2)
        assert guard.unchanged()
        change(tensors[number % 3])
        assert not guard.unchanged(), number
    with pytest.raises(TypeError, match="tensors must be tensors, got int"):
        C.TensorGuard([5], direct)


def test_native_state_is_not_copied() -> None:
    weights = make_weights(4, 5, (6,), 7)
    for held in (FusedEncoder(weights), DraftTreeBuilder()):
        for copier in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                copier(held)
    cache = ActionCache(2, 3)
    encoder = FusedEncoder(weights, cache)
    encoder.encode(torch.randn(1, 12))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(other.state, cache.state)
        assert other.state.data_ptr() != cache.state.data_ptr()
