"""The commands `record` and `calibrate`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app
from eaglerl.cost.cost_table import CostTable
from eaglerl.fingerprints import split_of
from eaglerl.traces.trace_set import TraceSet
from eaglerl.training.data import is_held_out

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def tiny(
    tiny_folders: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A small random target with a head, and two files of prompts."""
    root = tmp_path_factory.mktemp("prompts")
    rows = [[index, index + 1, index + 2] for index in range(60)]
    (root / "own.jsonl").write_text("".join(json.dumps({"p": r, "r": [1]}) + "\n" for r in rows))
    questions = [{"question_id": i, "turns": [f"What is {i}?", "And now?"]} for i in range(3)]
    (root / "sums.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return SimpleNamespace(
        root=root,
        held_out=[row for row in rows if is_held_out(row)],
        target=tiny_folders.target,
        arguments=tiny_folders.arguments,
    )


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=TERMINAL)


def test_record_and_resume(tiny: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    options = ["--top-k", "1,2", "--max-depth", "2", "-n", "5", *tiny.arguments]
    own, questions = tiny.root / "own.jsonl", tiny.root / "sums.jsonl"
    result = run("record", folder, questions, "--per-file", 2, *options)
    assert result.exit_code == 0, result.output
    assert f"{folder} holds 2 traces with 8 positions" in result.stderr
    result = run("record", folder, questions, own, "--held-out", *options)
    assert result.exit_code == 0, result.output
    traces = TraceSet(folder)
    assert [trace.domain for trace in traces].count("sums") == 3
    recorded = [trace.prompt_ids.tolist() for trace in traces if trace.domain == "self-written"]
    assert sorted(recorded) == sorted(tiny.held_out)
    assert len(recorded) > 0
    question = AutoTokenizer.from_pretrained(tiny.target).apply_chat_template(
        [{"role": "user", "content": "What is 0?"}], add_generation_prompt=True, return_dict=False
    )
    assert question in [trace.prompt_ids.tolist() for trace in traces]
    assert traces[0].top_ks == (1, 2)


def test_questions_are_split_by_their_prompts(tiny: SimpleNamespace, tmp_path: Path) -> None:
    questions = tmp_path / "many.jsonl"
    questions.write_text("".join(json.dumps({"turns": [f"Say {i}."]}) + "\n" for i in range(12)))
    options = ["--top-k", "1", "--max-depth", "0", "-n", "2", *tiny.arguments]
    halves = {}
    for half in ("train", "test"):
        result = run("record", tmp_path / half, questions, "--split", half, *options)
        assert result.exit_code == 0, result.output
        halves[half] = {trace.prompt_id for trace in TraceSet(tmp_path / half)}
        assert {split_of(name) for name in halves[half]} == {half}
    assert len(halves["train"] | halves["test"]) == 12
    result = run("record", tmp_path / "none", questions, "--split", "half", *options)
    assert result.exit_code == 2
    assert "must be one of all, train, test, got 'half'" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"p": [1, 2]}\n{"p": [1', "line 2 of"),
        ('{"text": "abc"}', 'must have "p", token ids, or "turns", texts'),
        ('{"p": [1, "2"]}', "'p[1]' of line 1 of the prompts"),
        ('{"p": [999999]}', "holds token id 999999"),
    ],
)
def test_broken_prompts_are_named(
    tiny: SimpleNamespace, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    result = run("record", tmp_path / "traces", path, "-n", "5", *tiny.arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_wrong_usage(tiny: SimpleNamespace, tmp_path: Path) -> None:
    own = tiny.root / "own.jsonl"
    result = run("record", tmp_path / "traces", own, "--top-k", "a,b", *tiny.arguments)
    assert result.exit_code == 2
    assert "'a,b' is not of the form K,..." in result.stderr
    result = run("record", tmp_path / "traces", tmp_path / "none.jsonl", *tiny.arguments)
    assert result.exit_code == 1
    assert "must name existing JSONL files" in result.stderr


def test_calibrate(tiny: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "cost.json"
    arguments = ["--passes", 3, "--longest-context", 400, *tiny.arguments]
    for _ in range(6):
        result = run("calibrate", path, *arguments)
        # Beside other tests, the times of so small a model may be refused: then measure again.
        if result.exit_code == 0 or "Something else kept the machine busy" not in result.stderr:
            break
    assert result.exit_code == 0, result.output
    cost = CostTable.from_json(path)
    assert cost.draft_dtype == "int8"
    assert "threads" in cost.machine
    assert f"{cost.samples} cycles" in result.stderr
