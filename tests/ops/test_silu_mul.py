"""The gate of SwiGLU against float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eaglerl.ops import silu_mul, silu_mul_ref


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(0, 20),
    intermediate=st.integers(1, 300),
    scale=st.sampled_from([1e-3, 1.0, 60.0]),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_equals_float64(isa, rows, intermediate, scale, padding, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(rows, 2 * intermediate + padding, generator=generator) * scale
    gate_up = wide[:, : 2 * intermediate]
    actual = silu_mul(gate_up)
    # The exponential takes a float32 product of up to 87 * log2(e), which is off by up to 4e-6 of
    # the exponential: relative to the result only where that result is tiny.
    torch.testing.assert_close(
        actual.double(), silu_mul_ref(gate_up.double()), rtol=8e-6, atol=1e-30
    )


def test_extreme_gates(isa: str) -> None:
    gates = torch.tensor([[0.0, -0.0, 88.0, -88.0, 1e30, -1e30, 3e38, -3e38]])
    actual = silu_mul(torch.cat([gates, torch.ones_like(gates)], dim=1))
    expected = silu_mul_ref(torch.cat([gates, torch.ones_like(gates)], dim=1).double())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-7)


def test_many_rows_on_several_threads() -> None:
    gate_up = torch.randn(500, 600)
    torch.testing.assert_close(silu_mul(gate_up), silu_mul_ref(gate_up))


def test_invalid_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="even number of columns, not 3"):
        silu_mul(torch.zeros(1, 3))
    with pytest.raises(TypeError, match="gate_up must be float32"):
        silu_mul(torch.zeros(1, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="out must have shape \\(1, 2\\)"):
        silu_mul(torch.zeros(1, 4), out=torch.empty(1, 4))
