"""Training on traces and live: it finds a planted rule, and resumes after being killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglerl.envs.standardize import Standardization, StandardizedVecEnv
from eaglerl.envs.trace_env import TraceVecEnv
from eaglerl.envs.trace_windows import TraceWindows
from eaglerl.resps.policies import load_resps_policy
from eaglerl.sb3.greedy_outcome import greedy_outcome
from eaglerl.sb3.train_policy import (
    TrainPolicyOptions,
    train_policy,
    train_policy_live,
)
from eaglerl.traces.oracle import bounds
from eaglerl.traces.simulation import simulate, total

from ..resps.small_policies import same_weights
from ..traces.planted import ACTIONS, COST, WIDTH, planted_traces
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.tiny import tiny_decoder, tiny_prompts

SMALL = {
    "ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
    "dqn": {"buffer_size": 400, "learning_starts": 64, "gradient_steps": 1},
}


def small_options(algorithm: str, steps: int = 640, **changes: object) -> TrainPolicyOptions:
    settings = {"cache_steps": 2, "n_envs": 8, "checkpoint_steps": 128, "net_arch": (16,)}
    return TrainPolicyOptions(algorithm, steps, model=SMALL[algorithm], **{**settings, **changes})


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("dqn", marks=pytest.mark.slow)])
def test_a_planted_rule_is_found(algorithm: str, tmp_path: Path) -> None:
    """20,000 steps suffice for 95 % of the oracle, which knows the future besides."""
    options = TrainPolicyOptions(algorithm, 20_000, cache_steps=1)
    held_out, unseen = planted_traces(10, seed=1), planted_traces(10, seed=2)
    trained = train_policy(planted_traces(20), ACTIONS, COST, tmp_path, options, held_out=held_out)
    best = bounds(unseen, ACTIONS, COST)
    outcome = total(simulate(load_resps_policy(trained.path), unseen, COST))
    assert outcome.tokens == best.tokens
    assert best.oracle / outcome.seconds >= 0.95
    # No constant tree comes near.
    assert best.oracle / best.constant < 0.85
    # The vectorised walk agrees with decoding cycle by cycle.
    windows = TraceWindows(unseen, ACTIONS, COST, cache_steps=1)
    tokens, seconds = greedy_outcome(trained.policy.weights, windows)
    assert (tokens, seconds) == (outcome.tokens, pytest.approx(outcome.seconds, rel=1e-6))


@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_a_run_that_was_cut_short_ends_as_an_unbroken_one(algorithm: str, tmp_path: Path) -> None:
    traces, held_out = planted_traces(4, positions=40), planted_traces(2, seed=1, positions=40)

    class CutShortError(Exception):
        pass

    def cut(stage: str, share: float) -> None:
        if share > 0.6:
            raise CutShortError

    options = small_options(algorithm, extras=("acceptance", "position"))
    whole = train_policy(traces, ACTIONS, COST, tmp_path / "a", options, held_out=held_out)
    with pytest.raises(CutShortError):
        train_policy(
            traces, ACTIONS, COST, tmp_path / "b", options, held_out=held_out, progress=cut
        )
    # The draws of what runs in between must not matter.
    np.random.random(7)
    torch.rand(3)
    resumed = train_policy(traces, ACTIONS, COST, tmp_path / "b", options, held_out=held_out)
    assert same_weights(whole.policy.weights, resumed.policy.weights)
    assert resumed.records == whole.records
    assert [record["step"] for record in whole.records][-1] == 640
    other = train_policy(
        traces, ACTIONS, COST, tmp_path / "c", small_options(algorithm, seed=1), held_out=held_out
    )
    assert not same_weights(whole.policy.weights, other.policy.weights)


def test_progress_tells_the_speed_from_the_first_rollout_on(tmp_path: Path) -> None:
    told: list[str] = []
    # No record before the end: the progress must come from the windows themselves.
    options = small_options("ppo", checkpoint_steps=10_000)
    trained = train_policy(
        planted_traces(4, positions=40), ACTIONS, COST, tmp_path, options,
        progress=lambda stage, _: told.append(stage),
    )  # fmt: skip
    stages = [stage for stage in told if "windows" in stage]
    assert stages[0] == "0 windows"
    speeds = [float(re.search(r"([\d.]+) tokens/s", stage).group(1)) for stage in stages[1:]]
    assert len(speeds) > 2
    # The last one leaves out only the last rollout.
    assert speeds[-1] == pytest.approx(trained.records[0]["tokens_per_second"], rel=0.25)
    assert min(speeds) > 0


SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from tests.traces.planted import ACTIONS, COST, planted_traces
from tests.sb3.test_train_policy import small_options
from eaglerl.sb3.train_policy import train_policy
train_policy(
    planted_traces(4, positions=40), ACTIONS, COST, sys.argv[2], small_options(sys.argv[1], 3200)
)
"""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "dqn"])
def test_killed_with_signal_9(algorithm: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def start(folder: str) -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, algorithm, str(tmp_path / folder)]
        return subprocess.Popen(command, cwd=root, env=environment)

    assert start("a").wait() == 0
    process = start("b")
    checkpoints = tmp_path / "b" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "b" / "policy").exists()
    assert start("b").wait() == 0
    whole, resumed = (load_resps_policy(tmp_path / name / "policy") for name in "ab")
    assert same_weights(whole.weights, resumed.weights)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    traces = planted_traces(4, positions=40)
    result = train_policy(
        traces, ACTIONS, COST, tmp_path, small_options("ppo"), held_out=traces, head="abc"
    )
    assert sorted(file.name for file in (tmp_path / "policy").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "policy.json",
    ]
    card = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert (card["algorithm"], card["head_id"]) == ("ppo", "abc")
    assert card["training"]["validation_tokens_per_second"] == result.validation
    model_card = (tmp_path / "policy" / "README.md").read_text()
    assert "| learned from | " in model_card
    assert "On 4 prompts held out, by which" in model_card
    assert f"decodes {result.validation:.1f} tokens/s" in model_card
    assert (tmp_path / "reward_curve.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.records
    assert result.validation == max(record["validation"] for record in result.records)
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    traces = planted_traces(2, positions=20)
    train_policy(traces, ACTIONS, COST, tmp_path, small_options("ppo", 128))
    with pytest.raises(ValueError, match=r"gamma must be 0.9, as in the run .* got 0.5"):
        train_policy(traces, ACTIONS, COST, tmp_path, small_options("ppo", 128, gamma=0.5))


def test_a_broken_checkpoint_is_skipped_and_named(tmp_path: Path) -> None:
    traces = planted_traces(2, positions=20)
    whole = train_policy(traces, ACTIONS, COST, tmp_path, small_options("ppo"))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=newest.name):
        resumed = train_policy(traces, ACTIONS, COST, tmp_path, small_options("ppo"))
    assert same_weights(whole.policy.weights, resumed.policy.weights)


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch:UserWarning")
def test_live(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    result = train_policy_live(
        decoder, tiny_prompts(3), TREES, tmp_path, small_options("ppo", 96), max_new_tokens=20
    )
    prompt = tiny_prompts(3)[0].token_ids
    expected = decoder.generate(prompt, TREES[0], max_new_tokens=20).sequences
    policy = load_resps_policy(result.path, head=decoder.draft_head)
    for chosen in (policy, policy.fused()):
        assert torch.equal(decoder.generate(prompt, chosen, max_new_tokens=20).sequences, expected)
    # A resumed run begins a new sequence.
    (tmp_path / "policy" / "policy.json").unlink()
    train_policy_live(
        decoder, tiny_prompts(3), TREES, tmp_path, small_options("ppo", 96), max_new_tokens=20
    )
    assert (tmp_path / "policy" / "policy.json").exists()


def test_standardization_folds_away() -> None:
    traces = planted_traces(3, positions=30)
    standardization = Standardization.of_traces(traces, WIDTH + 1)
    features = np.concatenate([trace.features for trace in traces]).astype(np.float64)
    np.testing.assert_allclose(standardization.mean[:-1], features.mean(0), rtol=1e-5)
    np.testing.assert_allclose(standardization.scale[:-1], features.std(0), rtol=1e-5)
    assert (standardization.mean[-1], standardization.scale[-1]) == (0, 1)
    env = TraceVecEnv(traces, ACTIONS, COST, n_envs=3, extras=("position",))
    shown = StandardizedVecEnv(
        TraceVecEnv(traces, ACTIONS, COST, n_envs=3, extras=("position",)), standardization
    )
    raw = env.reset()
    np.testing.assert_allclose(
        shown.reset(), (raw - standardization.mean) / standardization.scale, rtol=1e-6
    )


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"algorithm must be one of \['dqn', 'ppo'\], got 'a2c'"):
        TrainPolicyOptions("a2c")
    with pytest.raises(ValueError, match="total_steps must be an int of at least 1, got 0"):
        TrainPolicyOptions("ppo", 0)
    with pytest.raises(ValueError, match=r"gamma must lie in 0..1, got 2"):
        TrainPolicyOptions("ppo", gamma=2)
