"""The policy's decision beside other ways to make it, under pytest-benchmark.

    pytest benchmarks/test_bench_fused_encode.py [-k "576 and hot"]

`bench_fused_encode.py` prints the same runners as one table.
"""

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .encode_runners import NAMES, Runners

# Read between cold calls: many times the caches.
_FLUSH = torch.ones((256 << 20) // 4)


@functools.cache
def runners(k: int) -> Runners:
    made = Runners(k)
    made.check()
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["hot", "cold"])
@pytest.mark.parametrize("k", [576, 2048, 4096])
@torch.inference_mode()
def test_decision(benchmark: BenchmarkFixture, k: int, state: str, name: str) -> None:
    benchmark.group = f"k = {k}, {state}"
    runner = runners(k).make(name)
    if state == "cold":
        benchmark.pedantic(runner, setup=lambda: _FLUSH.sum() and None, rounds=15)
    else:
        benchmark.pedantic(runner, rounds=30, iterations=20 if k < 1024 else 5)
