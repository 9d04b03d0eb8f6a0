"""The action cache in the CUDA kernels, their bodies run on the host."""

from collections import Counter
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._decision_cuda import decide_cuda, step_cuda
from eaglerl.ops._philox import philox_uniform
from eaglerl.ops.action_cache import RING_WORDS, WORDS, ActionCache
from eaglerl.ops.policy_weights import PolicyWeights

from .reference import CacheModel, Slot, sketch, wide
from .test_folded_decision import GREEDY, make_weights

MODES = ("fixed", "adaptive", "scheduled")
TAKEN = ("action", "total_tokens", "depth", "top_k", "lookup_tokens")
COUNTED = ("step", "valid", *TAKEN, "hits", "misses")


def make_cache(mode: str, slots: int, interval: int, horizon: int, size: int = 64) -> ActionCache:
    extra = {"threshold": 0.9, "reference_size": size} if mode == "adaptive" else {}
    return ActionCache(slots, interval, mode, horizon=horizon, **extra)


def decisions_of(weights: PolicyWeights, logits: Tensor) -> tuple[list[tuple[int, ...]], bool]:
    """Return the greedy actions and parameters of all windows, and which logits are finite."""
    finite = bool(np.isfinite(wide(logits)).all())
    windows = wide(logits).reshape(weights.horizon, -1)
    actions = windows.argmax(-1) if finite else [weights.fallback_action] * weights.horizon
    # A table of three columns looks up nothing.
    taken = [(int(a), *weights.actions[int(a)].tolist(), 0) for a in actions]
    return [decision[: len(TAKEN)] for decision in taken], finite


def next_inputs(taps: list[Tensor], generator: torch.Generator) -> None:
    """Return new features for a third of the sequences, similar ones for the rest, some NaN."""
    count = len(taps[0])
    renewed = torch.rand(count, 1, generator=generator) < 0.35
    broken = torch.rand(count, 1, generator=generator) < 0.12
    for part in taps:
        fresh = torch.randn(part.shape, generator=generator)
        near = part.nan_to_num(0.0, 0.0, 0.0) + 0.01 * fresh
        part.copy_(torch.where(renewed, fresh, near))
        value = torch.where(torch.rand(count, 1, generator=generator) < 0.5, torch.nan, torch.inf)
        part[:, :1] = torch.where(broken, value, part[:, :1])


def check_record(cache: ActionCache, number: int, slot: Slot) -> None:
    record = dict(zip(WORDS, cache.state[number, list(WORDS.values())].tolist(), strict=True))
    expected = (slot.step, int(slot.valid), *slot.taken, slot.hits, slot.misses)
    assert tuple(record[name] for name in COUNTED) == expected
    assert record["fallbacks"] == slot.fallbacks
    if cache.ring is not None and slot.ring:
        assert [tuple(entry) for entry in cache.ring[number].tolist()] == slot.ring
    if cache.reference is not None and slot.features is not None and slot.valid:
        # float32 sums of up to 576 / 64 terms, and the scales: a few units in the last place.
        np.testing.assert_allclose(wide(cache.reference[number]), slot.features, atol=1e-5)
        norm = cache.state[number, WORDS["reference_norm"]].view(torch.float32).item()
        assert norm == pytest.approx(np.linalg.norm(slot.features), rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["taps", "features"])
@pytest.mark.parametrize("sequences", [1, 9])
def test_decisions_follow_a_model(
    emulation: ModuleType, mode: str, kind: str, sequences: int
) -> None:
    horizon = 3 if mode == "scheduled" else 1
    width = 3 * 64 if kind == "taps" else 80
    columns = 3 if kind == "features" else 4
    weights = make_weights(
        width, (16,), 12, mlp_input=kind, horizon=horizon, fallback_action=5, columns=columns
    )
    slots = sequences + 2
    cache = make_cache(mode, slots, 4, horizon, 64 if kind == "taps" else 80)
    model = CacheModel(mode, 4, 0.9, {number: Slot() for number in range(slots)})
    parts = 3 if kind == "taps" else 1
    taps = [torch.randn(sequences, width // parts) for _ in range(parts)]
    generator = torch.Generator().manual_seed(7)
    seen = Counter()
    for cycle in range(60 if sequences > 1 else 400):
        next_inputs(taps, generator)
        if cycle % 13 == 12:
            number = cycle % slots
            cache.reset([number])
            model.slots[number] = Slot()
        chosen = torch.randperm(slots, generator=generator)[:sequences]
        emulation.set_order(cycle % 5)
        inputs = (*taps, None, None)[:3]
        logits, action, params = decide_cuda(weights, *inputs, None, None, cache, chosen, *GREEDY)
        for s, number in enumerate(chosen.tolist()):
            x = wide(torch.cat(taps, -1))[s]
            features = sketch(x, weights.eps) if kind == "taps" else x
            if model.holds(number, features):
                seen["hit"] += 1
                assert logits[s].isnan().all()
                taken = model.hit(number)
            else:
                decisions, finite = decisions_of(weights, logits[s])
                seen["miss" if finite else "fallback"] += 1
                taken = model.miss(number, decisions, features, finite)
            assert (int(action[s]), *params[s].tolist()) == taken[: 1 + columns]
        for number, slot in model.slots.items():
            check_record(cache, number, slot)
    assert min(seen["hit"], seen["miss"], seen["fallback"]) > 0


def test_a_hit_reads_neither_weights_nor_taps(emulation: ModuleType) -> None:
    weights = make_weights(3 * 8, (4,), 6)
    taps = [torch.randn(3, 8) for _ in range(3)]
    cache = ActionCache(3, 10)
    first = decide_cuda(weights, *taps, None, None, cache, None, *GREEDY)
    for tensor in (*taps, *weights.hidden_weights, weights.output_weight):
        tensor.fill_(torch.nan)
    for _ in range(9):
        logits, action, params = decide_cuda(weights, *taps, None, None, cache, None, *GREEDY)
        assert torch.equal(action, first[1])
        assert torch.equal(params, first[2])
        assert logits.isnan().all()
    action = decide_cuda(weights, *taps, None, None, cache, None, *GREEDY)[1]
    assert action.tolist() == [0, 0, 0]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.fallbacks) == (27, 6, 3)


@pytest.mark.parametrize("mode", MODES)
def test_slot_out_of_range_touches_no_record(emulation: ModuleType, mode: str) -> None:
    horizon = 2 if mode == "scheduled" else 1
    weights = make_weights(3 * 8, (4,), 6, horizon=horizon, fallback_action=2)
    taps = [torch.randn(4, 8) for _ in range(3)]
    cache = make_cache(mode, 3, 5, horizon)
    slots = torch.tensor([3, 1, -1, 2**40])
    logits, action, params = decide_cuda(weights, *taps, None, None, cache, slots, *GREEDY)
    assert action[[0, 2, 3]].tolist() == [2, 2, 2]
    assert torch.equal(params[0], weights.actions[2])
    assert logits[[0, 2, 3]].isnan().all()
    assert cache.state[:, WORDS["misses"]].tolist() == [0, 1, 0]
    given = torch.randn(4, 6 * horizon)
    features = torch.randn(4, 64) if mode == "adaptive" else None
    action, params = step(given, weights.actions, cache, slots, features, (0.0, 0, 0, 2))
    assert action[[0, 2, 3]].tolist() == [2, 2, 2]
    assert torch.equal(params[3], weights.actions[2])
    assert cache.state[[0, 2], WORDS["misses"]].tolist() == [0, 0]


def step(
    logits: Tensor,
    trees: Tensor,
    cache: ActionCache,
    slots: Tensor | None,
    features: Tensor | None,
    settings: tuple[float, int, int, int],
) -> tuple[Tensor, Tensor]:
    kept = (cache.state, cache.reference, cache.ring, slots, cache.mode)
    return step_cuda(logits, trees, features, *kept, *settings)


def step_on_cpu(
    logits: Tensor,
    trees: Tensor,
    cache: ActionCache,
    slots: Tensor,
    features: Tensor | None,
    settings: tuple[float, int, int, int],
) -> tuple[Tensor, Tensor]:
    action = torch.empty(len(logits), dtype=torch.int32)
    params = torch.empty(len(logits), trees.shape[1], dtype=torch.int32)
    tensors = (logits, trees, features, cache.state, cache.reference, cache.ring, slots, action)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*tensors, params)]
    sizes = (len(logits), *trees.shape, cache.horizon, cache.slots, cache.reference_size or 0)
    C.action_cache_step(*addresses, *sizes, cache.mode, *settings)
    return action, params


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("actions", [1, 7, 33, 1024])
def test_step_agrees_with_the_cpu_bit_for_bit(
    emulation: ModuleType, mode: str, actions: int
) -> None:
    horizon = 3 if mode == "scheduled" else 1
    trees = torch.randint(1, 60, (actions, 3 + actions % 2), dtype=torch.int32)
    device, host = (make_cache(mode, 6, 3, horizon, 50) for _ in range(2))
    features = [torch.randn(4, 50)]
    generator = torch.Generator().manual_seed(3)
    for cycle in range(150):
        logits = torch.randn(4, horizon * actions, generator=generator)
        logits[torch.rand(logits.shape, generator=generator) < 0.2 / actions] = torch.inf
        next_inputs(features, generator)
        compared = features[0].clone() if mode == "adaptive" else None
        slots = torch.randperm(6, generator=generator)[:4]
        emulation.set_order(cycle % 4)
        settings = (0.0, 0, cycle, actions - 1)
        given = step(logits, trees, device, slots, compared, settings)
        wanted = step_on_cpu(logits, trees, host, slots, compared, settings)
        assert torch.equal(given[0], wanted[0])
        assert torch.equal(given[1], wanted[1])
        if mode == "adaptive":
            norms = (cache.state[:, WORDS["reference_norm"]] for cache in (device, host))
            # Sums of 50 squares in another order.
            floats = (norm.view(torch.float32) for norm in norms)
            torch.testing.assert_close(*floats, rtol=1e-5, atol=0, equal_nan=True)
            host.state[:, WORDS["reference_norm"]] = device.state[:, WORDS["reference_norm"]]
            kept = (cache.reference.view(torch.int32) for cache in (device, host))
            assert torch.equal(*kept)
        assert torch.equal(device.state, host.state)
        assert device.ring is None or torch.equal(device.ring, host.ring)
    stats = device.stats()
    assert min(stats.hits, stats.misses, stats.fallbacks) > 0


@pytest.mark.parametrize("actions", [1, 2, 31, 32, 33, 100, 1024])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_draws_invert_the_distribution(
    emulation: ModuleType, actions: int, temperature: float
) -> None:
    sequences, horizon, seed, offset = 40, 3, 2**40 + 17, 2**33 + 5
    trees = torch.randint(1, 60, (actions, 4), dtype=torch.int32)
    logits = torch.randn(sequences, horizon * actions)
    cache = ActionCache(sequences, 1, "scheduled", horizon=horizon)
    action, params = step(logits, trees, cache, None, None, (temperature, seed, offset, 0))
    weights = np.exp(wide(logits).reshape(sequences, horizon, actions) / temperature)
    share = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    uniform = philox_uniform(seed, offset, sequences, horizon).numpy()
    drawn = cache.ring[:, :, 0].numpy()
    clear = np.abs(share - uniform[..., None]).min(-1) > 1e-5
    assert clear.mean() > 0.9  # the rest are so near a step that rounding decides
    expected = np.minimum((share > uniform[..., None]).argmax(-1), actions - 1)
    assert (drawn[clear] == expected[clear]).all()
    assert torch.equal(action, cache.ring[:, 0, 0])
    assert torch.equal(params, trees[action.long()])
    assert torch.equal(cache.ring[:, :, 1:], trees[cache.ring[:, :, 0].long()])
    assert cache.ring.shape[-1] == RING_WORDS


def test_a_tiny_temperature_is_greedy(emulation: ModuleType) -> None:
    logits = torch.randn(5, 40)
    trees = torch.ones(40, 3, dtype=torch.int32)
    action, _ = step(logits, trees, ActionCache(5), None, None, (1e-60, 1, 1, 0))
    assert torch.equal(action, logits.argmax(-1).to(torch.int32))


def test_decisions_draw_by_their_sequence(emulation: ModuleType) -> None:
    weights = make_weights(3 * 8, (4,), 30)
    taps = [torch.randn(19, 8) for _ in range(3)]
    logits, action, _ = decide_cuda(weights, *taps, *[None] * 4, 0.8, 9, 4)
    cache = ActionCache(19)
    again, _ = step(logits, weights.actions, cache, None, None, (0.8, 9, 4, 0))
    assert torch.equal(action, again)
    assert len(action.unique()) > 3


def test_cache_that_does_not_fit(emulation: ModuleType) -> None:
    weights = make_weights(3 * 8, (4,), 6)
    taps = [torch.randn(2, 8) for _ in range(3)]
    wrong = ActionCache(2, 5, "adaptive", reference_size=24)
    with pytest.raises(ValueError, match="reference_size must be 64, got 24"):
        decide_cuda(weights, *taps, None, None, wrong, None, *GREEDY)
    cache = make_cache("adaptive", 2, 5, 1)
    with pytest.raises(ValueError, match="an adaptive cache needs features"):
        step(torch.randn(2, 6), weights.actions, cache, None, None, (0.0, 0, 0, 0))
