"""One table: the cost of a decision on this device, next to the usual ways to write it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eaglerl.ops import ActionCache, PolicyWeights, fused_encode
from eaglerl.ops._encode_cuda import encode_cuda
from eaglerl.ops._encode_reference import join_features, mlp_layers, normalise
from eaglerl.ops.policy_mlp import without_fc

from ..ops.encode_model import make_weights

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from bench_gpu import (
    ACTIONS,
    FLUSHED,
    HIDDEN,
    REPEATS,
    Call,
    Clock,
    count_launches,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]


@dataclass
class Row:
    """A line of the table: times in microseconds."""

    name: str
    hot: float
    cold: float
    weight_bytes: int
    launches: int
    waits: int

    def text(self, bandwidth: float) -> str:
        share = self.weight_bytes / (self.cold * 1e-6) / bandwidth
        read = f"{share:9.0%}" if self.weight_bytes else "        -"
        return (
            f"{self.name:34} {self.hot:9.1f} {self.cold:9.1f} {read} {self.launches:8} "
            f"{self.waits:6}"
        )


def eager(weights: PolicyWeights, low: Tensor, mid: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """Stock operations in the weights' dtype, as one writes it with torch."""
    x = normalise(join_features(low, mid, high).float(), weights).to(weights.dtype)
    g = torch.nn.functional.linear(x, weights.fc_weight)
    value = g[-1:]
    for weight, bias in zip(weights.hidden_weights, weights.hidden_biases, strict=True):
        value = torch.tanh(torch.nn.functional.linear(value, weight, bias.to(weight.dtype)))
    logits = torch.nn.functional.linear(value, weights.output_weight)
    action = logits.argmax(-1)
    return g, action, weights.actions[action]


def eager_mlp(weights: PolicyWeights, features: Tensor) -> tuple[Tensor, ...]:
    value = features
    for weight, bias in zip(weights.hidden_weights, weights.hidden_biases, strict=True):
        value = torch.tanh(torch.nn.functional.linear(value, weight, bias.to(weight.dtype)))
    action = torch.nn.functional.linear(value, weights.output_weight).argmax(-1)
    return action, weights.actions[action]


def runners(weights: PolicyWeights, rows: int, device: str) -> dict[str, tuple[Call, int]]:
    """Return the calls by name, and the bytes of weights that each has to read."""
    k = weights.joined_size // 3
    taps = [torch.randn(rows, k, device=device).to(weights.dtype) for _ in range(3)]
    folded, alone = weights.fold(), without_fc(weights)
    last = torch.tensor([rows - 1], device=device)
    keeping = ActionCache(1, 2**30, device=device)
    sketching = ActionCache(1, 2**30, device=device)
    features = torch.randn(1, k, device=device).to(weights.dtype)
    mlp = [*weights.hidden_weights, weights.output_weight]
    mlp_bytes = sum(matrix.nbytes for matrix in mlp)
    fused_bytes = weights.fc_weight.nbytes + mlp_bytes
    folded_bytes = sum(m.nbytes for m in (*folded.hidden_weights, folded.output_weight))

    def ours(
        policy: PolicyWeights, inputs: tuple, index: Tensor | None, cache: ActionCache | None,
        return_features: bool = True,
    ) -> Call:  # fmt: skip
        return lambda: encode_cuda(
            policy, *inputs, None, index, cache, None, 0.0, 0, 0, return_features
        )

    single = (features, None, None)
    calls: dict[str, tuple[Call, int]] = {
        "ours, miss, with features": (ours(weights, taps, last, None), fused_bytes),
        "ours, hit, with features": (ours(weights, taps, last, keeping), weights.fc_weight.nbytes),
        "ours, miss, no features": (ours(weights, taps, last, None, False), fused_bytes),
        "ours, hit, no features": (ours(weights, taps, last, sketching, False), 0),
        "ours, folded": (ours(folded, taps, last, None), folded_bytes),
        "ours, from features": (ours(alone, single, None, None), mlp_bytes),
        "ours, miss, torch.library": (
            lambda: fused_encode(*taps, weights, last=last),
            fused_bytes,
        ),
        "eager": (lambda: eager(weights, *taps), fused_bytes),
        "eager, from features": (lambda: eager_mlp(weights, features), mlp_bytes),
    }
    compiled, compiled_mlp = torch.compile(eager), torch.compile(eager_mlp)
    calls["torch.compile"] = (lambda: compiled(weights, *taps), fused_bytes)
    calls["torch.compile, from features"] = (lambda: compiled_mlp(weights, features), mlp_bytes)
    return calls


def read_bandwidth(clock: Clock) -> float:
    """Return the bytes a second that a reduction reads from the device's memory."""
    data = torch.ones(2**28, device="cuda")
    return data.nbytes / (clock(data.sum) * 1e-6)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("k", [576, 2048, 4096])
def test_table(k: int, dtype: torch.dtype, rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    weights = make_weights(
        k, k, HIDDEN, ACTIONS, dtype=dtype, norm_chunks=3, norm_weight=True, fc_bias=False
    ).to("cuda")
    flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    clock = Clock(flush.device, REPEATS)
    bandwidth = read_bandwidth(clock)
    table = []
    for name, (call, weight_bytes) in runners(weights, rows, "cuda").items():
        hot, cold = clock(call), clock(call, flush)
        table.append(Row(name, hot, cold, weight_bytes, *count_launches(call, flush.device)))
    device = torch.cuda.get_device_name()
    lines = [
        f"\n{device}, k={k}, {dtype}, {rows} rows, 1 sequence, reads {bandwidth / 1e9:.0f} GB/s",
        f"{'':34} {'hot, us':>9} {'cold, us':>9} {'bandwidth':>9} launches  waits",
        *(row.text(bandwidth) for row in table),
    ]
    with capsys.disabled():
        print("\n".join(lines))  # noqa: T201
    for row in table:
        if row.name.startswith("ours"):
            assert row.launches == 1, row.name
            assert row.waits == 0, row.name


def test_the_runners_decide_alike() -> None:
    """What is compared computes the same; actions may differ where two logits almost agree."""
    weights = make_weights(
        576, 576, HIDDEN, ACTIONS, norm_chunks=3, norm_weight=True, fc_bias=False
    ).to("cuda")
    weights.output_bias.zero_()
    calls = runners(weights, 8, "cuda")
    features, _, action, _ = calls["ours, miss, with features"][0]()
    g, other, _ = calls["eager"][0]()
    # Stock matrix products of float32 may be of 10 bits on the matrix units.
    torch.testing.assert_close(features, g, rtol=1e-2, atol=1e-2)
    logits = mlp_layers(features[-1:], weights)[-1][0]
    assert logits.max() - logits[other.item()] < 0.05
    assert logits.max() == logits[action.item()]
