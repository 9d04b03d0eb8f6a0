"""The CPU path of the policy's decision against float64, on every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eaglerl._ext import C
from eaglerl.ops import ActionCache, PolicyWeights
from eaglerl.ops import _encode_cpu as encode_cpu_module
from eaglerl.ops._encode_cpu import encode_cpu

from .encode_model import assert_within, make_weights, model_features, model_logits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Half the distance of a type's numbers around 1: what rounding to it may change.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def encode(
    weights: PolicyWeights,
    low: torch.Tensor,
    mid: torch.Tensor | None = None,
    high: torch.Tensor | None = None,
    *,
    rows: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
    cache: ActionCache | None = None,
    slots: torch.Tensor | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    return_features: bool = True,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
    return encode_cpu(
        weights, low, mid, high, rows, last, cache, slots, temperature, seed, offset,
        return_features,
    )  # fmt: skip


def strided(rows: int, columns: int, padding: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a matrix whose rows lie apart and start anywhere."""
    return torch.randn(rows, columns + padding).to(dtype)[:, padding // 2 :][:, :columns]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), seed=st.integers(0, 2**20))
def test_equals_float64(isa: str, data: st.DataObject, seed: int) -> None:
    torch.manual_seed(seed)
    reads = data.draw(st.sampled_from(["fc", "taps", "features"]))
    norm_chunks = data.draw(st.sampled_from([0, 1, 3])) if reads != "features" else 0
    k, width = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 70))
    weights = make_weights(
        k,
        width,
        tuple(data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=3))),
        data.draw(st.integers(1, 40)),
        reads=reads,
        dtype=data.draw(st.sampled_from(DTYPES)),
        norm_chunks=norm_chunks,
        norm_weight=norm_chunks > 0 and data.draw(st.booleans()),
        fc_bias=data.draw(st.booleans()),
        activation=data.draw(st.sampled_from(["tanh", "relu", "silu"])),
        horizon=data.draw(st.integers(1, 3)),
        columns=data.draw(st.integers(3, 4)),
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    available = data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 70, 150, 300]))
    columns = width if reads == "features" else 3 * k
    x = strided(available, columns, data.draw(st.integers(0, 3)), dtype)
    parts = (x, None, None)
    if reads != "features" and data.draw(st.booleans()):
        parts = tuple(strided(available, k, padding, dtype) for padding in (0, 3, 5))
        x = torch.cat(parts, 1)
    rows = last = None
    if available and data.draw(st.booleans()):
        rows = torch.randint(available, (data.draw(st.integers(0, 12)),))
        x = x[rows]
    if len(x) and data.draw(st.booleans()):
        last = torch.randint(len(x), (data.draw(st.integers(0, 5)),))
    wanted = data.draw(st.booleans())
    features, logits, action, params = encode(
        weights, *parts, rows=rows, last=last, return_features=wanted
    )
    assert_within(logits, model_logits(x if last is None else x[last], weights))
    if wanted and reads == "fc":
        assert features.dtype == dtype
        # A half's subnormal numbers are 2**-24 apart.
        expected = model_features(x, weights)
        expected.error = expected.error * (1 + ROUNDING[dtype]) + 2.0**-25
        assert_within(features, expected, extra=ROUNDING[dtype])
    else:
        assert features is None
    first = logits[:, : weights.num_actions].numpy()
    assert action.dtype == params.dtype == torch.int32
    np.testing.assert_array_equal(action.numpy(), first.argmax(1))
    np.testing.assert_array_equal(params.numpy(), weights.actions.numpy()[first.argmax(1)])


@pytest.mark.parametrize("hidden", [(64, 64), (128, 128)])
def test_policies_of_the_sizes_that_are_used(isa: str, hidden: tuple[int, ...]) -> None:
    weights = make_weights(576, 576, hidden, 177, norm_chunks=3, norm_weight=True)
    x = torch.randn(7, 3 * 576) * torch.tensor([3.0, 6.0, 20.0]).repeat_interleave(576)
    features, logits, _, _ = encode(weights, x, rows=torch.arange(5), last=torch.tensor([4]))
    assert_within(features, model_features(x[:5], weights))
    assert_within(logits, model_logits(x[4:5], weights))


@pytest.mark.parametrize("k", [576, 2048, 4096])
def test_folded_weights_stay_within_their_bound(k: int) -> None:
    weights = make_weights(k, 64, (32,), 9, norm_chunks=3, norm_weight=True, activation="silu")
    folded, x = weights.fold(), torch.randn(3, 3 * k)
    _, logits, _, _ = encode(folded, x)
    assert_within(logits, model_logits(x, folded))
    # Folding itself rounds each product once, a relative 2**-24 of it.
    normalised = np.abs(model_inputs(x, weights))
    product = np.abs(folded.hidden_weights[0].double().numpy())
    expected = model_logits(x, weights)
    output = wide_abs(weights.output_weight)
    expected.error += 1.1 * 2.0**-24 * (normalised @ product.T) @ output.T
    assert_within(logits, expected)


def wide_abs(tensor: torch.Tensor) -> np.ndarray:
    return np.abs(tensor.double().numpy())


def model_inputs(x: torch.Tensor, weights: PolicyWeights) -> np.ndarray:
    """Return normalised features without the norm's weight, which folding moved away."""
    chunks = x.double().numpy().reshape(len(x), 3, -1)
    return (chunks / np.sqrt((chunks**2).mean(-1, keepdims=True) + weights.eps)).reshape(len(x), -1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_weight_is_read_exactly(isa: str, dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = bits[torch.isfinite(bits)]
    weights = make_weights(1, len(finite), (1,), 1, dtype=dtype, fc_bias=False)
    weights.fc_weight.zero_()[:, 0] = finite
    features, _, _, _ = encode(weights, torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.equal(features[0], finite.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_rounded_as_torch_rounds(isa: str, dtype: torch.dtype) -> None:
    random = torch.randint(-(2**31), 2**31 - 1, (30_000,), dtype=torch.int32).view(torch.float32)
    around = torch.tensor([65504.0, 65519.9, 65520.0, 65536.0, 2**-14, 2**-24, 2**-25, 3 * 2**-26])
    ties = (torch.arange(4096) * 2.0 + 1) * 2.0**-13
    values = torch.cat((random, around, -around, ties, -ties))
    values = values[torch.isfinite(values)]
    weights = make_weights(1, len(values), (1,), 1, fc_bias=False)
    weights.fc_weight.zero_()[:, 0] = values
    features, _, _, _ = encode(weights, torch.tensor([[1.0, 0.0, 0.0]], dtype=dtype))
    assert torch.equal(features[0], values.to(dtype))


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_activations_over_the_range_of_floats(isa: str, activation: str) -> None:
    size = 1024
    sizes = torch.logspace(-30, 2.3, size * 4).reshape(4, size)
    for values in torch.cat((sizes, -sizes)):
        weights = make_weights(1, 1, (size,), size, reads="features", activation=activation)
        weights.hidden_weights[0][:, 0] = values
        weights.hidden_biases[0].zero_()
        weights.output_weight.copy_(torch.eye(size))
        weights.output_bias.zero_()
        _, logits, _, _ = encode(weights, torch.ones(1, 1))
        x = values.double()
        expected = {"tanh": x.tanh(), "relu": x.relu(), "silu": x * torch.sigmoid(x)}[activation]
        # As in encode_model: 8 units of the larger of what goes in and what comes out, for tanh 4
        # units of the result.
        scale = expected.abs() * 4 if activation == "tanh" else x.abs() * 8
        assert ((logits[0].double() - expected).abs() <= scale * 2.0**-24).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_values_that_are_not_finite(isa: str, value: float, activation: str) -> None:
    weights = make_weights(12, 10, (8,), 5, activation=activation, fallback_action=3)
    x = torch.randn(3, 36)
    x[1, 17] = value
    expected = encode(weights, x[[0, 2]])
    features, logits, action, params = encode(weights, x)
    for actual, wanted in zip((features, logits, action, params), expected, strict=True):
        assert torch.equal(actual[[0, 2]], wanted)
    assert not torch.isfinite(features[1]).any()
    assert not torch.isfinite(logits[1]).all()
    assert action[1] == 3
    assert torch.equal(params[1], weights.actions[3])


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_an_infinite_feature_saturates_tanh(isa: str, value: float) -> None:
    weights = make_weights(1, 9, (8,), 5, reads="features", fallback_action=3)
    x = torch.randn(1, 9)
    x[0, 4] = value
    _, logits, action, _ = encode(weights, x)
    hidden = torch.sign(weights.hidden_weights[0][:, 4] * value)
    expected = weights.output_weight @ hidden + weights.output_bias
    torch.testing.assert_close(logits[0], expected, rtol=1e-5, atol=1e-5)
    assert action[0] == expected.argmax()


def identity_policy(actions: int, horizon: int = 1) -> PolicyWeights:
    """Return a policy whose logits are its features, where they are not negative."""
    width = actions * horizon
    weights = make_weights(
        1, width, (width,), actions, reads="features", activation="relu", horizon=horizon
    )
    weights.hidden_weights[0].copy_(torch.eye(width))
    weights.hidden_biases[0].zero_()
    weights.output_weight.copy_(torch.eye(width))
    weights.output_bias.zero_()
    return weights


@pytest.mark.parametrize("actions", [1, 2, 3, 7, 8, 9, 16, 17, 177, 1024])
def test_equal_logits_give_the_lowest_index(isa: str, actions: int) -> None:
    weights = identity_policy(actions)
    for index in {0, actions // 2, actions - 1}:
        x = torch.rand(1, actions)
        x[0, index:] = 1.0
        assert encode(weights, x)[2].tolist() == [index]


def philox_uniform(seed: int, offset: int, sequence: int, window: int) -> float:
    """Philox-4x32-10 with Python's integers, from the paper."""
    counter = [offset % 2**32, offset >> 32, sequence, window]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(second >> 32) ^ counter[1] ^ key[0], second % 2**32,
                   (first >> 32) ^ counter[3] ^ key[1], first % 2**32]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return (counter[0] >> 8) * 2.0**-24


def test_philox_known_answers() -> None:
    """The vectors of Random123's distribution, file kat_vectors."""
    assert C.philox4x32_10([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert C.philox4x32_10([ones] * 4, [ones] * 2) == [
        0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD,
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", [1e-50, 0.05, 1.0, 30.0])
def test_draws_invert_the_cumulative_distribution(isa: str, temperature: float) -> None:
    actions, sequences, seed, offset = 177, 100, 2**40 + 7, 2**35 + 3
    weights = identity_policy(actions)
    x = torch.rand(sequences, actions) * 6
    _, logits, action, _ = encode(weights, x, temperature=temperature, seed=seed, offset=offset)
    for sequence, chosen in enumerate(action.tolist()):
        z = logits[sequence].double().numpy()
        cumulative = np.cumsum(np.exp((z - z.max()) / max(temperature, 2.0**-126)))
        bound = philox_uniform(seed, offset, sequence, 0) * cumulative[-1]
        # An exponential's argument reaches 6 / temperature, and its rounding is of that size.
        slack = cumulative[-1] * 2.0**-24 * (8 + 2 * 6 / max(temperature, 0.05))
        assert cumulative[chosen] > bound - slack
        assert chosen == 0 or cumulative[chosen - 1] <= bound + slack
    if temperature == 1e-50:
        np.testing.assert_array_equal(action.numpy(), logits.numpy().argmax(1))
    again = encode(weights, x, temperature=temperature, seed=seed, offset=offset)
    assert torch.equal(again[2], action)


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
@pytest.mark.parametrize("sequences", [3, 40])
def test_indices_out_of_range_change_nothing(mode: str, sequences: int) -> None:
    weights = make_weights(4, 6, (5,), 3)
    cache = ActionCache(50, 4, mode, **({"reference_size": 6} if mode == "adaptive" else {}))
    x = torch.randn(60, 12)
    good = torch.randperm(50)[:sequences]
    encode(weights, x[:sequences], cache=cache, slots=good)
    before = cache.state_dict()
    cases = [("rows", 60), ("rows", -1), ("last", sequences), ("last", -1), ("slots", 50),
             ("slots", -1), ("slots", int(good[0]))]  # fmt: skip
    for name, wrong in cases:
        indices = {"rows": torch.arange(sequences), "last": torch.arange(sequences), "slots": good}
        indices[name] = indices[name].clone()
        indices[name][-1] = wrong
        twice = name == "slots" and wrong == int(good[0])
        message = f"slots must be distinct, got {wrong} twice" if twice else (
            rf"{name}\[{sequences - 1}\] = {wrong} is outside \[0, "
        )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            encode(weights, x, cache=cache, **indices)
        after = cache.state_dict()
        for key in before.keys() - {"settings"}:
            assert torch.equal(before[key], after[key])
    with pytest.raises(ValueError, match=r"cache must have a slot for each of 60 sequences"):
        encode(weights, x, cache=cache)


@pytest.mark.parametrize("wanted", [False, True])
def test_many_rows_are_reduced_by_torch(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    weights = make_weights(9, 20, (8,), 5, norm_chunks=3, norm_weight=True)
    x = torch.randn(300, 27)
    calls = []
    original = encode_cpu_module.reduce_features
    monkeypatch.setattr(
        encode_cpu_module, "reduce_features", lambda *args: calls.append(args) or original(*args)
    )
    rows, last = torch.randint(300, (200,)), torch.randint(200, (130,))
    features, logits, _, _ = encode(weights, x, rows=rows, last=last, return_features=wanted)
    assert len(calls) == 1
    assert calls[0][0].shape[0] == (200 if wanted else 130)
    if wanted:
        assert_within(features, model_features(x[rows], weights))
    assert_within(logits, model_logits(x[rows][last], weights))
    for name, wrong in (("rows", 300), ("last", -1)):
        indices = {"rows": rows.clone(), "last": last.clone()}
        indices[name][1] = wrong
        with pytest.raises(ValueError, match=rf"{name}\[1\] = {wrong} is outside"):
            encode(weights, x, **indices, return_features=wanted)
    cached = encode(weights, x, rows=rows, last=last, cache=ActionCache(130), return_features=False)
    assert len(calls) == 1
    assert_within(cached[1], model_logits(x[rows][last], weights))


@pytest.mark.skipif(len(C.available_isas()) == 1, reason="only one instruction set here")
def test_instruction_sets_are_different_code() -> None:
    # Sums in vectors of other widths round differently: equal results would mean one code.
    weights, x = make_weights(576, 64, (64,), 50, norm_chunks=3), torch.randn(8, 3 * 576)
    results = []
    # VNNI and AMX are for products of targets; the other kernels are those of avx2 and avx512.
    for name in (name for name in C.available_isas() if not name.endswith(("vnni", "amx"))):
        C.set_isa(name)
        results.append(encode(weights, x))
    C.set_isa(C.available_isas()[0])
    for first, second in itertools.pairwise(results):
        assert not torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("rows", [1, 5, 65, 100])
def test_results_do_not_depend_on_the_number_of_threads(rows: int) -> None:
    weights, x = make_weights(576, 576, (128,), 177, norm_chunks=3), torch.randn(rows, 3 * 576)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(encode(weights, x))
    torch.set_num_threads(threads)
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            # Tasks cut a layer at multiples of every tile, so each sum is made in one order.
            assert torch.equal(first, other)
