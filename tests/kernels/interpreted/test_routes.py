"""What runs: which kernel, what a hit leaves out, and that the order of arrival does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from eaglerl.kernels import (
    _decision,
    _launch,
    _settings,
)
from eaglerl.kernels import (
    fused_encode_kernel as fused_encode,
)
from eaglerl.kernels import (
    policy_mlp_kernel as policy_mlp,
)
from eaglerl.ops import ActionCache, PolicyWeights
from eaglerl.ops._encode_cuda import action_cache_step_cuda, encode_cuda

from ...ops.encode_model import make_weights

K, WIDTH = 24, 40
# More than a program reads of the features.
REDUCED = 160


def make_policy(reads: str, hidden: tuple[int, ...] = (8,), **options: Any) -> PolicyWeights:
    return make_weights(
        K, REDUCED if reads == "features" else WIDTH, hidden, reads=reads, **options
    )


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Note every call of a function that a kernel calls."""
    called: list[str] = []
    function = getattr(module, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        called.append(name)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    return called


def decide(
    weights: PolicyWeights, cache: ActionCache | None, sequences: int, return_features: bool
) -> tuple:
    width = weights.joined_size or weights.feature_size
    x = torch.linspace(-1, 1, sequences * width).view(sequences, width)
    return encode_cuda(weights, x, None, None, None, None, cache, None, 0.0, 0, 0, return_features)


@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
def test_one_launch_of_the_right_kernel(reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[_launch.Launch] = []
    run = _launch.Launch.run

    def noted(launch: _launch.Launch, device: torch.device) -> None:
        launched.append(launch)
        run(launch, device)

    monkeypatch.setattr(_launch.Launch, "run", noted)
    decide(make_policy(reads), ActionCache(3), 3, True)
    expected = {"fc": fused_encode._fused_encode_kernel}.get(reads, policy_mlp._policy_mlp_kernel)
    assert [launch.kernel for launch in launched] == [expected]
    assert launched[0].grid[0] > 1, "nothing was shared out"


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
@pytest.mark.parametrize(
    ("reads", "return_features"),
    [("fc", True), ("fc", False), ("taps", False), ("features", False)],
)
def test_a_hit_leaves_out_the_policy(
    mode: str, reads: str, return_features: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make_policy(reads)
    compares_g = return_features or reads == "features"
    options = {"reference_size": weights.feature_size} if mode == "adaptive" and compares_g else {}
    cache = ActionCache(2, 2, mode, **options)
    first = decide(weights, cache, 2, return_features)
    products = count_calls(monkeypatch, fused_encode, "encode_tile")
    parts = count_calls(monkeypatch, policy_mlp, "_multiply_part")
    layers = count_calls(monkeypatch, _decision, "run_mlp")
    second = decide(weights, cache, 2, return_features)
    assert layers == []
    assert bool(products) == return_features
    assert parts == []
    assert torch.equal(first[2], second[2])
    assert torch.equal(first[3], second[3])
    assert second[1].isnan().all()
    if return_features:
        assert torch.equal(first[0], second[0])
    third = decide(weights, cache, 2, return_features)
    assert layers
    assert torch.equal(first[1], third[1])


# Each kernel and each mode is there without the slow ones.
@pytest.mark.parametrize(
    ("reads", "mode"),
    [
        ("fc", "adaptive"),
        ("taps", "fixed"),
        ("features", None),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [
                ("fc", None),
                ("fc", "fixed"),
                ("taps", None),
                ("taps", "adaptive"),
                ("features", "fixed"),
                ("features", "adaptive"),
            ]
        ),
    ],
)
def test_whoever_is_last_finishes_with_the_same_bits(
    reads: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter runs programs in order; here also backwards and from the middle."""
    weights = make_policy(reads, (20, 30), norm_chunks=3 * (reads == "taps"))
    check_orders(weights, mode, 6, reads == "fc", monkeypatch)


@pytest.mark.parametrize("mode", [None, "adaptive"])
def test_two_levels_of_tickets_finish_with_the_same_bits(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, most orders also change which program gathers its neighbours' partial sums."""
    weights = make_weights(6, 38, (20, 30))
    monkeypatch.setattr(_settings, "_MOST_PARTS", 4)
    _settings.forget_plans()
    plan = _settings.plan_of(weights, torch.empty(1), 1, 1, None, False, True)
    assert (plan.programs, plan.gathered, plan.parts) == (10, 4, 3)
    check_orders(weights, mode, 1, True, monkeypatch)
    _settings.forget_plans()


def check_orders(
    weights: PolicyWeights,
    mode: str | None,
    sequences: int,
    return_features: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare all results bit by bit, and the cache's records, for three orders of programs."""
    builder = interpreter.interpreter_builder
    place = type(builder).set_grid_idx
    orders: list[Callable[[int, int], int]] = [
        lambda i, count: i,
        lambda i, count: count - 1 - i,
        lambda i, count: (i + count // 2) % count,
    ]
    results = []
    for order in orders:
        monkeypatch.setattr(
            builder,
            "set_grid_idx",
            lambda x, y, z, order=order: place(builder, order(x, builder.grid_dim[0]), y, z),
        )
        size = {}
        if mode == "adaptive" and (return_features or weights.joined_size is None):
            size["reference_size"] = weights.feature_size
        cache = None if mode is None else ActionCache(6, 2, mode, **size)
        decisions = [decide(weights, cache, sequences, return_features) for _ in range(3)]
        state = [] if cache is None else [cache.state]
        results.append([out.clone() for d in decisions for out in d if out is not None] + state)
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "logits",
    [
        [-1.0, -0.0, 0.0, -2.0],
        [-3.0, -1.5, -1.5, -2.0],
        [2.0, 2.0, 1.0, 2.0],
        [-1e-40, -1e-45, -2e-40, -1e-45],
        [-3.4e38, -3.3e38, -3.4e38, -3.35e38],
        [1e-45, 0.0, 3.4e38, 3.3e38],
    ],
)
def test_the_first_of_the_largest_logits_is_chosen(logits: list[float]) -> None:
    trees = torch.arange(12, dtype=torch.int32).view(4, 3)
    rows = torch.tensor([logits, logits[::-1]])
    cache = ActionCache(2)
    kept = cache.state, cache.reference, cache.ring, None, cache.mode
    action, params = action_cache_step_cuda(rows, trees, None, *kept, 0.0, 0, 0, 3)
    assert action.tolist() == rows.argmax(1).tolist()
    assert torch.equal(params, trees[action.long()])


def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for reads in ("fc", "taps", "features"):
        out = decide(make_policy(reads), ActionCache(1), 0, True)
        assert out[1].shape == (0, 5)
        assert out[2].shape == (0,)
    assert all(not kept.tickets.any() for kept in _launch._workspaces.values())


def test_more_rows_than_a_launch_decides_by_one_ticket() -> None:
    """With features of all rows, row tiles share a ticket, whichever rows are last."""
    weights = make_weights(K, WIDTH, (20,), 9)
    x = torch.randn(70, 3 * K)
    last = torch.tensor([69, 0, 33])
    some = encode_cuda(weights, x, None, None, None, last, None, None, 0.0, 0, 0, True)
    every = encode_cuda(weights, x, None, None, None, None, None, None, 0.0, 0, 0, True)
    torch.testing.assert_close(some[0], every[0], rtol=0, atol=0)
    torch.testing.assert_close(some[1], every[1][last], rtol=0, atol=0)
