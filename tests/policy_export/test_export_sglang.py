"""`eaglerl export-policy --for sglang`: the file, and what is refused."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.headroom.cost_curve import TableCost
from eaglerl.policy_export.step_costs import StepCosts

from .test_batch_rule import chain_costs

COSTS: dict[str, Any] = {
    "format": "eaglerl-step-costs",
    "version": 1,
    "machine": "one\nGPU",
    "batch_sizes": [1, 16],
    "steps": [0, 1, 3],
    "seconds": [[0.01, 0.0104, 0.0112], [0.012, 0.014, 0.019]],
}


@pytest.fixture
def costs(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export-policy", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_the_file_says_what_it_was_made_from(tmp_path: Path, costs: Path) -> None:
    output = tmp_path / "chain_lengths.py"
    code, told = run("--for", "sglang==0.5.23", "--costs", costs, "--acceptance", "0.8,0.6", output)
    assert code == 0
    assert f"written: {output}" in told
    source = output.read_text()
    values = runpy.run_path(str(output))
    assert values["MADE_FROM"]["version"] == "0.5.23"
    assert values["MADE_FROM"]["costs"].startswith("costs.json, ")
    assert values["COSTS"] == {name: COSTS[name] for name in ("batch_sizes", "steps", "seconds")}
    assert values["SURVIVALS"] == (0.8, 0.6)
    assert "#   machine: one GPU\n" in source
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else
                     [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported <= sys.stdlib_module_names
    # Written again over itself, but not over anything else.
    assert run("--for", "sglang", output)[0] == 0
    assert runpy.run_path(str(output))["COSTS"] is None
    output.write_text("print()\n")
    code, told = run("--for", "sglang", output)
    assert code == 1
    assert "exists and is no exported policy" in told
    assert output.read_text() == "print()\n"


def test_the_file_tests_itself_alone(tmp_path: Path, costs: Path) -> None:
    """Without this package: isolated, without site-packages."""
    output = tmp_path / "chain_lengths.py"
    assert run("--for", "sglang", "--costs", costs, output)[0] == 0

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", str(output), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = python()
    assert done.returncode == 0, done.stderr
    assert "16 requests, survival 0.9: best with 3 drafted tokens" in done.stdout
    config = json.loads(python("--config").stdout)
    assert config == {"1": {"candidate_steps": [0, 1, 3]}, "16": {"candidate_steps": [0, 1, 3]}}
    assert python("--package", str(tmp_path / "package")).returncode == 0
    assert (tmp_path / "package" / "chain_lengths.py").read_text() == output.read_text()
    entry = 'chain_lengths = "chain_lengths:register"'
    assert entry in (tmp_path / "package" / "pyproject.toml").read_text()
    assert "usage" in python("--package").stderr
    assert run("--for", "sglang", output)[0] == 0
    assert "export with --costs" in python("--config").stderr


def test_a_cost_table_of_trees_is_taken(tmp_path: Path) -> None:
    chain_costs().to_json(tmp_path / "cost.json")
    output = tmp_path / "chain_lengths.py"
    assert run("--for", "sglang", "--costs", tmp_path / "cost.json", output)[0] == 0
    expected = StepCosts.from_cost(TableCost(chain_costs()))
    values = runpy.run_path(str(output))
    assert values["COSTS"]["seconds"] == [list(row) for row in expected.seconds]
    assert values["MADE_FROM"]["machine"] == "made up"


def test_costs_of_headroom_are_taken(tmp_path: Path) -> None:
    lines = ["kind,rows,batch,seconds", "draft,,1,0.001", "draft,,4,0.002"]
    lines += [f"verify,{rows},1,{0.01 + rows / 1000}" for rows in (1, 2, 4)]
    lines += [f"verify,{rows},4,{0.01 + rows / 1000}" for rows in (4, 8)]
    (tmp_path / "costs.csv").write_text("\n".join(lines) + "\n")
    costs = StepCosts.from_file(tmp_path / "costs.csv")
    assert costs.steps == (0, 1, 2, 3)
    # 2 requests lie between the measured 1 and 4, whose common rows are 4.
    assert costs.batch_sizes == (1, 4)
    assert costs.seconds[0] == pytest.approx((0.011, 0.013, 0.015, 0.017))
    # Beyond the rows of 4 requests, the last slope continues.
    assert costs.seconds[1] == pytest.approx((0.014, 0.020, 0.026, 0.032))
    (tmp_path / "costs.csv").write_text("rows,seconds\n1,0.01\n")
    code, told = run("--for", "sglang", "--costs", tmp_path / "costs.csv", tmp_path / "a.py")
    assert code == 1
    assert "must cover plain steps and chains of one token" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "trt", "a.py"], "engine must be one of sglang, onnx, got 'trt'"),
        (["--for", "onnx==1", "p", "a.py"], "engine must be one of"),
        (["--for", "sglang==0.5.24", "a.py"], "version of sglang must be 0.5.23"),
        (["--for", "sglang", "a.txt"], "must be NAME.py"),
        (["--for", "sglang", "1a.py"], "must be NAME.py"),
        (["--for", "sglang", "class.py"], "must be NAME.py"),
        (["--for", "sglang", "sglang.py"], "which it would hide"),
        (["--for", "sglang", "nowhere/a.py"], "folder of the output must exist"),
        (["--for", "sglang", "/proc/a.py"], "cannot be written"),
        (["--for", "sglang", "p", "a.py"], "takes OUT, got 2 paths"),
        (["--for", "onnx", "a.onnx"], "takes POLICY and OUT, got 1 path"),
        (["--for", "onnx", "--costs", "c", "p", "a.onnx"], "is for sglang, not onnx"),
        (["--for", "sglang", "--acceptance", "0.5,0.7", "a.py"], "descend from at most 1"),
        (["--for", "sglang", "--acceptance", "0.5,x", "a.py"], "could not convert"),
        (["--for", "sglang", "--acceptance", "nan", "a.py"], "descend from at most 1"),
        (["--for", "sglang", "--costs", "none.json", "a.py"], "no such file"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = run(*arguments)
    assert code in (1, 2)
    assert message in told
    assert list(tmp_path.iterdir()) == []


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format", "other"), '"format" must be "eaglerl-cost-curve"'),
        (_set("version", 2), "version"),
        (_set("steps", [1, 2, 3]), "must begin with 0"),
        (_set("steps", [0, 3, 1]), "steps must ascend"),
        (_set("batch_sizes", [0, 1]), "batch_sizes must ascend from at least 1"),
        (_set("batch_sizes", [1]), "a row of 3 numbers for each of 1"),
        (_set("seconds", [[1.0, 1.0, 1.0], [1.0]]), "a row of 3 numbers"),
        (_set("seconds", [[0.0, 1.0, 1.0]] * 2), "positive"),
        (_set("seconds", []), "seconds"),
        (_set("more", 1), "unknown key 'more'"),
    ],
)
def test_wrong_costs(
    tmp_path: Path, costs: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    content = json.loads(costs.read_text())
    change(content)
    costs.write_text(json.dumps(content))
    code, told = run("--for", "sglang", "--costs", costs, tmp_path / "a.py")
    assert code == 1
    assert message in told
    assert not (tmp_path / "a.py").exists()
