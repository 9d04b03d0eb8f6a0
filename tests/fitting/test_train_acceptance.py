"""Training of an acceptance policy: cross-validated honestly, and as a run that can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from eaglerl.actions import ActionSpace
from eaglerl.cli.app import app
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.fitting.cross_validation import assign_folds, gain_over, reliability
from eaglerl.fitting.fit_acceptance import AcceptanceOptions
from eaglerl.fitting.scored_positions import TracePositions, score_positions
from eaglerl.fitting.train_acceptance import (
    TrainAcceptanceOptions,
    TrainedAcceptance,
    train_acceptance,
)
from eaglerl.policies.acceptance_file import load_acceptance
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.baselines import best_constant
from eaglerl.traces.oracle import known_actions
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_index import FORMAT, VERSION, write_index
from eaglerl.traces.trace_set import Trace, write_shard

from ..policies.test_acceptance import COSTLY, D, K, planted_trace
from ..traces.tiny import with_repetitive_text
from .fitted import fit_acceptance

GRID = ActionSpace.grid(range(2, 9), (0, 1, 2), (K,)).with_no_draft()
FIT = AcceptanceOptions(top_k=K, max_depth=D, max_rows=8, lookup_tokens=2, steps=40, rounds=2)
OPTIONS = TrainAcceptanceOptions(FIT, folds=2, ridges=(1.0, 1e6))


def small_traces(count: int = 6) -> list[Trace]:
    """Planted traces with some lookups, of two kinds."""
    return [
        replace(
            with_repetitive_text(planted_trace(seed, positions=30), seed=seed),
            domain=f"kind {seed % 2}",
        )
        for seed in range(count)
    ]


def train(folder: Path, options: TrainAcceptanceOptions = OPTIONS, **extra) -> TrainedAcceptance:
    return train_acceptance(
        small_traces(), GRID, COSTLY, folder, options, target_id="t", head_id="h", **extra
    )


def assert_same_runs(first: Path, second: Path) -> None:
    """Same curves, card, weights and metadata; a file's metadata is in no order."""
    for name in ("metrics.jsonl", "policy/README.md", "calibration.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, other = (safe_open(f / "policy" / "model.safetensors", "np") for f in (first, second))
    with one, other:
        assert one.metadata() == other.metadata()
        assert one.keys() == other.keys()
        for name in one.keys():  # noqa: SIM118
            np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedAcceptance]:
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder)


def test_the_gain_is_that_of_policies_that_never_saw_the_prompt(whole) -> None:
    _, trained = whole
    traces = small_traces()
    fold_of = assign_folds(traces, 2)
    seconds = {ridge: 0.0 for ridge in OPTIONS.ridges}
    constant = 0.0
    for fold in range(2):
        training = [trace for trace, own in zip(traces, fold_of, strict=True) if own != fold]
        held_out = [trace for trace, own in zip(traces, fold_of, strict=True) if own == fold]
        tree = best_constant(training, GRID, COSTLY)
        constant += sum(outcome.seconds for outcome in simulate(tree, held_out, COSTLY))
        for ridge in OPTIONS.ridges:
            model = fit_acceptance(training, COSTLY, replace(FIT, ridge=ridge))
            for trace in held_out:
                seconds[ridge] += simulate(AcceptancePolicy(model, COSTLY), [trace], COSTLY)[
                    0
                ].seconds
    best = min(seconds, key=seconds.get)
    assert trained.ridge == best
    assert seconds[1.0] != seconds[1e6]
    assert trained.gain.gain == pytest.approx(constant / seconds[best] - 1, rel=1e-9)
    assert trained.gain.low < trained.gain.gain < trained.gain.high
    expected = fit_acceptance(traces, COSTLY, replace(FIT, ridge=best))
    np.testing.assert_array_equal(trained.model.stop_weights, expected.stop_weights)
    assert trained.model.rate == expected.rate


def test_what_a_run_leaves(whole) -> None:
    folder, trained = whole
    model = load_acceptance(trained.path / "model.safetensors", target_id="t", head_id="h")
    assert (model.gain, model.constant) == (trained.gain.gain, trained.model.constant)
    assert model.constant == best_constant(small_traces(), GRID, COSTLY).params
    for picture in (folder / "learning_curve.png", trained.path / "learning_curve.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert CostTable.from_json(trained.path / "cost.json") == COSTLY
    card = (trained.path / "README.md").read_text()
    for text in (
        "180 positions of 6 prompts", "| made up, draft in float32 |", "| kind 1 | 3 | ",
        f"| all | 6 | {trained.gain} |", f"penalty {trained.ridge:g}", "seed 0",
    ):  # fmt: skip
        assert text in card
    calibration = json.loads((folder / "calibration.json").read_text())
    pool = K + D * K**2
    assert sum(row["candidates"] for row in calibration["draft"]) == 180 * pool
    assert sum(row["candidates"] for row in calibration["lookup"]) > 0
    assert [row["depth"] for row in calibration["acceptance_length"]] == [0, 1, 2]
    stages = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").open()]
    assert stages == ["draft", "lookup", "stopping"] * 3


def test_a_run_that_was_cut_short_ends_as_an_unbroken_one(whole, tmp_path: Path) -> None:
    class CutShortError(Exception):
        pass

    def cut(stage: str, share: float) -> None:
        if share > 0.6:
            raise CutShortError

    with pytest.raises(CutShortError):
        train(tmp_path, progress=cut)
    assert not (tmp_path / "policy").exists()
    shown: list[float] = []
    train(tmp_path, progress=lambda stage, share: shown.append(share))
    assert 0.5 < shown[0] <= 0.6
    assert_same_runs(tmp_path, whole[0])
    with pytest.raises(ValueError, match=r"folds must be 2, as in the run .* got 3"):
        train(tmp_path, replace(OPTIONS, folds=3))


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.fitting.test_train_acceptance import train
train(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_with_signal_9(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder)]
        return subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})

    assert start("a").wait() == 0
    process = start("b")
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("b/checkpoints/step-*3.*")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "b" / "policy").exists()
    assert start("b").wait() == 0
    assert_same_runs(tmp_path / "b", tmp_path / "a")


def test_the_command(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    shards = []
    for trace in small_traces():
        write_shard(traces / f"{trace.prompt_id}.safetensors", trace)
        shards.append(
            {
                "file": f"{trace.prompt_id}.safetensors",
                "prompt_id": trace.prompt_id,
                "domain": trace.domain,
                "positions": len(trace),
            }
        )
    index = {
        "format": FORMAT, "version": VERSION, "target_id": "t", "head_id": "h",
        "draft_dtype": "float32", "hidden_size": 6, "top_ks": [K], "max_depth": D,
        "max_new_tokens": 30, "lookup_tokens": 12, "shards": shards,
    }  # fmt: skip
    write_index(traces, index)
    COSTLY.to_json(tmp_path / "cost.json")
    GRID.to_json(tmp_path / "actions.json")
    arguments = [
        "train-policy", "-a", "acceptance", "--traces", traces, "--cost", tmp_path / "cost.json",
        "--actions", tmp_path / "actions.json", "--top-k", K, "--max-depth", D, "--max-rows", 8,
        "--chain-length", 0, "--steps", 20, "--folds", 2, "--output", tmp_path / "run",
    ]  # fmt: skip
    terminal = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=terminal)
    assert result.exit_code == 0, result.output
    assert "cross-validated: " in result.stderr
    model = load_acceptance(tmp_path / "run" / "policy" / "model.safetensors", head_id="h")
    assert (model.lookup_tokens, model.lookup_net, model.top_k) == (0, None, K)
    arguments[arguments.index("--max-depth") + 1] = 7
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=terminal)
    assert result.exit_code == 1
    assert "depth=7 are not in the trace" in result.stderr
    result = CliRunner().invoke(
        app, ["train-policy", "-a", "acceptance", "--prompts", "x", "-o", "y"], env=terminal
    )
    assert "it needs --traces" in result.stderr


def test_reliability_by_counting() -> None:
    traces = small_traces(2)
    model = fit_acceptance(traces, COSTLY, FIT)
    positions = TracePositions.of(traces, K, D, 2)
    table = reliability(model, score_positions(model, positions), positions)
    expected = np.zeros_like(table)
    start = 0
    for trace in traces:
        for position in range(len(trace)):
            one = positions.candidates.take(slice(start + position, start + position + 1))
            for node, chance in enumerate(model.survival(one).pool[0]):
                true = node in trace.path[position, 0]
                expected[0, min(int(chance * 10), 9)] += (1, chance, true)
            for depth in range(D + 1):
                if not trace.lookup_match[position]:
                    continue
                # The draft never proposes these looked-up tokens.
                for level, chance in enumerate(model.survival(one.at_depth(depth)).lookup[0]):
                    true = trace.lookup_accepted[position] > level
                    expected[1, min(int(chance * 10), 9)] += (1, chance, true)
        start += len(trace)
    # The nets run on other batches: their last digits may differ.
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)


def test_folds_and_gains() -> None:
    traces = [*small_traces(6), *small_traces(2)]
    fold_of = assign_folds(traces, 3)
    assert sorted(fold_of[:6]) == [0, 0, 1, 1, 2, 2]
    assert fold_of[6:].tolist() == fold_of[:2].tolist()
    with pytest.raises(ValueError, match=r"folds must lie in 2..6, the number of prompts, got 7"):
        assign_folds(traces, 7)
    reference = np.linspace(1, 2, 30)
    gain = gain_over(reference / 1.25, reference)
    assert (gain.gain, gain.low, gain.high) == pytest.approx((0.25, 0.25, 0.25))
    draw = np.random.default_rng(0).normal(1.0, 0.1, 100)
    spread = gain_over(np.ones(100), draw)
    # 3.92 standard errors of 0.01; those of 100 draws are known to a fourteenth, 2 sigma of that.
    assert spread.high - spread.low == pytest.approx(0.0392, rel=0.15)


def test_actions_missing_from_traces_or_cost_table_are_left_out() -> None:
    traces = small_traces(2)
    wider = ActionSpace([*GRID, TreeParams(9, 1, 4), TreeParams(9, 3, K), TreeParams(10, 2, K)])
    assert known_actions(wider, traces, COSTLY) == GRID
    with pytest.raises(ValueError, match=r"have top_k in \[2\], depth up to 2 and 8 rows"):
        known_actions(ActionSpace([TreeParams(2, 0, 1)]), traces, COSTLY)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folds must be an int of at least 2, got 1"):
        TrainAcceptanceOptions(folds=1)
    with pytest.raises(ValueError, match="ridges must be positive numbers"):
        TrainAcceptanceOptions(ridges=(1.0, -1.0))
    with pytest.raises(ValueError, match="depth=3 are not in the trace"):
        train(tmp_path / "a", replace(OPTIONS, fit=replace(FIT, max_depth=3)))
    with pytest.raises(ValueError, match="rows must lie in"):
        train(tmp_path / "a", replace(OPTIONS, fit=replace(FIT, max_rows=9)))
    assert not (tmp_path / "a").exists()
