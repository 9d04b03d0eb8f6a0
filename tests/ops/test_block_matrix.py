"""Block matrices against gguf's own dequantisation and float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from eaglerl._ext import C

FORMATS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
PLAIN_FORMATS, INT8_FORMATS = FORMATS[:3], FORMATS[3:]
ACTIVATIONS = ("float32", "int8", "bfloat16")
# Bytes of a block that hold half-precision scales, by format.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
EPSILON = 2.0**-24


@pytest.fixture(params=C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = C.cpu_isa()
    C.set_isa(request.param)
    yield request.param
    C.set_isa(before)


def make_file(name: str, outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Random blocks as in a file (outputs, bytes of a row): any code and any scale occurs."""
    generator = np.random.default_rng(seed)
    if name in ("F32", "F16", "BF16"):
        values = generator.standard_normal((outputs, inputs)).astype(np.float32)
        if name == "F32":
            return values.view(np.uint8)
        if name == "F16":
            return values.astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    data = generator.integers(0, 256, (outputs, inputs // block, size), dtype=np.uint8)
    for place in HALVES[name]:
        # Subnormal numbers and both signs among them.
        scales = generator.standard_normal(data.shape[:2]) * 10.0 ** generator.integers(
            -7, -1, data.shape[:2]
        )
        data[..., place : place + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return data.reshape(outputs, -1)


def dequantised(name: str, file: np.ndarray) -> np.ndarray:
    kind = GGMLQuantizationType[name]
    if name == "F32":
        return file.view(np.float32)
    if name == "F16":
        return file.view(np.float16).astype(np.float32)
    return np.asarray(gguf.dequantize(file, kind), dtype=np.float32)


def make_matrix(name: str, file: np.ndarray, inputs: int, rows: np.ndarray | None = None):
    return C.BlockMatrix(
        format=int(GGMLQuantizationType[name]), outputs=len(file), inputs=inputs,
        file=np.ascontiguousarray(file), rows=rows, threads=2,
    )  # fmt: skip


def multiply(
    matrix, x: torch.Tensor, activations: str = "float32", *, threads: int = 1
) -> torch.Tensor:
    out = torch.full((len(x), matrix.shape[0]), float("nan"))
    matrix.multiply(
        x=x.data_ptr(), out=out.data_ptr(), rows=len(x), activations=activations, threads=threads
    )
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_packed_is_what_gguf_reads(name: str) -> None:
    for outputs in (16, 37):
        file = make_file(name, outputs, 512, seed=outputs)
        order = np.random.default_rng(1).permutation(outputs)
        matrix = make_matrix(name, file, 512, order)
        found = matrix.dequantise(0, outputs)
        expected = dequantised(name, file)[order]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", PLAIN_FORMATS)
@pytest.mark.parametrize("inputs", [1, 31, 33, 48, 514])
def test_numbers_without_scales_may_fill_no_whole_block(name: str, inputs: int, isa: str) -> None:
    outputs = 37
    file = make_file(name, outputs, inputs)
    order = np.random.default_rng(1).permutation(outputs)
    matrix, weights = make_matrix(name, file, inputs, order), dequantised(name, file)[order]
    assert matrix.shape == (outputs, inputs)
    np.testing.assert_array_equal(matrix.dequantise(0, outputs), weights)
    # Whatever lies behind the last row is not read.
    x = torch.cat((torch.randn(70, inputs), torch.full((1, inputs), float("nan"))))[:70]
    for activations in ("float32", "bfloat16"):
        rounded = x.bfloat16().double() if activations == "bfloat16" else x.double()
        expected = rounded.numpy() @ weights.T.astype(np.float64)
        bound = (40 + inputs) * EPSILON * (np.abs(rounded.numpy()) @ np.abs(weights.T)) + 1e-30
        alone = torch.cat([multiply(matrix, row[None], activations) for row in x])
        for rows in (1, 7, 64):
            assert torch.equal(multiply(matrix, x[:rows], activations, threads=2), alone[:rows])
        for found in (alone, multiply(matrix, x, activations, threads=2)):
            assert (np.abs(found.double().numpy() - expected) <= bound).all()


@pytest.mark.parametrize("name", FORMATS)
def test_gathered_rows_are_those_that_gguf_reads(name: str) -> None:
    file = make_file(name, 37, 512)
    matrix, expected = make_matrix(name, file, 512), dequantised(name, file)
    # More than a share of one thread, and the same row again.
    for ids in ([36], [5, 0, 5], list(range(37)) * 3, []):
        token_ids = torch.tensor(ids, dtype=torch.int64)
        out = torch.full((len(ids) + 1, 512), float("nan"))
        matrix.gather(token_ids.data_ptr(), len(ids), out.data_ptr(), 3)
        np.testing.assert_array_equal(out[:-1].numpy(), expected[ids])
        assert out[-1].isnan().all()


def test_gathering_refuses_unknown_rows() -> None:
    matrix, out = make_matrix("Q8_0", make_file("Q8_0", 37, 64), 64), torch.zeros(2, 64)
    for bad in (-1, 37):
        ids = torch.tensor([3, bad])
        with pytest.raises(ValueError, match=rf"token_ids.*{bad}"):
            matrix.gather(ids.data_ptr(), 2, out.data_ptr(), 1)
    assert not out.any()
    with pytest.raises(ValueError, match="token_ids"):
        matrix.gather(0, 2, out.data_ptr(), 1)
    with pytest.raises(ValueError, match="threads"):
        matrix.gather(ids.data_ptr(), 2, out.data_ptr(), 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 8, 21, 70])
def test_products_are_those_of_float64(name: str, rows: int, isa: str) -> None:
    outputs, inputs = 37, 768
    file = make_file(name, outputs, inputs)
    weights = dequantised(name, file).astype(np.float64)
    x = torch.randn(rows, inputs)
    found = multiply(make_matrix(name, file, inputs), x).double().numpy()
    expected = x.double().numpy() @ weights.T
    # A block of 32 inputs may be held in fixed point with 23 bits: half a unit is at most
    # (1 + 1/64) * 2^-23 of the largest input.
    largest = 65 / 32 * np.abs(x.numpy().reshape(rows, -1, 32)).max(-1).repeat(32, -1)
    # Each of the products is rounded a few times within its block and once a block after that:
    # at most 32 + inputs / 16 roundings of partial sums that are bounded by the sum of magnitudes.
    # A minimum's part cancels against the codes' part, so magnitudes count before they cancel.
    bound = (40 + inputs / 16) * np.abs(x.double().numpy()) + largest
    assert (np.abs(found - expected) <= bound @ magnitudes(name, file).T * EPSILON + 1e-30).all()


def magnitudes(name: str, file: np.ndarray) -> np.ndarray:
    """|scale * code| + |minimum| of every weight, or its magnitude where there is no minimum."""
    weights = np.abs(dequantised(name, file).astype(np.float64))
    if name not in ("Q4_1", "Q4_K", "Q5_K"):
        return weights
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    data = file.reshape(len(file), -1, size)
    minimum = np.abs(data[..., 2:4].copy().view(np.float16).astype(np.float64))
    if block == 256:
        minimum = minimum * 63
    return weights + 2 * np.repeat(minimum.reshape(len(file), -1), block, axis=1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_row_does_not_depend_on_the_others(name: str, activations: str, isa: str) -> None:
    if activations == "int8" and name not in INT8_FORMATS:
        return
    inputs = 512
    matrix = make_matrix(name, make_file(name, 53, inputs), inputs)
    x = torch.randn(64, inputs)
    alone = torch.cat([multiply(matrix, row[None], activations) for row in x])
    for rows in (*range(2, 18), 31, 64):
        for threads in (1, 2, 3):
            found = multiply(matrix, x[:rows], activations, threads=threads)
            assert torch.equal(found, alone[:rows])


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (rows, blocks, 32) and scales (rows, blocks) of 8-bit rows."""
    blocks = x.reshape(len(x), -1, 32).astype(np.float32)
    scales = np.abs(blocks).max(-1) * np.float32(1 / 127)
    inverse = np.where(scales > 0, np.float32(1) / np.where(scales > 0, scales, 1), 0)
    codes = np.rint(blocks * inverse[..., None].astype(np.float32)).astype(np.int64)
    return codes, scales


@pytest.mark.parametrize("name", INT8_FORMATS)
def test_int8_products_are_those_of_quantised_rows(name: str, isa: str) -> None:
    outputs, inputs = 37, 768
    file = make_file(name, outputs, inputs)
    weights = dequantised(name, file).astype(np.float64)
    x = torch.randn(5, inputs)
    x[1, :64] = 0
    x[2] *= 1e-3
    x[3, 5] = 1e4
    codes, scales = quantised(x.numpy())
    assert np.abs(codes).max() == 127
    rounded = (codes * scales[..., None].astype(np.float64)).reshape(len(x), -1)
    found = multiply(make_matrix(name, file, inputs), x, "int8").double().numpy()
    bound = np.abs(rounded) @ magnitudes(name, file).T
    assert (np.abs(found - rounded @ weights.T) <= (8 + inputs / 8) * EPSILON * bound + 1e-30).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 4, 16, 17, 70])
def test_bfloat16_products_are_those_of_rounded_rows(name: str, rows: int, isa: str) -> None:
    outputs, inputs = 85, 768
    file = make_file(name, outputs, inputs)
    weights = dequantised(name, file).astype(np.float64)
    x = torch.randn(rows, inputs)
    rounded = x.bfloat16().double().numpy()
    found = multiply(make_matrix(name, file, inputs), x, "bfloat16").double().numpy()
    bound = np.abs(rounded) @ magnitudes(name, file).T
    limit = (40 + inputs / 16) * EPSILON * bound + 1e-30
    assert (np.abs(found - rounded @ weights.T) <= limit).all()


def test_what_is_not_finite_reaches_the_result(isa: str) -> None:
    matrix = make_matrix("Q4_1", make_file("Q4_1", 16, 64), 64)
    for value in (float("nan"), float("inf")):
        x = torch.randn(2, 64)
        x[1, 40] = value
        for activations in ACTIVATIONS:
            found = multiply(matrix, x, activations)
            assert found[0].isfinite().all()
            assert not found[1].isfinite().any()


def test_wrong_arguments_are_refused() -> None:
    file = make_file("Q4_1", 16, 64)
    with pytest.raises(ValueError, match=r"format must be one of F32.*got ggml's type 10"):
        C.BlockMatrix(format=10, outputs=16, inputs=64, file=file, rows=None, threads=1)
    with pytest.raises(ValueError, match="inputs must be a multiple of 32 in format Q4_1, got 48"):
        C.BlockMatrix(format=3, outputs=16, inputs=48, file=file, rows=None, threads=1)
    with pytest.raises(ValueError, match="file must have 640 bytes, got 600"):
        C.BlockMatrix(
            format=3, outputs=16, inputs=64, file=file.reshape(-1)[:600], rows=None, threads=1
        )
    order = np.arange(16)
    order[3] = 16
    with pytest.raises(ValueError, match=r"rows must be in 0\.\.15, got 16"):
        C.BlockMatrix(format=3, outputs=16, inputs=64, file=file, rows=order, threads=1)
