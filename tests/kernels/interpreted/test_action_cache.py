"""The action cache in interpreted kernels: bit for bit as in C++, and harmless where it must be."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops import ActionCache, action_cache_step
from eaglerl.ops._encode_cpu import encode_cpu
from eaglerl.ops._encode_cuda import action_cache_step_cuda, encode_cuda
from eaglerl.ops._encode_reference import choose_actions
from eaglerl.ops.action_cache import WORDS

from ...ops.encode_model import make_weights

SLOTS, INTERVAL, ACTIONS, FALLBACK = 6, 3, 5, 2
MODES = ["fixed", "adaptive", "scheduled"]


def make_cache(mode: str, size: int) -> ActionCache:
    options = {
        "adaptive": {"threshold": 0.8, "reference_size": size},
        "scheduled": {"horizon": 2},
    }.get(mode, {})
    return ActionCache(SLOTS, INTERVAL, mode, **options)


def integers(cache: ActionCache) -> Tensor:
    """Return the records without the norm, a float32 whose sum may be made in any order."""
    words = [word for name, word in WORDS.items() if name != "reference_norm"]
    return cache.state[:, sorted(words)]


def assert_same(ours: ActionCache, native: ActionCache) -> None:
    assert torch.equal(integers(ours), integers(native))
    for name in ("reference", "ring"):
        pair = getattr(ours, name), getattr(native, name)
        assert pair == (None, None) or torch.equal(*pair)
    if ours.reference is not None:
        norms = [c.state[:, WORDS["reference_norm"]].view(torch.float32) for c in (ours, native)]
        # The root halves the error of two sums of as many squares.
        torch.testing.assert_close(*norms, rtol=ours.reference.shape[1] * 2.0**-24, atol=0)


def along(axes: list[int], size: int) -> Tensor:
    """Return rows along axes, a little disturbed: similar by 0.95 and more, or below 0.3."""
    x = torch.rand(len(axes), size) * 0.05
    x[torch.arange(len(axes)), torch.tensor(axes)] = 1.0
    return x * torch.tensor([0.25, 1.0, 64.0])[torch.randint(3, (len(axes), 1))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_steps_from_logits_equal_native_code(mode: str, temperature: float) -> None:
    chooser, horizon, size = random.Random(mode), 2 if mode == "scheduled" else 1, 20
    trees = torch.randint(1, 60, (ACTIONS, 4 if temperature else 3), dtype=torch.int32)
    ours, native = make_cache(mode, size), make_cache(mode, size)
    for step in range(25):
        slots = torch.tensor(chooser.sample(range(SLOTS), chooser.randint(1, SLOTS)))
        logits = torch.randn(len(slots), horizon * ACTIONS)
        axes = [chooser.randrange(3) for _ in slots]
        features = along(axes, size) if mode == "adaptive" else None
        if features is not None and chooser.random() < 0.3:
            features[0, chooser.randrange(size)] = float("inf")
        if chooser.random() < 0.3:
            bad = chooser.choice([float("nan"), float("inf")])
            logits[0, chooser.randrange(horizon * ACTIONS)] = bad
        if chooser.random() < 0.2:
            for cache in (ours, native):
                cache.reset([step % SLOTS])
        draw = temperature, step * 2**33, step * 2**34 + 1
        kept = ours.state, ours.reference, ours.ring, slots, ours.mode
        got = action_cache_step_cuda(logits, trees, features, *kept, *draw, FALLBACK)
        expected = action_cache_step(
            logits, trees, native, slots=slots, features=features, temperature=temperature,
            seed=draw[1], offset=draw[2], fallback_action=FALLBACK,
        )  # fmt: skip
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert_same(ours, native)
    stats = ours.stats()
    assert min(stats.hits, stats.misses, stats.fallbacks) > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("form", "sequences"),
    [
        ("fc", 1),
        ("fc without features", 5),
        ("taps", 1),
        ("features", 4),
        *(
            pytest.param(form, sequences, marks=pytest.mark.slow)
            for form, sequences in (
                ("fc", 4),
                ("fc without features", 1),
                ("taps", 4),
                ("features", 1),
            )
        ),
    ],
)
def test_decisions_equal_native_code(mode: str, form: str, sequences: int) -> None:
    k, horizon = 24, 2 if mode == "scheduled" else 1
    reads = form.split()[0]
    weights = make_weights(
        k, 10, (8,), ACTIONS, reads=reads, norm_chunks=0 if reads == "features" else 3,
        horizon=horizon, fallback_action=FALLBACK, columns=3 if mode == "adaptive" else 4,
    )  # fmt: skip
    size = C.cache_sketch_size if form in ("taps", "fc without features") else 10
    parts = [10] if reads == "features" else [k] * 3
    ours, native = make_cache(mode, size), make_cache(mode, size)
    for step in range(9):
        # Every axis twice, so that what is compared stays for a step; NaN where slots are empty.
        axes = [(step // 2 + i) % 3 for i in range(sequences + 2)]
        x = torch.cat([along(axes, part) for part in parts], dim=1)
        if step == 0:
            x[1] = float("nan")
        last = torch.arange(sequences) + 1
        slots = (torch.arange(sequences) + 1) % SLOTS if step % 3 else None
        inputs, index = (x, None, None), (None, last)
        rest = 0.0, 0, 0, form == "fc"
        got, expected = (
            encode(weights, *inputs, *index, cache, slots, *rest)
            for encode, cache in ((encode_cuda, ours), (encode_cpu, native))
        )
        assert torch.equal(got[2], expected[2])
        assert torch.equal(got[3], expected[3])
        assert torch.equal(got[1].isnan(), expected[1].isnan())
        assert torch.equal(integers(ours), integers(native))
        if mode == "adaptive":
            # What is compared is a sum of at most 3k products.
            torch.testing.assert_close(ours.reference, native.reference, rtol=1e-5, atol=1e-5)
    stats = ours.stats()
    assert min(stats.hits, stats.misses, stats.fallbacks) > 0


@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
def test_what_is_out_of_range_falls_back_and_changes_nothing_else(reads: str) -> None:
    weights = make_weights(8, 8, (6,), ACTIONS, reads=reads, fallback_action=FALLBACK)
    x = torch.randn(4, 8 if reads == "features" else 24)
    for rows, last in (([9, 1, -1], None), ([0, 1, 2], [7, 1, -5])):
        cache = ActionCache(3)
        index = None if last is None else torch.tensor(last)
        out = encode_cuda(
            weights, x, None, None, torch.tensor(rows), index, cache, None, 0.0, 0, 0, True
        )
        assert out[2][0] == out[2][2] == FALLBACK
        assert out[1][1].isfinite().all()
        assert not out[1][[0, 2]].isfinite().any()
        assert cache.state[:, WORDS["fallbacks"]].tolist() == [1, 0, 1]
    cache = ActionCache(3)
    slots = torch.tensor([3, 1, -1, 2**40])
    for _ in range(2):
        out = encode_cuda(weights, x, None, None, None, None, cache, slots, 0.0, 0, 0, True)
        assert out[2][[0, 2, 3]].tolist() == [FALLBACK] * 3
        assert torch.equal(out[3][0], weights.actions[FALLBACK])
        assert out[1][[0, 2, 3]].isnan().all()
    assert torch.equal(cache.state[[0, 2]], ActionCache(2).state)
    assert cache.state[1, [WORDS["hits"], WORDS["misses"]]].tolist() == [1, 1]


def test_draws_follow_the_generator() -> None:
    """Every sequence and window has a number of its own, of all bits of seed and offset."""
    trees = torch.ones(ACTIONS, 3, dtype=torch.int32)
    logits = torch.randn(6, 2 * ACTIONS)
    for seed, offset in ((0, 0), (2**63 - 1, 2**62 + 5), (2**31, 2**32 - 1), (7, 2**31)):
        cache = ActionCache(6, 1, "scheduled", horizon=2)
        kept = cache.state, None, cache.ring, None, cache.mode
        action, _ = action_cache_step_cuda(logits, trees, None, *kept, 0.5, seed, offset, 0)
        expected = choose_actions(
            logits.double(), ACTIONS, temperature=0.5, seed=seed, offset=offset
        )
        assert torch.equal(cache.ring[:, :, 0], expected)
        assert torch.equal(action, expected[:, 0])


def test_counters_go_round() -> None:
    cache = ActionCache(1, interval=2)
    for name in ("hits", "misses"):
        cache.state[0, WORDS[name]] = 2**31 - 1
    trees, logits = torch.ones(2, 3, dtype=torch.int32), torch.zeros(1, 2)
    for _ in range(2):
        kept = cache.state, None, None, None, cache.mode
        action_cache_step_cuda(logits, trees, None, *kept, 0.0, 0, 0, 0)
    assert cache.state[0, [WORDS["hits"], WORDS["misses"]]].tolist() == [-(2**31)] * 2
