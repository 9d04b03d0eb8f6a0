"""Interpreted kernels against float64, with the error bound of float32 sums in any order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from eaglerl.kernels._settings import plan_of
from eaglerl.ops import PolicyWeights
from eaglerl.ops._encode_cuda import encode_cuda

from ...ops.encode_model import (
    assert_within,
    make_weights,
    model_features,
    model_logits,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What rounding to a type may change, relative to the number: half the distance of its neighbours,
# but all of it where the interpreter cuts bits off, as it does for bfloat16.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}
# The interpreter takes 0.1 to 2 seconds for an example; shrinking would take minutes.
FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make_features(count: int, k: int, dtype: torch.dtype, layout: str) -> tuple[Tensor, ...]:
    """low, mid and high: apart, side by side in one wider buffer, or as one tensor."""
    if layout == "apart":
        return tuple(torch.randn(count, k).to(dtype) for _ in range(3))
    buffer = torch.randn(count, 3 * k + 5).to(dtype)[:, 1 : 3 * k + 1]
    return (buffer, None, None) if layout == "joined" else tuple(buffer.chunk(3, dim=1))


def check(
    weights: PolicyWeights,
    inputs: tuple[Tensor | None, ...],
    rows: Tensor | None,
    last: Tensor | None,
    return_features: bool = True,
) -> None:
    """Compare one decision, whose action must be the first of its largest logits."""
    parts = [part for part in inputs if part is not None]
    x = torch.cat([part.double() for part in parts], dim=1)
    x = x if rows is None else x[rows]
    features, logits, action, params = encode_cuda(
        weights, *inputs, rows, last, None, None, 0.0, 0, 0, return_features
    )
    if weights.fc_weight is None or not return_features:
        assert features is None
    else:
        assert features.dtype == inputs[0].dtype
        assert_within(features, model_features(x, weights), extra=ROUNDING[features.dtype])
    assert_within(logits, model_logits(x if last is None else x[last], weights))
    assert action.tolist() == logits.view(len(action), -1).argmax(1).tolist()
    assert torch.equal(params, weights.actions[action.long()])


@given(data=st.data())
@FEW
def test_from_taps(data: st.DataObject) -> None:
    """The fused launch: both products, any sizes, types, layouts, norms and numbers of layers."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 10**6)))
    k = draw(st.integers(1, 70))
    weights = make_weights(
        k,
        draw(st.integers(1, 40)),
        tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))),
        draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(DTYPES)),
        norm_chunks=(chunks := draw(st.sampled_from([0, 1, 3]))),
        norm_weight=chunks > 0 and draw(st.booleans()),
        fc_bias=draw(st.booleans()),
        activation=draw(st.sampled_from(["tanh", "relu", "silu"])),
    )
    count = draw(st.integers(1, 20))
    layout = draw(st.sampled_from(["apart", "slices", "joined"]))
    inputs = (*make_features(count, k, draw(st.sampled_from(DTYPES)), layout), None, None)[:3]
    rows = torch.randint(count, (draw(st.integers(1, 20)),)) if draw(st.booleans()) else None
    count = count if rows is None else len(rows)
    last = torch.randint(count, (draw(st.integers(1, 10)),)) if draw(st.booleans()) else None
    check(weights, inputs, rows, last, draw(st.booleans()))


@given(data=st.data())
@FEW
def test_without_fc(data: st.DataObject) -> None:
    """The folded launch, and that of the MLP alone."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 10**6)))
    reads = draw(st.sampled_from(["taps", "features"]))
    k = draw(st.integers(1, 150))
    chunks = draw(st.sampled_from([0, 1, 3])) if reads == "taps" else 0
    weights = make_weights(
        k,
        k,
        tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))),
        draw(st.integers(1, 40)),
        reads=reads,
        dtype=draw(st.sampled_from(DTYPES)),
        norm_chunks=chunks,
        norm_weight=chunks > 0 and draw(st.booleans()),
        activation=draw(st.sampled_from(["tanh", "relu", "silu"])),
    )
    count, dtype = draw(st.integers(1, 20)), draw(st.sampled_from(DTYPES))
    inputs = (torch.randn(count, k).to(dtype), None, None)
    if reads == "taps":
        layout = draw(st.sampled_from(["apart", "slices", "joined"]))
        inputs = (*make_features(count, k, dtype, layout), None, None)[:3]
    rows = torch.randint(count, (draw(st.integers(1, 20)),)) if draw(st.booleans()) else None
    count = count if rows is None else len(rows)
    last = torch.randint(count, (draw(st.integers(1, 10)),)) if draw(st.booleans()) else None
    check(weights, inputs, rows, last)


@pytest.mark.parametrize("rows", [1, 2, 4, 16, 65])
@pytest.mark.parametrize("types", [(torch.float32, torch.bfloat16), (torch.bfloat16,) * 2])
def test_every_tile_of_rows(rows: int, types: tuple[torch.dtype, torch.dtype]) -> None:
    """By vectors and by matrices, whose three terms of bfloat16 lose nothing of float32."""
    weights = make_weights(33, 20, (9,), 7, dtype=types[1], norm_chunks=3)
    check(weights, make_features(rows, 33, types[0], "apart"), None, None)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("reads", "hidden", "dtype"),
    [
        # One sequence's activations stay in registers where a tile holds the widest layer.
        ("fc", (128, 128), torch.bfloat16),
        ("taps", (128, 20, 70), torch.float32),
        ("features", (5,), torch.float16),
        # They do not.
        ("fc", (128, 128), torch.float32),
        ("taps", (150, 20), torch.bfloat16),
    ],
)
def test_layers_of_every_width(
    reads: str, hidden: tuple[int, ...], dtype: torch.dtype, rows: int
) -> None:
    """With more actions than a tile of the last layer, and, from the FC, too few for a tile."""
    weights = make_weights(9, 21, hidden, 203 if reads == "taps" else 7, reads=reads, dtype=dtype)
    inputs = make_features(rows, 9, dtype, "apart")
    if reads == "features":
        inputs = torch.randn(rows, 21), None, None
    check(weights, inputs, None, None)


@pytest.mark.parametrize("rows", [1, 2])
def test_partial_sums_of_many_programs_are_gathered_first(rows: int) -> None:
    weights = make_weights(6, 142, (130,), 5)
    plan = plan_of(weights, torch.empty(1), rows, rows, None, False, True)
    assert (plan.programs, plan.gathered, plan.parts) == (36, 8, 5)
    inputs = make_features(3, 6, torch.float32, "apart")
    check(weights, inputs, torch.arange(rows), None)


@pytest.mark.parametrize("reads", ["fc", "taps"])
def test_weights_that_change_in_place_change_the_next_decision(reads: str) -> None:
    weights = make_weights(9, 11, (20, 30), 7, reads=reads)
    inputs = make_features(1, 9, torch.float32, "apart")
    check(weights, inputs, None, None)
    for tensor in (*weights.hidden_weights, *weights.hidden_biases, weights.output_weight):
        tensor.mul_(-0.5)
    check(weights, inputs, None, None)


def test_folding_is_within_the_bound_of_both_forms() -> None:
    weights = make_weights(48, 40, (16,), 6, norm_chunks=3, norm_weight=True)
    taps = make_features(4, 48, torch.float32, "apart")
    given, folded = (
        encode_cuda(w, *taps, None, None, None, None, 0.0, 0, 0, False)[1]
        for w in (weights, weights.fold())
    )
    x = torch.cat(taps, dim=1).double()
    expected = model_logits(x, weights)
    # The product that was folded is rounded once more, to the weights' float32.
    expected.error += model_logits(x, weights.fold()).error
    expected.error *= 2
    assert_within(given, expected)
    assert_within(folded, expected)


@pytest.mark.parametrize("return_features", [True, False])
def test_rows_lie_further_apart_than_32_bits_count(return_features: bool) -> None:
    k, distance = 16, 2**30
    # Untouched pages of so large a tensor take no memory.
    storage = torch.UntypedStorage(2 * (2 * distance + k))
    taps = torch.tensor([], dtype=torch.float16).set_(storage, 0, (3, k), (distance, 1))
    taps[0], taps[2] = torch.randn(k), torch.randn(k)
    weights = make_weights(k, 8, (6,), 4)
    rows = torch.tensor([2, 0])
    dense = taps[rows].double()
    _, logits, _, _ = encode_cuda(
        weights, taps, taps, taps, rows, None, None, None, 0.0, 0, 0, return_features
    )
    assert_within(logits, model_logits(torch.cat([dense] * 3, dim=1), weights))
