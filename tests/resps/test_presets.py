"""Grids of Re-SpS: policies, resumed training, and the comparison that follows."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from eaglerl.actions import ActionSpace
from eaglerl.cli.app import app
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.resps.policies import load_resps_policy
from eaglerl.resps.presets import PresetInputs, left_over, preset_policies, train_preset

from ..traces.planted import ACTIONS, COST, WIDTH, planted_traces

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


class StopError(Exception):
    """Ends a training in its middle."""


@pytest.fixture(autouse=True)
def _text(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(
        "eaglerl.envs.observations.sentence_encoder",
        lambda *_: lambda text: np.full(384, len(text) / 100, np.float32),
    )


def inputs(**changes: Any) -> PresetInputs:
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "x" * len(ids))
    given = {
        "traces": planted_traces(3, positions=60),
        "actions": ACTIONS,
        "cost": COST,
        "tokenizer": tokenizer,
        "head_id": "0123456789abcdef",
        "steps": 12,
    }
    return PresetInputs(**{**given, **changes})


def test_the_grids() -> None:
    ppo, dqn = preset_policies("ppo-modes"), preset_policies("dqn-modes")
    assert (len(set(ppo)), len(set(dqn))) == (8, 4)
    assert len({policy.label for policy in ppo + dqn}) == 12
    assert ppo[4].label == "ppo-ofl-features-max-entropy"
    assert len(preset_policies("ppo-modes", context=False)) == 4
    with pytest.raises(ValueError, match=r"preset must be one of .*, got 'all'"):
        preset_policies("all")


@pytest.mark.parametrize("name", ["ppo-modes", "dqn-modes"])
def test_every_policy_is_what_its_label_says(name: str, tmp_path: Path) -> None:
    policies = preset_policies(name)
    modes = train_preset(policies, inputs(), tmp_path)
    assert [mode.label for mode in modes] == [policy.label for policy in policies]
    for wanted, mode in zip(policies, modes, strict=True):
        policy = load_resps_policy(mode.argument)
        settings, weights = policy.settings, policy.weights
        assert policy.algorithm == wanted.algorithm
        assert settings.use_context_only_state == wanted.context_only
        assert weights.mlp_in_features == (384 if wanted.context_only else WIDTH)
        assert settings.enable_max_entropy == wanted.max_entropy
        assert settings.max_entropy_inference == wanted.max_entropy
        # As in Re-SpS: 10 cycles while learning, 30 when it is evaluated.
        assert settings.action_cache_steps == 30
        widths = tuple(len(bias) for bias in weights.hidden_biases)
        expected = {"ofl": ((128, 128), "tanh")}.get(wanted.version, ((512, 256, 128), "relu"))
        assert (widths, weights.activation) == expected
        card = json.loads((Path(mode.argument) / "policy.json").read_text())
        assert card["training"]["windows"] >= 12
        assert card["head_id"] == "0123456789abcdef"


def test_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eaglerl.resps.train_online._CHECKPOINT_WINDOWS", 20)
    policies = preset_policies("dqn-modes", context=False)
    whole = train_preset(policies, inputs(steps=60), tmp_path / "whole")

    def stop(stage: str, share: float) -> None:
        # In the second policy, beyond its first checkpoint.
        if share > 0.9:
            raise StopError

    with pytest.raises(StopError):
        train_preset(policies, inputs(steps=60), tmp_path / "cut", progress=stop)
    first = tmp_path / "cut" / "policies" / policies[0].label / "policy" / "policy.json"
    written = first.stat().st_mtime_ns
    assert not (tmp_path / "cut" / "policies" / policies[1].label / "policy").exists()
    resumed = train_preset(policies, inputs(steps=60), tmp_path / "cut")
    assert first.stat().st_mtime_ns == written
    for one, other in zip(whole, resumed, strict=True):
        expected = load_resps_policy(one.argument).weights.tensors()
        actual = load_resps_policy(other.argument).weights.tensors()
        assert all(torch.equal(value, actual[name]) for name, value in expected.items())
    with pytest.raises(ValueError, match="were trained with other seed, steps"):
        train_preset(policies, inputs(seed=1), tmp_path / "cut")


def test_prompts_that_are_decoded_are_left_out(tmp_path: Path) -> None:
    traces = planted_traces(3, positions=20)
    assert left_over(traces, [traces[1].prompt_id, "another"]) == [traces[0], traces[2]]
    with pytest.raises(ValueError, match="questions that are not decoded, got none"):
        train_preset(preset_policies("ppo-modes"), inputs(traces=[]), tmp_path)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=TERMINAL)


def test_one_command_trains_and_compares(
    tiny: SimpleNamespace, policies: SimpleNamespace, tmp_path: Path
) -> None:
    actions = tmp_path / "actions.json"
    trees = [NO_DRAFT, TreeParams(4, 1, 2), TreeParams(6, 2, 2), TreeParams(20, 7, 4)]
    ActionSpace(trees).to_json(actions)
    folder = tmp_path / "grid"
    command = [
        "compare", folder, tiny.questions, "--preset", "dqn-modes", "--no-preset-context",
        "--preset-steps", 4, "--traces", policies.cost_file.parent / "traces",
        "--cost", policies.cost_file, "--actions", actions, "-M", "plain", "-n", 8,
        "--repeats", 1, "--per-file", 1,
        "--split", "all", "--draft-dtype", "float32", "--threads", 1, *tiny.arguments,
    ]  # fmt: skip
    result = run(*command)
    assert result.exit_code == 0, result.output
    # The last is deeper than the traces.
    assert "1 of the 4 trees of --actions are left out" in result.stderr
    for label in ("dqn-features-max-entropy", "dqn-features "):
        assert label in result.stdout
    records = (folder / "records.jsonl").read_bytes()
    again = run(*command)
    assert again.stdout == result.stdout
    assert (folder / "records.jsonl").read_bytes() == records
    together = run(*command[:1], tmp_path / "together", *command[2:], "-c", 2, "--group", 2)
    assert together.exit_code == 0, together.output
    assert "Questions at once, 1 group:" in together.stdout
    assert "outputs of all modes identical to plain decoding" in together.stdout
    assert "failed" not in together.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "all"], "preset must be one of"),
        (["--preset", "ppo-modes"], "Invalid value for --traces: --preset trains on it"),
        (["--preset", "ppo-modes", "--traces", "x"], "--cost: --preset trains on it"),
        (
            ["--preset", "dqn-modes", "--traces", "x", "--cost", "y", "-M", "dqn-context=tuned"],
            "['dqn-context'] are modes of --preset",
        ),
    ],
)
def test_what_a_preset_needs(
    tiny: SimpleNamespace, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run("compare", tmp_path / "new", tiny.questions, *tiny.arguments, *arguments)
    text = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, message in text) == (2, True), text
