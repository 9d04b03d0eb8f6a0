"""`eaglerl headroom` from a log or from traces to tables, JSON and a page."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app

from ..evaluation.made_up import write_traces
from ..traces.planted import COST
from ..traces.tiny import made_up_trace
from .logs import drawn_lines, either, write_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_log(tmp_path / "steps.jsonl", drawn_lines(either(0.2, 0.9), requests=8, steps=20))
    return tmp_path / "steps.jsonl"


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    lines = [f"verify,{rows},1,0,{0.03 + 0.002 * rows}\n" for rows in (1, 64)]
    (tmp_path / "costs.csv").write_text(
        "kind,rows,batch,context,seconds\n" + "".join(lines) + "draft,,1,0,0.001\n"
    )
    return tmp_path / "costs.csv"


def write_some_traces(folder: Path, count: int) -> Path:
    write_traces(folder, [made_up_trace(40, seed=seed, max_depth=3) for seed in range(count)])
    return folder


def run(*arguments: object):
    return CliRunner().invoke(
        app, ["headroom", *map(str, arguments)], env={"COLUMNS": "100"}, catch_exceptions=False
    )


def test_a_log_gives_tables_and_a_page(log: Path, costs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run(log, "--cost", costs, "--batch", "1,4", "-o", page)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "Adapt: a calibrated policy gives +" in words
    assert "oracle of chains" in words
    assert "The best constant by requests in a step: 1: chain of" in words
    html = page.read_text(encoding="utf-8")
    assert "4 requests at once" in html
    assert "calibrated policy of chains" in html
    assert html.count("<svg") == 2


def test_figures_as_json(log: Path, costs: Path) -> None:
    result = run(log, "--cost", costs, "--json")
    assert result.exit_code == 0, result.output
    (study,) = json.loads(result.stdout)["studies"]
    assert study["source"] == "steps.jsonl"
    assert study["costs"] == "costs.csv"
    assert [way["kind"] for way in study["ways"]][-2:] == ["policy", "bound"]


def test_traces_give_trees_or_chains(tmp_path: Path) -> None:
    write_some_traces(tmp_path / "traces", 5)
    COST.to_json(tmp_path / "cost.json")
    given = (tmp_path / "traces", "--cost", tmp_path / "cost.json", "--json")
    trees = run(*given, "--trees", "2/0/1,5/3/1")
    assert trees.exit_code == 0, trees.output
    (study,) = json.loads(trees.stdout)["studies"]
    assert [way["name"] for way in study["constants"]] == ["plain decoding", "tree 2/0/1",
                                                           "tree 5/3/1"]  # fmt: skip
    chains = run(*given, "--levels", 3, "--batch", "1,2")
    assert chains.exit_code == 0, chains.output
    assert [study["batch"] for study in json.loads(chains.stdout)["studies"]] == [1, 2]


def test_costs_of_another_engine_serve_for_trees(tmp_path: Path, costs: Path) -> None:
    write_some_traces(tmp_path / "traces", 4)
    result = run(tmp_path / "traces", "--cost", costs, "--json")
    assert result.exit_code == 0, result.output


def test_a_log_with_times_needs_no_costs(tmp_path: Path) -> None:
    timed, position = [], 1
    for number, line in enumerate(drawn_lines(either(0.2, 0.9), requests=4, steps=60)):
        rows = 1 + number % 6
        changed = {
            "position": position,
            "accepted": min(line.accepted, rows),
            "verified": rows,
            "verify_seconds": 0.02 + 0.001 * rows,
            "draft_seconds": 0.005,
        }
        timed.append(line.model_copy(update=changed))
        position += 1 + min(line.accepted, rows - 1)
    write_log(tmp_path / "steps.jsonl", timed)
    result = run(tmp_path / "steps.jsonl", "--json")
    assert result.exit_code == 0, result.output
    (study,) = json.loads(result.stdout)["studies"]
    assert study["costs"] == "the log's own times"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "0"], "--batch"),
        (["--trees", "2/0/1"], "--trees"),
        (["--folds", "1"], "--folds"),
        (["--levels", "9"], "at most 5 tokens long"),
    ],
)
def test_wrong_options_are_named(log: Path, costs: Path, arguments: list[str], words: str) -> None:
    result = run(log, "--cost", costs, *arguments)
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())


def test_what_is_missing_is_named(log: Path, tmp_path: Path) -> None:
    assert "costs must be given" in " ".join(run(log).output.split())
    write_some_traces(tmp_path / "traces", 2)
    assert "--cost" in run(tmp_path / "traces").output
    assert "either folders" in " ".join(run(tmp_path / "traces", log).output.split())
    assert "no such file" in run(tmp_path / "nothing.jsonl").output
