"""The stored choice of tiles, and how it is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eaglerl.kernels import _settings, tune, tuning
from eaglerl.kernels._launch import Launch
from eaglerl.kernels._plan import Tiles
from eaglerl.ops._encode_cuda import encode_cuda

from ...ops.encode_model import make_weights

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERL_CACHE", str(tmp_path))
    _settings.forget_plans()


def test_choices_are_stored_and_found() -> None:
    ours = Tiles(1, 8, 64, 2)
    assert tuning.stored_tiles("cpu", "fused", 12, torch.float32, 1) is None
    tuning.store_tiles("cpu", "fused", 12, torch.float32, 1, ours)
    tuning.store_tiles("cpu", "fused", 12, torch.float32, 2, Tiles(2, 2, 16))
    assert tuning.stored_tiles("cpu", "fused", 12, torch.float32, 1) == ours
    for other in (
        ("gpu", "fused", 12, torch.float32, 1),
        ("cpu", "folded", 12, torch.float32, 1),
        ("cpu", "fused", 13, torch.float32, 1),
        ("cpu", "fused", 12, torch.float16, 1),
        ("cpu", "fused", 12, torch.float32, 4),
    ):
        assert tuning.stored_tiles(*other) is None


def test_a_decision_takes_the_stored_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.store_tiles("cpu", "fused", 12, torch.float32, 2, Tiles(2, 8, 32, 1))
    launched: list[Launch] = []
    monkeypatch.setattr(Launch, "run", lambda launch, device: launched.append(launch))
    weights, x = make_weights(12, 10), torch.randn(2, 36)
    encode_cuda(weights, x, None, None, None, None, None, None, 0.0, 0, 0, True)
    assert launched[0].plan.tiles == Tiles(2, 8, 32, 1)
    assert launched[0].grid == (2, 1)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 2, "tiles": {}}', '{"format": 1, "tiles": {"a": {"depth": 3}}}'],
)
def test_a_damaged_file_is_named(text: str) -> None:
    tuning.tuning_path().write_text(text)
    tuning._read.cache_clear()
    with pytest.raises(ValueError, match=r"file of tiles '.*triton_tiles\.json'.* remove it"):
        tuning.stored_tiles("cpu", "fused", 12, torch.float32, 1)
    tuning._read.cache_clear()


@pytest.mark.parametrize(
    ("form", "rows"), [("fused", 1), ("fused", 4), ("fused", 16), ("folded", 2)]
)
def test_every_candidate_decides_alike_and_the_fastest_is_taken(form: str, rows: int) -> None:
    weights = tune.random_policy(40, (8,), torch.float32, form, 5, 3, CPU)
    policy = _settings.policy_of(weights)
    default = _settings.default_tiles(policy, 4, rows)
    tiles = tune.candidates(default, form)
    assert tiles[0] == default
    assert len(set(tiles)) == len(tiles) > 1
    fastest = tiles[-1]
    inputs = tuple(torch.randn(rows, 40) for _ in range(3))
    chosen, times = tune.choose_tiles(
        [default, *tiles[-2:]],
        lambda candidate: tune.prepare(weights, inputs, candidate),
        lambda launch: float(launch.plan.tiles != fastest),
        CPU,
    )
    assert chosen == fastest
    assert times[default] == 1.0


def test_tiles_that_compute_something_else_are_not_taken() -> None:
    weights = tune.random_policy(8, (8,), torch.float32, "features", 5, 0, CPU)
    inputs = (torch.randn(1, 8),)
    calls = []

    def prepare(candidate: Tiles) -> tuple:
        calls.append(candidate)
        return tune.prepare(weights, tuple(x * len(calls) for x in inputs), candidate)

    with pytest.raises(RuntimeError, match="gives other logits"):
        tune.choose_tiles([Tiles(1, 16, 8), Tiles(1, 32, 8)], prepare, lambda launch: 0.0, CPU)


def test_tuning_says_what_it_needs() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        tune.tune(8, (8,), torch.float32)
