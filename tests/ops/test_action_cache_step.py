"""A step of the cache from logits: what is kept, drawn, compared and scheduled."""

import pytest
import torch
from scipy.stats import chisquare

from eaglerl.ops import ActionCache, action_cache_step
from eaglerl.ops.action_cache import WORDS

TREES = torch.tensor([[2, 0, 1], [3, 1, 2], [9, 2, 4]], dtype=torch.int32)
# The same trees, and tokens to look up.
WITH_LOOKUP = torch.cat((TREES, torch.tensor([[0], [7], [64]], dtype=torch.int32)), 1)


def logits_for(*actions: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(actions), 3).float()


def test_an_action_is_kept_for_its_interval() -> None:
    cache = ActionCache(1, 3)
    actions = [
        int(action_cache_step(logits_for(a), TREES, cache)[0]) for a in (2, 1, 0, 0, 1, 2, 1)
    ]
    assert actions == [2, 2, 2, 0, 0, 0, 1]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.fallbacks) == (4, 3, 0)
    assert stats.hit_rate == 4 / 7


def test_an_interval_of_one_keeps_nothing() -> None:
    cache = ActionCache(1, 1)
    actions = [int(action_cache_step(logits_for(a), TREES, cache)[0]) for a in (2, 1, 0, 1)]
    assert actions == [2, 1, 0, 1]
    assert cache.stats().hit_rate == 0


def test_a_schedule_is_followed_window_by_window() -> None:
    cache = ActionCache(1, 2, "scheduled", horizon=3)
    plan = logits_for(2, 0, 1).view(1, 9)
    other = logits_for(1, 1, 2).view(1, 9)
    actions = []
    for logits in (plan, *[other] * 8):
        action, params = action_cache_step(logits, TREES, cache)
        actions.append(int(action))
        assert params.tolist() == TREES[action].tolist()
    assert actions == [2, 2, 0, 0, 1, 1, 1, 1, 1]
    assert (cache.stats().hits, cache.stats().misses) == (7, 2)


def test_a_cache_keeps_what_is_looked_up() -> None:
    """In records and in the ring; a table without the column leaves 0 there."""
    for mode in ("fixed", "scheduled"):
        cache = ActionCache(2, 2, mode)
        for table, looked_up in ((WITH_LOOKUP, 64), (TREES, 0)):
            expected = [*TREES[2].tolist(), looked_up]
            cache.reset()
            for wanted in (2, 0):  # the second step is a hit
                action, params = action_cache_step(logits_for(wanted, 2), table, cache)
                assert action.tolist() == [2, 2]
                assert params.tolist() == table[[2, 2]].tolist()
            first = WORDS["total_tokens"]
            assert cache.state[:, first : first + 4].tolist() == [expected] * 2
            if cache.ring is not None:
                assert cache.ring[:, 0].tolist() == [[2, *expected]] * 2
            assert cache.stats().hits == 2


@pytest.mark.parametrize("columns", [2, 5])
def test_other_columns_are_refused(columns: int) -> None:
    table, cache = torch.ones(3, columns, dtype=torch.int32), ActionCache(1)
    message = rf"actions must be \(1 to 1024, 3 or 4\), got \(3, {columns}\)"
    with pytest.raises(ValueError, match=message):
        action_cache_step(logits_for(1), table, cache)
    assert cache.stats().misses == 0


def test_an_adaptive_step_compares_features() -> None:
    cache = ActionCache(1, 10, "adaptive", threshold=0.8, reference_size=3)
    steps = [
        ([1.0, 0, 0], 2),
        ([5.0, 1, 0], 1),
        ([0.0, 1, 0], 1),
        ([0.0, 0, 0], 0),
        ([0.0, 2, 0], 2),
    ]
    actions = [
        int(action_cache_step(logits_for(a), TREES, cache, features=torch.tensor([f]))[0])
        for f, a in steps
    ]
    # The second resembles the first; nothing resembles zeros, nor do they resemble anything.
    assert actions == [2, 2, 1, 0, 2]


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.8])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
def test_what_is_not_finite_resembles_nothing(threshold: float, value: float) -> None:
    """Nor does what is so large that its norm is not finite; 3e38 squared is not."""
    cache = ActionCache(1, 10, "adaptive", threshold=threshold, reference_size=2)
    rows = [[1.0, 0.0], [value, 0.0], [value, 0.0], [1.0, 0.0], [1.0, 0.0]]
    for row in rows:
        action_cache_step(logits_for(1), TREES, cache, features=torch.tensor([row]))
    assert (cache.stats().hits, cache.stats().misses) == (1, 4)


def test_draws_follow_the_softmax_and_repeat() -> None:
    logits = torch.tensor([[0.3, -0.5, 1.1]]).expand(500, 3).contiguous()
    counts = torch.zeros(3)
    for offset in range(40):
        cache = ActionCache(500, 1)
        action, _ = action_cache_step(logits, TREES, cache, temperature=0.7, seed=5, offset=offset)
        again, _ = action_cache_step(logits, TREES, cache, temperature=0.7, seed=5, offset=offset)
        assert torch.equal(action, again)
        counts += torch.bincount(action, minlength=3)
    expected = torch.softmax(logits[0].double() / 0.7, -1) * counts.sum()
    assert chisquare(counts, expected).pvalue > 0.01


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_opcheck(mode: str) -> None:
    horizon = 3 if mode == "scheduled" else 1
    cache = ActionCache(5, 2, mode, horizon=horizon, reference_size=20)
    features = torch.randn(5, 20) if mode == "adaptive" else None
    kept = (cache.state, cache.reference, cache.ring, None, cache.mode)
    table = TREES if mode == "fixed" else WITH_LOOKUP
    arguments = (torch.randn(5, 3 * horizon), table, features, *kept, 0.0, 0, 0, 0)
    torch.library.opcheck(torch.ops.eaglerl.action_cache_step.default, arguments)
