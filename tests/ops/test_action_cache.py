"""The cache as a user sees it: reset, invalidate, state, statistics, wrong arguments."""

import pytest
import torch

from eaglerl.ops import ActionCache, action_cache_step, fused_encode

from .policies import make_features, make_modules

TREES = torch.tensor([[2, 0, 1], [3, 1, 2], [9, 2, 4]], dtype=torch.int32)


def logits_for(*actions: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(actions), 3).float()


def test_a_hit_rate_of_nothing_is_zero() -> None:
    assert ActionCache(3).stats().hit_rate == 0


def test_slots_reset_one_by_one() -> None:
    cache = ActionCache(3, 10)
    action_cache_step(logits_for(0, 1, 2), TREES, cache)
    cache.reset([1])
    action, params = action_cache_step(logits_for(2, 2, 0), TREES, cache)
    assert action.tolist() == [0, 2, 2]
    assert params.tolist() == TREES[[0, 2, 2]].tolist()
    assert cache.stats().hits == 2
    cache.reset()
    assert (cache.stats().hits, cache.stats().misses) == (0, 0)


def test_invalidated_slots_decide_anew_and_go_on_counting() -> None:
    cache = ActionCache(2, 10)
    action_cache_step(logits_for(0, 1), TREES, cache)
    cache.invalidate([0])
    action, _ = action_cache_step(logits_for(2, 2), TREES, cache)
    assert action.tolist() == [2, 1]
    assert (cache.stats().hits, cache.stats().misses) == (1, 3)


def test_slots_in_any_order() -> None:
    cache = ActionCache(4, 10)
    action_cache_step(logits_for(1, 2), TREES, cache, slots=torch.tensor([3, 0]))
    action, _ = action_cache_step(logits_for(0, 0, 0), TREES, cache, slots=torch.tensor([0, 1, 3]))
    assert action.tolist() == [2, 0, 1]


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_state_is_taken_over(mode: str) -> None:
    """Two caches, one of which goes on from the other's state, then do the same."""
    horizon = 3 if mode == "scheduled" else 1
    weights = make_modules(horizon=horizon).weights(horizon=horizon)
    options = {"mode": mode, "horizon": horizon, "reference_size": 20, "threshold": 0.99}
    one, other = ActionCache(5, 2, **options), ActionCache(5, 2, **options)
    for seed in range(3):
        fused_encode(*make_features(5, 24, seed), weights, cache=one)
    other.load_state_dict(one.state_dict())
    for seed in range(3, 10):
        taps = make_features(5, 24, seed // 2)
        first = fused_encode(*taps, weights, cache=one)
        second = fused_encode(*taps, weights, cache=other)
        assert torch.equal(first.action, second.action)
    assert torch.equal(one.state, other.state)
    assert one.stats().hits > 0


def test_a_copy_of_the_state_does_not_follow() -> None:
    cache = ActionCache(1, 10)
    copy = cache.state_dict()
    action_cache_step(logits_for(2), TREES, cache)
    assert not torch.equal(copy["state"], cache.state)


def test_the_state_of_another_cache_is_refused() -> None:
    cache = ActionCache(2, 10)
    with pytest.raises(ValueError, match="interval"):
        cache.load_state_dict(ActionCache(2, 9).state_dict())
    with pytest.raises(ValueError, match=r"state must be \(2, 16\), got \(3, 16\)"):
        cache.load_state_dict(ActionCache(3, 10).state_dict())
    with pytest.raises(ValueError, match="the state must be of a cache"):
        cache.load_state_dict({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slots": 0}, "slots must be an int of at least 1, got 0"),
        ({"interval": 0}, "interval must be an int of at least 1"),
        ({"interval": 2.5}, "interval must be an int"),
        ({"mode": "sometimes"}, "mode must be one of"),
        ({"mode": "adaptive", "threshold": 1.5}, r"threshold must be in -1\.\.1"),
        ({"horizon": 2}, 'horizon=2 needs mode "scheduled"'),
        ({"mode": "scheduled", "interval": 2**30, "horizon": 4}, "interval \\* horizon"),
    ],
)
def test_wrong_settings_are_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        ActionCache(**arguments)


def test_wrong_slots_to_reset_are_named() -> None:
    cache = ActionCache(3)
    for slots in ([3], [-1], [0, 5]):
        with pytest.raises(ValueError, match=r"slots must lie in 0\.\.2"):
            cache.reset(slots)
