"""Wrong arguments of the policy's ops are named, before anything has changed."""

from collections.abc import Callable

import pytest
import torch

from eaglerl.ops import ActionCache, action_cache_step, fused_encode, policy_mlp

from .policies import make_features, make_modules

K = 24


def wrong(name: str, call: Callable, error: type[Exception], message: str):
    return pytest.param(call, error, message, id=name)


TAPS = make_features(5, K)
INT = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        wrong(
            "one tap",
            lambda w, c: fused_encode(TAPS[0], TAPS[1], None, w),
            ValueError,
            "mid and high must be given together",
        ),
        wrong(
            "width",
            lambda w, c: fused_encode(*make_features(5, 23), w),
            ValueError,
            "low must have 24 columns",
        ),
        wrong(
            "joined width",
            lambda w, c: fused_encode(torch.ones(5, 71), None, None, w),
            ValueError,
            "72 or 20 columns",
        ),
        wrong(
            "rows differ",
            lambda w, c: fused_encode(TAPS[0], TAPS[1][:4], TAPS[2], w),
            ValueError,
            "mid must have the rows and dtype of low",
        ),
        wrong(
            "dtypes differ",
            lambda w, c: fused_encode(TAPS[0], TAPS[1].half(), TAPS[2], w),
            ValueError,
            "mid must have the rows and dtype",
        ),
        wrong(
            "int taps",
            lambda w, c: fused_encode(TAPS[0].int(), TAPS[1], TAPS[2], w),
            TypeError,
            "low must be float32, bfloat16 or float16",
        ),
        wrong(
            "list",
            lambda w, c: fused_encode([1.0], TAPS[1], TAPS[2], w),
            TypeError,
            "low must be a tensor",
        ),
        wrong(
            "axes",
            lambda w, c: fused_encode(TAPS[0][0], TAPS[1][0], TAPS[2][0], w),
            ValueError,
            "low must have 2 axes",
        ),
        wrong(
            "columns apart",
            lambda w, c: fused_encode(torch.ones(K, 5).T, TAPS[1], TAPS[2], w),
            ValueError,
            "low must have contiguous rows",
        ),
        wrong(
            "device",
            lambda w, c: fused_encode(*(t.to("meta") for t in TAPS), w),
            ValueError,
            "low must be on cpu",
        ),
        wrong(
            "too many rows",
            lambda w, c: fused_encode(*make_features(1025, K), w),
            ValueError,
            "at most 1024 rows",
        ),
        wrong(
            "rows dtype",
            lambda w, c: fused_encode(*TAPS, w, rows=INT.int()),
            TypeError,
            "rows must be an int64 tensor",
        ),
        wrong(
            "rows range",
            lambda w, c: fused_encode(*TAPS, w, rows=torch.tensor([5])),
            ValueError,
            "rows",
        ),
        wrong(
            "negative row",
            lambda w, c: fused_encode(*TAPS, w, rows=torch.tensor([-1])),
            ValueError,
            "rows",
        ),
        wrong(
            "last range",
            lambda w, c: fused_encode(*TAPS, w, rows=INT, last=torch.tensor([2])),
            ValueError,
            "last",
        ),
        wrong(
            "temperature",
            lambda w, c: fused_encode(*TAPS, w, temperature=-1.0),
            ValueError,
            "temperature must be 0",
        ),
        wrong(
            "seed", lambda w, c: fused_encode(*TAPS, w, seed=-1), ValueError, "seed must be an int"
        ),
        wrong(
            "offset",
            lambda w, c: fused_encode(*TAPS, w, offset=2**63),
            ValueError,
            "offset must be an int",
        ),
        wrong(
            "slots alone",
            lambda w, c: fused_encode(*TAPS, w, slots=INT),
            ValueError,
            "slots needs cache",
        ),
        wrong(
            "slot range",
            lambda w, c: fused_encode(*TAPS, w, rows=INT, cache=c, slots=torch.tensor([0, 5])),
            ValueError,
            "slot",
        ),
        wrong(
            "slot twice",
            lambda w, c: fused_encode(*TAPS, w, rows=INT, cache=c, slots=torch.tensor([1, 1])),
            ValueError,
            "slots|twice",
        ),
        wrong(
            "slot count",
            lambda w, c: fused_encode(*TAPS, w, cache=c, slots=INT),
            ValueError,
            "slots must name 5 slots, got 2",
        ),
        wrong(
            "few slots",
            lambda w, c: fused_encode(*TAPS, w, cache=ActionCache(4)),
            ValueError,
            "a slot for each of 5",
        ),
        wrong(
            "horizon",
            lambda w, c: fused_encode(*TAPS, w, cache=ActionCache(5, 2, "scheduled", horizon=2)),
            ValueError,
            "horizon 1",
        ),
        wrong(
            "reference",
            lambda w, c: fused_encode(*TAPS, w, cache=ActionCache(5, 2, "adaptive")),
            ValueError,
            "reference_size 20",
        ),
        wrong(
            "float64",
            lambda w, c: fused_encode(*TAPS, w.to(dtype=torch.float64)),
            TypeError,
            "got float64",
        ),
        wrong(
            "mlp of taps",
            lambda w, c: policy_mlp(torch.ones(5, 72), w.fold()),
            ValueError,
            'mlp_input "features"',
        ),
        wrong(
            "mlp width",
            lambda w, c: policy_mlp(torch.ones(5, 19), w),
            ValueError,
            "low must have 20 columns",
        ),
        wrong(
            "logits width",
            lambda w, c: action_cache_step(torch.ones(5, 6), w.actions, c),
            ValueError,
            "horizon \\* actions",
        ),
        wrong(
            "logits dtype",
            lambda w, c: action_cache_step(torch.ones(5, 7).double(), w.actions, c),
            TypeError,
            "logits must be a torch.float32",
        ),
        wrong(
            "fallback",
            lambda w, c: action_cache_step(torch.ones(5, 7), w.actions, c, fallback_action=7),
            ValueError,
            r"fallback_action must be in 0\.\.6",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message) -> None:
    weights = make_modules(K).weights()
    cache = ActionCache(5)
    before = cache.state.clone()
    with pytest.raises(error, match=message):
        call(weights, cache)
    assert torch.equal(cache.state, before)
