"""Packed products against float64."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from eaglerl.eagle3.layers import linear
from eaglerl.eagle3.layers.linear import PackedLinear, is_supported

# Relative to the norm of the result: fp32 rounds a sum of 600 products, bf16 keeps 8 bits of each
# factor (2 ** -9), int8 rounds Gaussian weights and inputs to 1 / 254 of the largest of 32, which
# is about 2.1 and may be 4: 0.5 to 0.9 % for each of the two.
ERRORS = {"float32": 1e-6, "bfloat16": 2**-8, "int8": 0.015}
SHAPES = [(96, 64), (600, 600), (7, 5), (1, 33)]


@pytest.fixture(autouse=True)
def _fresh_choices() -> Iterator[None]:
    """What the CPU can do is asked once; tests that pretend otherwise must not outlive it."""
    linear._has_onednn.cache_clear()
    linear._supported_dtype.cache_clear()
    yield
    linear._has_onednn.cache_clear()
    linear._supported_dtype.cache_clear()


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.filterwarnings("ignore:.* products are missing on this CPU")
@pytest.mark.parametrize("dtype", ERRORS)
def test_products(dtype: str, with_bias: bool, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    bias = torch.randn(shape[0]) if with_bias else None
    layer = PackedLinear(weight, bias, dtype=dtype)
    assert (layer.out_features, layer.in_features) == shape
    for rows in (1, 2, 8, 33):
        x, residual = torch.randn(rows, shape[1]), torch.randn(rows, shape[0])
        expected = x.double() @ weight.double().T
        if bias is not None:
            expected += bias.double()
        given = residual.clone()
        # A sum may cancel, its rounding does not: a single number is compared with its usual size.
        usual = float((x.double().square() @ weight.double().square().T).sqrt().norm())
        for result, truth in (
            (layer(x), expected),
            (layer.add_to(x, residual), expected + residual),
        ):
            assert result.dtype == torch.float32
            assert result.shape == (rows, shape[0])
            # Of a single number the error may be larger than of the norm of many.
            bound = ERRORS[layer.dtype] * (1 if rows > 1 else 3)
            assert float((result - truth).norm()) < bound * max(usual, float(truth.norm()))
        assert torch.equal(residual, given)


def test_int8_scales_every_output_by_itself() -> None:
    """A row a thousand times larger than the others costs these nothing."""
    weight = torch.randn(64, 64)
    weight[3] *= 1000
    weight[5] = 0
    x = torch.randn(16, 64)
    result = PackedLinear(weight, dtype="int8")(x)
    expected = x.double() @ weight.double().T
    assert torch.equal(result[:, 5], torch.zeros(16))
    others = [i for i in range(64) if i not in (3, 5)]
    assert relative_error(result[:, others], expected[:, others]) < ERRORS["int8"]


def test_weight_is_not_kept() -> None:
    weight = torch.randn(32, 32)
    x = torch.randn(4, 32)
    layers = [PackedLinear(weight, dtype=dtype) for dtype in filter(is_supported, ERRORS)]
    before = [layer(x) for layer in layers]
    weight.zero_()
    assert all(torch.equal(layer(x), old) for layer, old in zip(layers, before, strict=True))


def test_packing_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in filter(is_supported, ERRORS):
            PackedLinear(torch.randn(16, 16), dtype=dtype)


def test_missing_onednn_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, x, residual = torch.randn(16, 8), torch.randn(3, 8), torch.randn(3, 16)
    with pytest.warns(UserWarning, match="no packed oneDNN products") as caught:
        layers = [PackedLinear(weight), PackedLinear(weight)]
    assert len(caught) == 1
    for layer in layers:
        torch.testing.assert_close(layer(x), x @ weight.T)
        torch.testing.assert_close(layer.add_to(x, residual), x @ weight.T + residual)


def test_missing_dtype_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    with pytest.warns(UserWarning, match="bfloat16 products are missing") as caught:
        layers = [PackedLinear(torch.randn(16, 8), dtype="bfloat16") for _ in range(2)]
    assert len(caught) == 1
    assert [layer.dtype for layer in layers] == ["float32", "float32"]


@pytest.mark.parametrize(
    ("weight", "bias", "dtype", "message"),
    [
        (torch.zeros(3), None, "float32", "weight"),
        (torch.zeros(3, 3).int(), None, "float32", "weight"),
        (torch.zeros(3, 3, device="meta"), None, "float32", "weight"),
        (torch.zeros(3, 2), torch.zeros(2), "float32", r"bias must have shape \(3,\), got \(2,\)"),
        (torch.zeros(3, 2), None, "float16", "dtype must be one of.*'float16'"),
    ],
)
def test_wrong_arguments(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PackedLinear(weight, bias, dtype=dtype)
