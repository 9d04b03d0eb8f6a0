"""The model of GPUs: the page has its tables, and the costs are what `eaglerl headroom` reads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eaglerl.headroom.cost_files import read_cost

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import device_model  # noqa: E402


def test_the_page_has_the_tables() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for table in device_model.tables().strip().split("\n\n"):
        assert table in page


def test_weights_are_read_at_the_bandwidth() -> None:
    """By hand: 3 k^2 numbers of two bytes, at k = 4096 100.7 MB."""
    whole, folded = device_model.weight_bytes(4096).values()
    floors = [1e6 * whole / speed for speed in device_model.BANDWIDTH.values()]
    assert floors == [pytest.approx(30, abs=1), pytest.approx(21, abs=1), pytest.approx(13, abs=1)]
    assert folded / 3.35e12 == pytest.approx(1.0e-6, rel=0.05)


def test_sorts() -> None:
    # Batcher: a network of 2^n lanes has n (n + 1) / 2 steps.
    assert [device_model.sort_steps(lanes) for lanes in (2, 16, 100, 256)] == [1, 10, 28, 36]


def test_costs_are_those_of_the_model(tmp_path: Path) -> None:
    for name, model in device_model.MODELS.items():
        path = tmp_path / "costs.json"
        path.write_text(json.dumps(device_model.cost_curve(model, name)), encoding="utf-8")
        curve = read_cost(path)
        assert curve is not None
        # 15 GB at 78 % of 3.35 TB/s are 5.7 ms; 64 rows cost what one does, 1,000 do not.
        assert device_model.pass_seconds(model, 64, 128) == device_model.pass_seconds(model, 1, 128)
        assert device_model.pass_seconds(model, 1000, 128) > device_model.pass_seconds(
            model, 1, 128
        )
    assert device_model.pass_seconds(device_model.MODELS["8B on one H100"], 1, 0) == pytest.approx(
        5.74e-3, rel=0.01
    )
