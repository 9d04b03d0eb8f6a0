"""The command `compare`: what it prints, and what it refuses before it loads anything."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app

TERMINAL = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
FAST = ["-n", "8", "--repeats", "1", "--per-file", "1", "--split", "all", "--grid", "4/1/2,6/2/4"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=TERMINAL)


def test_tables_and_json(tiny: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    options = [*FAST, "--draft-dtype", "float32", "--threads", "1", *tiny.arguments]
    result = run("compare", folder, tiny.questions, "-M", "tuned", "-M", "t=tree:4/1/2", *options)
    assert result.exit_code == 0, result.output
    title = "2 questions (all), each decoded 1 x, 8 new tokens, greedy"
    for text in (title, "/ tuned", "2 of 2", "sums"):
        assert text in result.stdout
    shown = run("compare", folder)
    assert shown.stdout == result.stdout
    figures = json.loads(run("compare", folder, "--json", "--against", "t").stdout)
    assert [mode["mode"] for mode in figures["modes"]] == ["plain", "tuned", "t"]
    assert figures["modes"][2]["ratios"]["t"]["ratio"] == 1.0
    assert figures["failed"] == []
    other = run("compare", folder, tiny.questions, "-M", "tuned", *options, "-n", "9")
    assert other.exit_code == 1
    assert "holds another comparison: max_new_tokens is 8 there, 9 now" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-M", "quick"], 2, "the kind of a mode must be one of"),
        (["-M", "tree:8"], 2, "three whole numbers T/D/K"),
        (["-M", "policy:nowhere"], 2, "must be a folder with policy.json"),
        (["-M", "baseline:confidence"], 2, "the mode 'baseline:confidence' needs it"),
        (["-M", "baseline:lookup-rule", "--cost", "COST"], 2, "--traces"),
        (["--grid", "8/2"], 2, "three whole numbers T/D/K"),
        (["--split", "half"], 1, "split must be one of ['test', 'train', 'all'], got 'half'"),
        (["--top-p", "0"], 1, "top_p must lie in (0, 1]"),
        (["--actions", "all"], 2, "neither a file nor one of"),
        (["--against", "tree:4/1/2"], 2, "is not one of the modes"),
        (["--cost", "nowhere.json"], 1, "nowhere.json"),
        (["nowhere.jsonl"], 1, "questions must name existing JSONL files"),
        (["BROKEN"], 1, "line 2 of"),
        (["--draft", "nowhere"], 1, "--draft must be a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    tiny: SimpleNamespace,
    policies: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("eaglerl.cli.compare_command.load_decoder", never)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question_id": 1, "turns": ["a"]}\n{"question_id": 2, "turns": []}\n')
    names = {"COST": policies.cost_file, "BROKEN": broken}
    given = [names.get(argument, argument) for argument in arguments]
    result = run("compare", tmp_path / "new", tiny.questions, *tiny.arguments, *given)
    text = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, message in text) == (code, True), text
    assert not (tmp_path / "new").exists()


def test_folder_without_a_comparison(tmp_path: Path) -> None:
    result = run("compare", tmp_path)
    assert result.exit_code == 1
    assert "manifest.json' cannot be read" in result.stderr


def test_interrupt_says_how_to_go_on(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eaglerl.cli.compare_command.load_decoder", lambda *_, **__: None)
    monkeypatch.setattr("eaglerl.evaluation.running.comparison.compare", stop)
    result = run("compare", tmp_path / "new", tiny.questions, *tiny.arguments)
    assert result.exit_code == 130
    assert "the same command continues" in " ".join(result.stderr.split())
