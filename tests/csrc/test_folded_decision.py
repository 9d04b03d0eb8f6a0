"""The folded decision's CUDA kernel, its body run on the host, against float64 numpy."""

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from eaglerl.ops import _encode_cuda
from eaglerl.ops._decision_cuda import decide_cuda
from eaglerl.ops._encode_cuda import action_cache_step_cuda, encode_cuda
from eaglerl.ops.action_cache import ActionCache
from eaglerl.ops.policy_weights import PolicyWeights

from .reference import ACTIVATIONS, logits_with_bound, wide

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GREEDY = (0.0, 0, 0)
# Every example is one decision of independent numbers: nothing is left over from one to the next.
RELAXED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def unaligned(tensor: Tensor, places: int) -> Tensor:
    """Return a copy whose first element lies some places after an aligned one, NaN around it."""
    buffer = torch.full((tensor.numel() + 64,), float("nan"), dtype=tensor.dtype)
    start = -buffer.data_ptr() % 16 // tensor.itemsize + places
    return buffer[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


def make_weights(
    width: int,
    hidden: tuple[int, ...],
    actions: int,
    dtype: torch.dtype = torch.float32,
    *,
    places: int = 0,
    horizon: int = 1,
    columns: int = 3,
    **settings: object,
) -> PolicyWeights:
    widths = (width, *hidden, horizon * actions)
    matrices = [
        unaligned((torch.randn(out, inner) / inner**0.5).to(dtype), places)
        for inner, out in itertools.pairwise(widths)
    ]
    biases = [torch.randn(out) for out in widths[1:]]
    settings.setdefault("mlp_input", "taps")
    return PolicyWeights(
        hidden_weights=tuple(matrices[:-1]),
        hidden_biases=tuple(biases[:-1]),
        output_weight=matrices[-1],
        output_bias=biases[-1],
        actions=torch.randint(1, 60, (actions, columns), dtype=torch.int32),
        horizon=horizon,
        **settings,
    )


def make_features(rows: int, k: int, dtype: torch.dtype) -> list[Tensor]:
    """Three slices of wider rows, of other distances each."""
    return [torch.randn(rows, k + 3 * i + 1).to(dtype)[:, i : i + k] for i in range(3)]


def check(weights: PolicyWeights, x: np.ndarray, decided: tuple[Tensor, ...]) -> None:
    logits, action, params = decided
    expected, bound = logits_with_bound(weights, x)
    assert np.isfinite(bound).all()
    assert (np.abs(wide(logits) - expected) <= bound).all()
    chosen = logits[:, : weights.num_actions].argmax(-1)
    assert torch.equal(action, chosen.to(torch.int32))
    assert torch.equal(params, weights.actions[chosen])


@RELAXED
@given(
    k=st.sampled_from([1, 5, 8, 64, 77, 100, 192, 321]),
    hidden=st.lists(st.sampled_from([1, 7, 16, 33, 64]), min_size=1, max_size=3),
    actions=st.sampled_from([1, 2, 7, 32, 50]),
    sequences=st.sampled_from([1, 2, 8, 9]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    places=st.sampled_from([0, 1, 2, 3]),
    norm=st.sampled_from([(0, False), (1, False), (3, False), (1, True), (3, True)]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    order=st.integers(0, 5),
)
def test_logits_match_float64(
    emulation: ModuleType,
    k: int,
    hidden: list[int],
    actions: int,
    sequences: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    places: int,
    norm: tuple[int, bool],
    activation: str,
    order: int,
) -> None:
    chunks, scaled = norm
    weights = make_weights(
        3 * k,
        tuple(hidden),
        actions,
        dtypes[0],
        places=places,
        norm_chunks=chunks,
        norm_weight=torch.rand(3 * k) + 0.5 if scaled else None,
        activation=activation,
    )
    taps = make_features(sequences, k, dtypes[1])
    emulation.set_order(order)
    decided = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    check(weights, wide(torch.cat(taps, -1)), decided)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sequences", [1, 3])
def test_real_width(emulation: ModuleType, dtype: torch.dtype, sequences: int) -> None:
    # Several tiles along each of the taps, the last of them not full.
    weights = make_weights(3 * 576, (64, 64), 53, dtype, norm_chunks=3)
    taps = make_features(sequences, 576, dtype)
    decided = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    check(weights, wide(torch.cat(taps, -1)), decided)


@pytest.mark.parametrize("sequences", [1, 10])
def test_features_that_are_reduced_already(emulation: ModuleType, sequences: int) -> None:
    weights = make_weights(300, (64,), 40, mlp_input="features")
    features = torch.randn(sequences, 310)[:, 3:303]
    decided = decide_cuda(weights, features, None, None, None, None, None, None, *GREEDY)
    check(weights, wide(features), decided)


def test_taps_in_one_tensor(emulation: ModuleType) -> None:
    weights = make_weights(3 * 37, (16,), 5, torch.bfloat16, norm_chunks=3)
    taps = make_features(4, 37, torch.bfloat16)
    apart = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    whole = torch.cat(taps, -1)
    together = decide_cuda(weights, whole, None, None, None, None, None, None, *GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize(("sequences", "hidden"), [(9, (700, 650)), (1, (5201, 9))])
def test_wide_layers_do_not_fit_into_shared_memory(
    emulation: ModuleType, sequences: int, hidden: tuple[int, ...]
) -> None:
    weights = make_weights(3 * 16, hidden, 30, activation="relu")
    taps = make_features(sequences, 16, torch.float32)
    decided = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    check(weights, wide(torch.cat(taps, -1)), decided)


def test_many_sequences(emulation: ModuleType) -> None:
    weights = make_weights(3 * 64, (64,), 30, torch.float16)
    taps = make_features(1024, 64, torch.float16)
    decided = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    check(weights, wide(torch.cat(taps, -1)), decided)


@pytest.mark.parametrize("sequences", [1, 5])
def test_rows_and_last(emulation: ModuleType, sequences: int) -> None:
    weights = make_weights(3 * 20, (16,), 6)
    taps = make_features(30, 20, torch.float32)
    rows = torch.randperm(30)[:12]
    last = torch.randperm(12)[:sequences]
    x = wide(torch.cat(taps, -1))
    check(
        weights,
        x[rows[last]],
        decide_cuda(weights, *taps, rows, last, None, None, *GREEDY),
    )
    check(weights, x[last], decide_cuda(weights, *taps, None, last, None, None, *GREEDY))
    check(weights, x[rows], decide_cuda(weights, *taps, rows, None, None, None, *GREEDY))


def test_results_do_not_depend_on_the_order_of_threads_and_blocks(emulation: ModuleType) -> None:
    weights = make_weights(3 * 576, (64, 32), 70, torch.bfloat16, norm_chunks=3)
    taps = make_features(10, 576, torch.bfloat16)
    results = []
    for order in range(6):
        emulation.set_order(order)
        results.append(decide_cuda(weights, *taps, None, None, None, None, 0.7, 5, 6))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_launch(emulation: ModuleType) -> None:
    weights = make_weights(3 * 50, (16,), 6)
    before = emulation.launches()
    decide_cuda(weights, *make_features(20, 50, torch.float32), None, None, None, None, *GREEDY)
    assert emulation.launches() == before + 1


def test_no_sequences(emulation: ModuleType) -> None:
    weights = make_weights(3 * 5, (4,), 6)
    taps = make_features(0, 5, torch.float32)
    logits, action, params = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    assert (logits.shape, action.shape, params.shape) == ((0, 6), (0,), (0, 3))


def test_index_out_of_range_gives_the_fallback(emulation: ModuleType) -> None:
    weights = make_weights(3 * 5, (4,), 6, fallback_action=4)
    taps = make_features(3, 5, torch.float32)
    rows = torch.tensor([0, 3, -1, 2])
    logits, action, params = decide_cuda(weights, *taps, rows, None, None, None, *GREEDY)
    assert logits[[1, 2]].isnan().all()
    assert action[[1, 2]].tolist() == [4, 4]
    assert torch.equal(params[1], weights.actions[4])
    assert logits[[0, 3]].isfinite().all()
    last = torch.tensor([1, 4, -1])
    action = decide_cuda(weights, *taps, rows[[0, 3]], last, None, None, *GREEDY)[1]
    assert action[1:].tolist() == [4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_features_that_are_not_finite(emulation: ModuleType, value: float, activation: str) -> None:
    weights = make_weights(3 * 5, (4,), 6, fallback_action=3, activation=activation)
    taps = make_features(9, 5, torch.float32)
    taps[1][7, 2] = value
    logits, action, _ = decide_cuda(weights, *taps, None, None, None, None, *GREEDY)
    with np.errstate(invalid="ignore"):
        expected, _ = logits_with_bound(weights, wide(torch.cat(taps, -1))[[7]])
    assert torch.equal(logits[7].isfinite().all(), torch.tensor(np.isfinite(expected).all()))
    if value != value:
        assert action[7] == 3
    others = [row for row in range(9) if row != 7]
    assert logits[others].isfinite().all()


def test_first_of_equal_logits_wins(emulation: ModuleType) -> None:
    weights = make_weights(3 * 5, (4,), 70)
    weights.output_weight.zero_()
    weights.output_bias.fill_(1.0)
    weights.output_bias[[0, 1, 2, 66]] = 0.5
    weights.output_bias[[32, 31, 64]] = 2.0
    action = decide_cuda(weights, *make_features(2, 5, torch.float32), *[None] * 4, *GREEDY)[1]
    assert action.tolist() == [31, 31]


def test_stands_in_where_triton_is_missing(
    emulation: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encode_cuda, "has_triton", lambda: False)
    taps = make_features(2, 5, torch.float32)
    before = emulation.launches()
    for kind, inputs in (("taps", taps), ("features", [torch.cat(taps, -1), None, None])):
        weights = make_weights(15, (4,), 6, mlp_input=kind)
        features, *decided = encode_cuda(weights, *inputs, None, None, None, None, *GREEDY, False)
        assert features is None
        check(weights, wide(torch.cat(taps, -1)), tuple(decided))
    cache = ActionCache(2)
    logits, trees = torch.randn(2, 6), weights.actions
    action, _ = action_cache_step_cuda(logits, trees, None, cache.state, *[None] * 3, 0, *GREEDY, 0)
    assert torch.equal(action, logits.argmax(-1).to(torch.int32))
    assert emulation.launches() == before + 3


def test_arguments_that_the_kernels_do_not_take(emulation: ModuleType) -> None:
    taps = make_features(1, 5, torch.float32)
    deep = make_weights(15, (4,) * 32, 6)
    with pytest.raises(ValueError, match=r"weights must have 1 to 31 hidden layers .* got 32"):
        decide_cuda(deep, *taps, None, None, None, None, *GREEDY)
    features = make_weights(15, (4,), 6, mlp_input="features")
    encoding = PolicyWeights(
        **{name: getattr(features, name) for name in features.__dataclass_fields__}
        | {"fc_weight": torch.ones(15, 15)}
    )
    with pytest.raises(ValueError, match=r"weights must have no fc_weight .*fold\(\)"):
        decide_cuda(encoding, *taps, None, None, None, None, *GREEDY)
