"""The prepared decision of a decoding loop."""

from __future__ import annotations

import ctypes
import sys
import time

import pytest
import torch

from eaglerl.ops import ActionCache
from eaglerl.ops._encode_cpu import encode_cpu
from eaglerl.ops.encoder import FusedEncoder

from .encode_model import make_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_equals_the_call_without_preparation(dtype: torch.dtype, reads: str, mode: str) -> None:
    horizon = 2 if mode == "scheduled" else 1
    columns = 3 if mode == "adaptive" else 4
    weights = make_weights(11, 9, (7,), 6, reads=reads, horizon=horizon, columns=columns)
    options = {"scheduled": {"horizon": 2}, "adaptive": {"threshold": 0.3}}.get(mode, {})
    if mode == "adaptive" and reads != "taps":
        options["reference_size"] = 9
    caches = [ActionCache(5, 3, mode, **options) for _ in range(2)]
    draw = {"temperature": 0.7, "seed": 5}
    encoder = FusedEncoder(weights, caches[0], max_rows=8, max_sequences=2, dtype=dtype, **draw)
    width = 9 if reads == "features" else 33
    for offset in range(40):
        x = (torch.randn(12, width) + 1).to(dtype)
        parts = (x, None, None) if width == 9 or offset % 2 else x.split(11, dim=1)
        rows = torch.randint(12, (1 + offset % 8,))
        last = torch.tensor([len(rows) - 1, 0])[: 1 + offset % 2]
        slots = torch.randperm(5)[: len(last)]
        encoder.encode(*parts, rows=rows, last=last, slots=slots, offset=offset)
        expected = encode_cpu(
            weights, *parts, rows, last, caches[1], slots, 0.7, 5, offset, True
        )  # fmt: skip
        actual = (encoder.features, encoder.logits, encoder.action, encoder.params)
        for got, wanted in zip(actual, expected, strict=True):
            if wanted is None:
                assert got is None
            else:
                torch.testing.assert_close(
                    got[: len(wanted)], wanted, rtol=0, atol=0, equal_nan=True
                )
        assert torch.equal(caches[0].state, caches[1].state)
    assert caches[0].stats().hits > 0
    assert caches[0].stats().misses > 1


def test_what_the_features_take_is_told_apart() -> None:
    # The FC is a thousand times the MLP's work.
    weights = make_weights(512, 1536, (2,), 3)
    x = torch.randn(4, 1536)
    encoder = FusedEncoder(weights, max_sequences=4)
    seconds, reducing = [], []
    for _ in range(9):
        started = time.perf_counter()
        encoder.encode(x)
        seconds.append(time.perf_counter() - started)
        reducing.append(encoder.reduce_seconds)
    assert all(0 < part < whole for part, whole in zip(reducing, seconds, strict=True))
    assert sorted(reducing)[4] > 0.5 * sorted(seconds)[4]
    without = FusedEncoder(weights, max_sequences=4, return_features=False)
    without.encode(x)
    assert without.reduce_seconds == 0


def test_a_changed_input_is_read_anew() -> None:
    weights = make_weights(4, 5, (6,), 7)
    encoder = FusedEncoder(weights, max_sequences=3)
    x = torch.randn(3, 12)
    encoder.encode(x)
    first = encoder.logits.clone()
    x.neg_()
    encoder.encode(x)
    assert not torch.equal(encoder.logits, first)
    encoder.encode(-x)
    assert torch.equal(encoder.logits, first)


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
    _fields_ = [(name, ctypes.c_size_t) for name in (*_names, "fordblks", "keepcost")]


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
@pytest.mark.parametrize("interval", [1, 1000])
def test_nothing_is_allocated_after_the_first_call(interval: int) -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("this C library has no mallinfo2")
    library.mallinfo2.restype = MallInfo
    weights = make_weights(576, 576, (64,), 177, norm_chunks=3)
    encoder = FusedEncoder(weights, ActionCache(1, interval), max_rows=8, dtype=torch.bfloat16)
    x, rows, last = torch.randn(60, 1728).bfloat16(), torch.tensor([0, 5, 9]), torch.tensor([2])
    addresses = [encoder.features.data_ptr(), encoder.logits.data_ptr()]
    for _ in range(3):
        encoder.encode(x, rows=rows, last=last)
    before = library.mallinfo2()
    for _ in range(50):
        encoder.encode(x, rows=rows, last=last)
    after = library.mallinfo2()
    assert (after.uordblks, after.hblkhd) == (before.uordblks, before.hblkhd)
    assert addresses == [encoder.features.data_ptr(), encoder.logits.data_ptr()]


def test_wrong_arguments_are_named() -> None:
    weights = make_weights(4, 5, (6,), 7)
    for options, error, message in (
        ({"max_rows": 0}, ValueError, "max_rows must be an int in 1..1024, got 0"),
        ({"max_sequences": 2000}, ValueError, "max_sequences must be"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32"),
        ({"temperature": -1.0}, ValueError, "temperature must be"),
        ({"cache": ActionCache(1, mode="adaptive")}, ValueError, "reference_size 5"),
    ):
        with pytest.raises(error, match=message):
            FusedEncoder(weights, **options)
    with pytest.raises(TypeError, match="weights must be float32"):
        FusedEncoder(weights.to(dtype=torch.float64))
    encoder = FusedEncoder(weights, ActionCache(4), max_rows=3, max_sequences=2)
    x = torch.randn(6, 12)
    for options, error, message in (
        ({"low": x.bfloat16()}, TypeError, "low must be torch.float32"),
        ({"low": x[:, :11]}, ValueError, "low must have 12 or 5 columns"),
        ({"low": x[:, :5]}, ValueError, "low must have 12 columns"),
        ({"low": x}, ValueError, "at most 3 rows"),
        ({"low": x[:3]}, ValueError, r"2 sequences \(max_sequences\), got 3 and 3"),
        ({"low": x, "rows": torch.tensor([0, 6])}, ValueError, r"rows\[1\] = 6 is outside"),
        ({"low": x, "rows": torch.tensor([0.0])}, TypeError, "rows must be an int64"),
        ({"low": x[:2], "last": torch.tensor([2])}, ValueError, r"last\[0\] = 2 is outside"),
        ({"low": x[:2], "slots": torch.tensor([1])}, ValueError, "slots must name 2"),
        ({"low": x[:2], "slots": torch.tensor([3, 3])}, ValueError, "got 3 twice"),
    ):
        with pytest.raises(error, match=message):
            encoder.encode(**options)
    with pytest.raises(ValueError, match="slots needs cache"):
        FusedEncoder(weights).encode(x[:1], slots=torch.tensor([0]))
