"""`make gpu` on a machine that may have no GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="expects what is skipped without a device")
def test_without_a_device(tmp_path: Path) -> None:
    """The build is left out: it takes minutes, and `make` has just made it."""
    command = [sys.executable, ROOT / "tools" / "gpu_check.py", "--no-build", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + (tmp_path / "tests.log").read_text()
    found = json.loads((tmp_path / "result.json").read_text())
    status = {step["name"]: step["status"] for step in found["steps"]}
    assert status == {
        "build": "skipped", "tests": "passed", "sanitizer": "skipped", "timings": "skipped",
    }  # fmt: skip
    # The tests were collected, and each says why it is skipped.
    assert "skipped" in next(s["detail"] for s in found["steps"] if s["name"] == "tests")
    assert found["facts"]["torch"] == torch.__version__
    assert found["facts"]["device"] == "no CUDA device"
    assert found["timings"] is None
    assert "| tests | passed |" in (tmp_path / "result.md").read_text()


def test_a_step_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from gpu_check import SHARES, Check
    finally:
        sys.path.remove(str(ROOT / "tools"))
    run = Check(tmp_path, total=5.1 / SHARES["tests"])
    sleeping = "import time; print('asleep', flush=True); time.sleep(60)"
    assert not run.run("tests", [sys.executable, "-c", sleeping])
    assert run.steps[0].status == "failed"
    assert "stopped after 5 s: asleep" in run.steps[0].detail
    assert not Check(tmp_path, total=1.0).run("tests", ["false"])


def test_the_timings_run_on_the_cpu(tmp_path: Path) -> None:
    """Their times are no results; that the calls fit each other is."""
    path = tmp_path / "timings.json"
    command = [
        sys.executable, ROOT / "benchmarks" / "bench_gpu.py", "--device", "cpu", "--k", "576",
        "--batch", "1", "2", "--repeats", "1", "--tokens", "8", "--layers", "7", "--json", path,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(path.read_text())
    names = {row["name"] for row in found["calls"]}
    assert {"fused", "fused, kept decision", "folded"} <= names
    assert len([name for name in names if name.startswith("choice of nodes")]) == 2
    loops = {(row["name"], row["batch"]) for row in found["loops"]}
    policies = ("plain", "constant 32/5/4", "AutoPolicy", "LimitedPolicy")
    assert loops == {(name, batch) for name in policies for batch in (1, 2)}
    # Of the plain loop every sequence emits a token a cycle.
    assert {row["tokens"] for row in found["loops"] if row["name"] == "plain"} == {1.0, 2.0}
    assert all(row["hot_us"] > 0 for row in found["calls"])
    assert "| fused | 576 | 2 |" in result.stdout
