"""The action cache's native code against a model in Python, over many random steps."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from eaglerl.ops import ActionCache, PolicyWeights, action_cache_step
from eaglerl.ops.action_cache import WORDS
from eaglerl.ops.encoder import FusedEncoder

from .encode_model import make_weights

SLOTS, INTERVAL, HORIZON, ACTIONS, THRESHOLD = 48, 5, 3, 4, 0.8
# Every slot has 800.
OPERATIONS = 40_000


class CacheModel:
    """What the cache is to do, slot by slot."""

    def __init__(self, mode: str, trees: list[list[int]]) -> None:
        self.mode, self.trees = mode, trees
        self.horizon = HORIZON if mode == "scheduled" else 1
        self.slots = [self.empty() for _ in range(SLOTS)]

    def empty(self) -> dict:
        return {"step": 0, "plan": None, "reference": None, "hits": 0, "misses": 0, "fallbacks": 0}

    def step(self, slot: int, plan: list[int] | None, x: np.ndarray) -> tuple[int, bool]:
        """Return the action and whether it was kept; ``plan`` is None for logits not finite."""
        record = self.slots[slot]
        keeps = record["plan"] is not None and record["step"] < INTERVAL * self.horizon
        if keeps and self.mode == "adaptive":
            keeps = self.resembles(record["reference"], x)
        if keeps:
            record["hits"] += 1
            action = record["plan"][record["step"] // INTERVAL]
            record["step"] += 1
            return action, True
        record["misses"] += 1
        record["fallbacks"] += plan is None
        record.update(step=1, plan=plan, reference=x)
        return 0 if plan is None else plan[0], False

    @staticmethod
    def resembles(a: np.ndarray, b: np.ndarray) -> bool:
        dot, scale = a @ b, np.sqrt(a @ a) * np.sqrt(b @ b)
        if not np.isfinite(scale):
            return False
        assert abs(dot / scale - THRESHOLD) > 1e-3, "too close to tell in float32"
        return bool(dot >= THRESHOLD * scale)


def make_cache(mode: str, width: int) -> ActionCache:
    options = {"adaptive": {"threshold": THRESHOLD, "reference_size": width},
               "scheduled": {"horizon": HORIZON}}.get(mode, {})  # fmt: skip
    return ActionCache(SLOTS, INTERVAL, mode, **options)


def identity_policy(horizon: int, columns: int = 3) -> PolicyWeights:
    """Return a policy whose logits are its features, where they are not negative."""
    width = ACTIONS * horizon
    weights = make_weights(
        1, width, (width,), ACTIONS, reads="features", activation="relu", horizon=horizon,
        columns=columns,
    )  # fmt: skip
    weights.hidden_weights[0].copy_(torch.eye(width))
    weights.output_weight.copy_(torch.eye(width))
    weights.hidden_biases[0].zero_()
    weights.output_bias.zero_()
    return weights


def random_features(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Return rows in one of four directions: similar to 0.9 and more, or 0.4 and less."""
    x = generator.random((rows, width)) * 0.1
    x[np.arange(rows), generator.integers(ACTIONS, size=rows)] = 1.0
    x *= 2.0 ** generator.integers(-4, 5, size=(rows, 1))
    broken = generator.random(rows) < 0.03
    x[broken, -1] = generator.choice([np.nan, np.inf], size=broken.sum())
    return x.astype(np.float32)


def plans_of(x: np.ndarray, horizon: int) -> list[list[int] | None]:
    """Each row's actions, None where it is not finite."""
    plans = x.reshape(len(x), horizon, ACTIONS).argmax(2).tolist()
    finite = np.isfinite(x).all(1)
    return [plan if good else None for plan, good in zip(plans, finite, strict=True)]


def assert_state(cache: ActionCache, model: CacheModel) -> None:
    for slot, record in enumerate(model.slots):
        words = cache.state[slot].tolist()
        for name in ("step", "hits", "misses", "fallbacks"):
            assert words[WORDS[name]] == record[name], (slot, name)
        assert words[WORDS["valid"]] == (record["plan"] is not None)


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
@pytest.mark.parametrize("route", ["encoder", "step"])
def test_equals_the_model(mode: str, route: str) -> None:
    columns = 3 if mode == "adaptive" else 4
    weights = identity_policy(HORIZON if mode == "scheduled" else 1, columns)
    width = weights.feature_size
    cache, model = make_cache(mode, width), CacheModel(mode, weights.actions.tolist())
    encoder = FusedEncoder(weights, cache, max_sequences=SLOTS)
    generator, chooser = np.random.default_rng(1), random.Random(1)
    done = kept_steps = fallbacks = 0
    while done < OPERATIONS:
        if chooser.random() < 0.01:
            some = chooser.sample(range(SLOTS), 2)
            cache.reset(some)
            for slot in some:
                model.slots[slot] = model.empty()
            continue
        slots = chooser.sample(range(SLOTS), chooser.randint(1, SLOTS))
        x = random_features(generator, len(slots), width)
        features, numbers = torch.from_numpy(x), torch.tensor(slots)
        if route == "encoder":
            encoder.encode(features, slots=numbers)
            actions, params = encoder.action, encoder.params
        else:
            actions, params = action_cache_step(
                features, weights.actions, cache, slots=numbers, features=features
            )
        expected = [
            model.step(slot, plan, row)
            for slot, plan, row in zip(
                slots, plans_of(x, weights.horizon), x.astype(np.float64), strict=True
            )
        ]
        assert actions.tolist()[: len(slots)] == [action for action, _ in expected]
        assert params.tolist()[: len(slots)] == [model.trees[action] for action, _ in expected]
        if route == "encoder":
            no_logits = encoder.logits[: len(slots)].isnan().all(1).numpy()
            finite = np.isfinite(x).all(1)
            kept = np.array([is_kept for _, is_kept in expected])
            assert (no_logits == kept)[finite].all()
        done += len(slots)
        kept_steps += sum(kept for _, kept in expected)
        fallbacks += len(slots) - int(np.isfinite(x).all(1).sum())
        if chooser.random() < 0.01:
            assert_state(cache, model)
    assert_state(cache, model)
    assert OPERATIONS / 10 < kept_steps < OPERATIONS * 0.95
    assert fallbacks > 1000


def test_counters_go_round() -> None:
    cache, weights = ActionCache(1, 1), identity_policy(1)
    cache.state[0, WORDS["misses"]] = -1
    FusedEncoder(weights, cache).encode(torch.rand(1, ACTIONS))
    assert cache.stats().misses == 0


def test_the_sketch_tells_taps_apart_at_every_width() -> None:
    """Sums over n = c * k + i by n % 64 of a hash's sign times the normalised taps."""
    for k in (1, 2, 7, 21, 64, 65, 100, 576):
        weights = make_weights(k, 5, (4,), 3, norm_chunks=1, norm_weight=True)
        cache = ActionCache(1, 9, "adaptive", threshold=0.5)
        x = torch.randn(1, 3 * k) + torch.tensor([5.0, -3.0, 0.0]).repeat_interleave(k)
        FusedEncoder(weights, cache, return_features=False).encode(x)
        chunks = x.double().numpy().reshape(3, k)
        taps = (chunks / np.sqrt((chunks**2).mean(1, keepdims=True) + weights.eps)).reshape(-1)
        expected = np.zeros(64)
        for n, value in enumerate(taps):
            expected[n % 64] += value if (n * 2654435769) % 2**32 < 2**31 else -value
        # Each bucket sums a few dozen taps of size 1, and each tap has four roundings.
        bound = (3 * k / 64 + 12) * 2.0**-24 * (np.abs(taps).sum() / min(64, 3 * k) + 4) * 4
        np.testing.assert_allclose(cache.reference[0].numpy(), expected, rtol=0, atol=bound)
        norm = cache.state[0, WORDS["reference_norm"]].view(torch.float32).item()
        assert norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)
