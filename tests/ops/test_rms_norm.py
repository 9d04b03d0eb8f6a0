"""RMS norm against float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eaglerl.ops import rms_norm, rms_norm_ref

# The mean of squares is summed in at least 4 partial sums: a few units of 2**-24.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 20),
    hidden=st.integers(1, 700),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    padding=st.integers(0, 3),
    indexed=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_equals_float64(isa, rows, hidden, scale, padding, indexed, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows + 3, hidden + padding, generator=generator)[:rows, :hidden] * scale
    weight = torch.randn(hidden, generator=generator)
    index = None
    if indexed and rows:
        index = torch.randint(rows, (9,), generator=generator)
    expected = rms_norm_ref(x.double(), weight.double(), 1e-5, index=index)
    actual = rms_norm(x, weight, 1e-5, index=index)
    torch.testing.assert_close(actual.double(), expected, **TOLERANCE)


def test_equals_torch() -> None:
    x, weight = torch.randn(8, 576), torch.randn(576)
    expected = torch.nn.functional.rms_norm(x, (576,), weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)


def test_many_rows_on_several_threads() -> None:
    x, weight = torch.randn(1000, 576), torch.randn(576)
    expected = rms_norm_ref(x.double(), weight.double(), 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), expected, **TOLERANCE)


def test_writes_to_a_slice_of_columns() -> None:
    buffer = torch.full((4, 30), 7.0)
    x, weight = torch.randn(4, 10), torch.randn(10)
    out = rms_norm(x, weight, 1e-5, out=buffer[:, 10:20])
    assert torch.equal(out, rms_norm(x, weight, 1e-5))
    assert (buffer[:, :10] == 7).all()
    assert (buffer[:, 20:] == 7).all()


def test_zeros_give_zeros() -> None:
    assert not rms_norm(torch.zeros(2, 33), torch.ones(33), 1e-5).any()


def test_invalid_arguments_are_named() -> None:
    x, weight = torch.randn(4, 10), torch.randn(10)
    with pytest.raises(TypeError, match="x must be float32"):
        rms_norm(x.half(), weight, 1e-5)
    with pytest.raises(ValueError, match="weight must have shape \\(10,\\)"):
        rms_norm(x, weight[:9], 1e-5)
    with pytest.raises(ValueError, match="x must have contiguous rows"):
        rms_norm(torch.randn(10, 4).T, weight, 1e-5)
    with pytest.raises(ValueError, match="out must have 4 rows"):
        rms_norm(x, weight, 1e-5, out=torch.empty(3, 10))
    for outside in (4, -1):
        with pytest.raises(ValueError, match=f"index\\[1\\] = {outside} is outside \\[0, 4\\)"):
            rms_norm(x, weight, 1e-5, index=torch.tensor([0, outside]))
