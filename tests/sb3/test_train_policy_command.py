"""The command `train-policy`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from eaglerl.actions import ActionSpace
from eaglerl.cli.app import app
from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.trace_options import split_traces
from eaglerl.eagle3.policy import NO_DRAFT
from eaglerl.resps.policies import load_resps_policy
from eaglerl.resps.train_reference import train_reference
from eaglerl.traces.recording import RecordOptions, record

from ..traces.planted import ACTIONS, COST, planted_traces
from ..traces.test_oracle import ACTIONS as TREES
from ..traces.test_oracle import COST as TREE_COST
from ..traces.tiny import tiny_decoder, tiny_prompts

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train-policy", *map(str, arguments)], env=TERMINAL)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces, a cost table and actions that fit each other."""
    root = tmp_path_factory.mktemp("files")
    options = RecordOptions(top_ks=(1, 2), max_depth=2, max_new_tokens=20, slots=4)
    record(tiny_decoder(), tiny_prompts(12), root / "traces", options=options)
    TREE_COST.to_json(root / "cost.json")
    TREES.to_json(root / "actions.json")
    return root


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("ppo", {"horizon": 2, "compressed_size": 3}),
        ("dqn", {"similarity_threshold": 0.5}),
    ],
)
def test_on_traces(files: Path, algorithm: str, more: dict, tmp_path: Path) -> None:
    extra = [part for name, value in more.items() for part in (f"--{name}", value)]
    arguments = [
        "--traces", files / "traces", "--cost", files / "cost.json", "-a", algorithm,
        "--actions", files / "actions.json", "--select", 3, "--steps", 1500, "--held-out", 0.5,
        "--net-arch", "16", "--cache-steps", 2, "--extras", "acceptance,position",
        "--output", tmp_path, *(str(part).replace("_", "-") for part in extra),
    ]  # fmt: skip
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "% against the best constant tree" in result.stderr
    policy = load_resps_policy(tmp_path / "policy")
    assert policy.algorithm == algorithm
    assert len(policy.settings.actions) == 3
    assert policy.settings.spec.extras == ("acceptance", "position")
    assert {name: getattr(policy.settings, name) for name in more} == more
    # A complete run is not repeated.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert run(*arguments).exit_code == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before
    # Another run does not take its folder.
    result = run(*arguments, "--seed", 3)
    assert result.exit_code == 1
    assert "seed must be 0" in result.stderr


def test_trees_without_an_answer_are_left_out(files: Path, tmp_path: Path) -> None:
    result = run(
        "--traces", files / "traces", "--cost", files / "cost.json", "--steps", 64,
        "--held-out", 0, "--net-arch", "8", "--output", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    grid, known = read_actions("cpu-grid"), load_resps_policy(tmp_path / "policy").settings.actions
    assert f"{len(grid) - len(known)} of the {len(grid)} trees" in result.stderr
    assert len(known) > 1
    assert {tree.top_k for tree in known} <= {1, 2}
    assert {tree.depth for tree in known} <= {0, 1, 2}


def test_as_published(files: Path, tmp_path: Path) -> None:
    result = run(
        "--traces", files / "traces", "--cost", files / "cost.json", "--reference", "--steps", 60,
        "--actions", files / "actions.json", "--output", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    policy = load_resps_policy(tmp_path / "policy")
    assert policy.settings.reference
    card = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert card["training"]["windows"] >= 60


def test_a_reference_run_goes_on(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(stage: str, share: float) -> None:
        if share > 0.9:
            raise StopError

    traces = planted_traces(4, positions=60)
    settings = {"total_steps": 700, "action_cache_steps": 2, "n_steps": 16, "batch_size": 16}
    whole = train_reference("ppo", traces, ACTIONS, COST, tmp_path / "a", **settings)
    with pytest.raises(StopError):
        train_reference("ppo", traces, ACTIONS, COST, tmp_path / "b", progress=stop, **settings)
    resumed = train_reference("ppo", traces, ACTIONS, COST, tmp_path / "b", **settings)
    expected, actual = whole.weights.tensors(), resumed.weights.tensors()
    assert all((value == actual[name]).all() for name, value in expected.items())
    assert whole.get_resume_info()["windows"] == resumed.get_resume_info()["windows"] >= 700


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --traces"),
        (["--traces", "x"], "eaglerl calibrate"),
        (["--traces", "x", "--prompts", "y"], "give either --traces"),
        (["--prompts", "y", "--select", 3], "needs --traces"),
        (["--prompts", "y", "--reference"], "needs --traces"),
        (["--traces", "x", "--cost", "y", "--reference", "--horizon", 2], "Re-SpS has no"),
        (["--traces", "x", "--cost", "y", "--net-arch", "a"], "is not of the form N,..."),
        (["--traces", "x", "--cost", "y", "-a", "a2c"], "algorithm must be one of"),
        (["--traces", "x", "--cost", "y", "--actions", "gpu"], "neither a file nor one of cpu"),
    ],
)
def test_wrong_arguments_are_named(arguments: list, message: str, tmp_path: Path) -> None:
    result = run("-o", tmp_path, *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_named_actions_and_the_split() -> None:
    assert read_actions("cpu") == ActionSpace.cpu()
    assert read_actions("cpu-grid")[0] == NO_DRAFT
    assert len(read_actions("published")) == 177
    assert len(read_actions("published-bins")) == 180
    assert len(read_actions("resps")) == 177
    assert len(read_actions("resps-grid")) == 180

    class Named:
        def __init__(self, number: int) -> None:
            self.prompt_id = f"{number * 2654435761 % 2**64:016x}"

    traces = [Named(number) for number in range(2000)]
    learned, held_out = split_traces(traces, 0.25)
    assert len(learned) + len(held_out) == 2000
    assert 400 < len(held_out) < 600
    again = split_traces(list(reversed(traces)), 0.25)[1]
    assert {trace.prompt_id for trace in again} == {trace.prompt_id for trace in held_out}
    assert split_traces(traces, 0.0)[1] == []
