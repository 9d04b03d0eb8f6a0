"""Weights of a policy: from modules and stable-baselines3, folded, on disk, and broken."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglerl.ops import PolicyWeights, fused_encode_ref

from .policies import make_features, make_modules, with_lookup


def test_reference_equals_the_modules() -> None:
    for norm_chunks in (0, 1, 3):
        for activation in ("tanh", "relu", "silu"):
            modules = make_modules(norm_chunks=norm_chunks, activation=activation)
            taps = make_features(5, 24)
            weights = modules.weights().to(dtype=torch.float64)
            actual = fused_encode_ref(*taps, weights).logits
            expected = modules.logits(torch.cat(taps, -1).double())
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_modules_of_float64_give_the_reference_its_weights() -> None:
    modules = make_modules()
    narrow = modules.weights()
    modules.fc.double()
    modules.mlp.double()
    weights = modules.weights()
    assert weights.dtype == torch.float64
    taps = make_features(5, 24)
    expected = fused_encode_ref(*taps, narrow.to(dtype=torch.float64)).logits
    assert torch.equal(fused_encode_ref(*taps, weights).logits, expected)


def test_weights_do_not_follow_the_modules() -> None:
    modules = make_modules()
    weights = modules.weights()
    before = weights.fc_weight.clone()
    with torch.no_grad():
        modules.fc.weight.zero_()
    assert torch.equal(weights.fc_weight, before)


@pytest.mark.parametrize("k", [576, 2048, 4096])
@pytest.mark.parametrize("norm_chunks", [0, 3])
def test_fold_is_within_its_error_bound(k: int, norm_chunks: int) -> None:
    """Folding rounds each product W1 Wfc once, to float32; everything else is float64 here.

    The logits of a linear map differ by at most sum |entry| |x| 2**-24 in each hidden unit, which
    the layers behind pass on: tanh has slope 1 at most, the output layer its row's sum of |w|.
    """
    modules = make_modules(k, 64, (32,), 7, norm_chunks=norm_chunks)
    taps = torch.cat(make_features(4, k), -1)
    weights = modules.weights()
    folded = weights.fold()
    assert folded.fc_weight is None
    assert folded.mlp_input == "taps"
    assert folded.hidden_weights[0].shape == (32, 3 * k)
    assert folded.norm_chunks == norm_chunks
    exact = fused_encode_ref(taps, None, None, weights.to(dtype=torch.float64)).logits
    actual = fused_encode_ref(taps, None, None, folded.to(dtype=torch.float64)).logits
    x = taps.double()
    if norm_chunks:
        x = torch.cat([c / (c.square().mean(-1, keepdim=True) + 1e-5).sqrt() for c in x.chunk(3, -1)], -1)  # fmt: skip  # noqa: E501
    unit = 2.0**-24
    entries = folded.hidden_weights[0].double().abs()
    hidden = unit * (x.abs() @ entries.T + folded.hidden_biases[0].double().abs())
    bound = hidden @ weights.output_weight.double().abs().T
    assert bool(((actual - exact).abs() <= bound).all())
    # The bound is not idle: rounding does show.
    assert float((actual - exact).abs().max()) > 0


def test_fold_needs_a_fc() -> None:
    with pytest.raises(ValueError, match="fc_weight"):
        make_modules().weights().fold().fold()


def test_save_and_load(tmp_path) -> None:
    for weights in (
        make_modules().weights(fallback_action=3),
        make_modules(norm_chunks=0, bias=False).weights().to(dtype=torch.bfloat16),
        make_modules(horizon=3).weights(horizon=3).fold(),
        with_lookup(make_modules().weights()),
    ):
        weights.save_pretrained(tmp_path)
        read = PolicyWeights.from_pretrained(tmp_path)
        assert read.tensors().keys() == weights.tensors().keys()
        for name, tensor in weights.tensors().items():
            assert read.tensors()[name].dtype == tensor.dtype
            assert torch.equal(read.tensors()[name], tensor)
        for name in ("activation", "mlp_input", "norm_chunks", "eps", "horizon", "fallback_action"):
            assert getattr(read, name) == getattr(weights, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"format": 99}, "'format' of .*config.json' must be 1, got 99"),
        (
            {"activation": "gelu"},
            "'activation' of .* must be one of 'tanh', 'relu' or 'silu', got 'gelu'",
        ),
        ({"norm_chunks": 2}, "'norm_chunks' of .* must be one of 0, 1 or 3, got 2"),
        ({"horizon": "3"}, "'horizon' of .* must be an integer, got '3'"),
        ({"fallback_action": 7}, r"fallback_action must be in 0\.\.6, got 7"),
        ({"eps": "x"}, "'eps' of .* must be a number, got 'x'"),
        ({"horizon": 1 << 40}, "'horizon' of .* must be at most 1024"),
        ({"epsilon": 1}, "unknown key 'epsilon'"),
    ],
)
def test_broken_configs_are_named(tmp_path, change, message) -> None:
    make_modules().weights().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((ValueError, TypeError), match=message):
        PolicyWeights.from_pretrained(tmp_path)


def test_broken_files_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"config\.json' cannot be read"):
        PolicyWeights.from_pretrained(tmp_path)
    make_modules().weights().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: t for name, t in tensors.items() if name != "bins"}, file)
    with pytest.raises(ValueError, match=r"model\.safetensors' .*missing tensors: \['bins'\]"):
        PolicyWeights.from_pretrained(tmp_path)
    save_file(tensors | {"extra": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"unknown: \['extra'\]"):
        PolicyWeights.from_pretrained(tmp_path)
    file.write_bytes(b"\x80\x04not a safetensors file")
    with pytest.raises(ValueError, match=r"model\.safetensors' cannot be read"):
        PolicyWeights.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json' cannot be read"):
        PolicyWeights.from_pretrained(tmp_path)


def broken(name: str, tensor: torch.Tensor, error: type[Exception], message: str):
    return pytest.param(name, tensor, error, message, id=f"{name}: {message}")


@pytest.mark.parametrize(
    ("name", "tensor", "error", "message"),
    [
        broken(
            "fc_weight", torch.full((20, 72), torch.nan), ValueError, "fc_weight must be finite"
        ),
        broken("fc_weight", torch.ones(21, 72), ValueError, "fc_weight must have 20 rows"),
        broken("fc_weight", torch.ones(20, 71), ValueError, "three layers|must divide"),
        broken(
            "fc_weight", torch.ones(20, 72).half(), TypeError, "fc_weight must be torch.float32"
        ),
        broken("fc_weight", torch.ones(72, 20).T, ValueError, "fc_weight must be contiguous"),
        broken("fc_bias", torch.ones(19), ValueError, r"fc_bias must have shape \(20,\)"),
        broken("output_bias", torch.ones(8), ValueError, r"output_bias must have shape \(7,\)"),
        broken(
            "output_weight", torch.ones(7, 11), ValueError, "output_weight must have 12 columns"
        ),
        broken("output_weight", torch.ones(8, 12), ValueError, "horizon \\* actions"),
        broken("norm_weight", torch.ones(24), ValueError, r"norm_weight must have shape \(72,\)"),
        broken("actions", torch.ones(7, 3), TypeError, "actions must be torch.int32"),
        broken("actions", torch.ones(7, 2).int(), ValueError, "actions must be"),
        broken("actions", torch.ones(7, 5).int(), ValueError, r"1024, 3 or 4\), got \(7, 5\)"),
        broken("actions", torch.zeros(7, 3).int(), ValueError, "total_tokens of at least 1, got 0"),
        broken(
            "actions",
            torch.tensor([[1, 0, 1, 65]] * 7).int(),
            ValueError,
            "lookup_tokens of at most 64, got 65",
        ),
        broken(
            "actions",
            torch.tensor([[1, 0, 1, -1]] * 7).int(),
            ValueError,
            "lookup_tokens of at least 0, got -1",
        ),
        broken(
            "actions", torch.full((7, 3), 999).int(), ValueError, "depth of at most 128, got 999"
        ),
        broken(
            "actions",
            torch.tensor([[1, 100, 200]] * 7).int(),
            ValueError,
            "at most 1,048,576 candidates.*got 4,000,200",
        ),
    ],
)
def test_broken_tensors_are_named(name, tensor, error, message) -> None:
    with pytest.raises(error, match=message):
        replace(make_modules().weights(), **{name: tensor})


def test_contradictions_are_named() -> None:
    weights = make_modules().weights()
    with pytest.raises(ValueError, match="at least one, got 0 and 0"):
        replace(weights, hidden_weights=(), hidden_biases=())
    with pytest.raises(ValueError, match='must be "features" if fc_weight is given'):
        replace(weights, mlp_input="taps")
    with pytest.raises(ValueError, match="norm_weight needs norm_chunks"):
        replace(weights, norm_chunks=0)
    with pytest.raises(ValueError, match="fc_bias needs fc_weight"):
        replace(weights, fc_weight=None, norm_weight=None, norm_chunks=0)


def test_other_layers_are_refused() -> None:
    modules = make_modules()
    with pytest.raises(ValueError, match="with a hidden layer"):
        PolicyWeights.from_modules(modules.mlp[:1], modules.trees)
    chain = [modules.mlp[0], torch.nn.GELU(), *modules.mlp[2:3]]
    with pytest.raises(ValueError, match=r"got \['GELU'\]"):
        PolicyWeights.from_modules(chain, modules.trees)


@pytest.mark.parametrize(
    ("actions", "error"),
    [
        ([[8.7, 2, 4]], TypeError),
        ([[8.0, 2, 4]], TypeError),
        ([[True, False, True]], TypeError),
        ([[2**32 + 8, 2, 4]], ValueError),
        ([[8, 2], [4]], ValueError),
        ("8/2/4", ValueError),
    ],
)
def test_actions_are_neither_rounded_nor_wrapped(actions, error) -> None:
    mlp = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with pytest.raises(error, match="actions must"):
        PolicyWeights.from_modules(mlp, actions)
    assert PolicyWeights.from_modules(mlp, [[8, 2, 4, 12]]).actions.tolist() == [[8, 2, 4, 12]]
    for good in ([[8, 2, 4]], torch.tensor([[8, 2, 4]]), numpy.array([[8, 2, 4]], numpy.uint8)):
        assert PolicyWeights.from_modules(mlp, good).actions.tolist() == [[8, 2, 4]]
