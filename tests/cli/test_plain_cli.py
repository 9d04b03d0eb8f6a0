"""The commands with a target that has no draft head."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from eaglerl.cli.app import app
from eaglerl.cli.serve_command import _modes
from eaglerl.eagle3 import SpeculativeDecoder

TERMINAL = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=TERMINAL)


def test_generate(tiny_folders: SimpleNamespace) -> None:
    arguments = ["generate", "--raw", "one two", "-n", "12", "--model", str(tiny_folders.target)]
    plain = run(*arguments, "--plain")
    assert plain.exit_code == 0, plain.stderr
    assert plain.stdout == run(*arguments, "--draft", str(tiny_folders.head)).stdout
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "plain decoding (--plain) needs none" in refused.stderr


def test_kv_cache_dtype(tiny_folders: SimpleNamespace) -> None:
    arguments = ["generate", "--raw", "one two", "-n", "12", "--plain"]
    arguments += ["--model", str(tiny_folders.target), "--kv-cache-dtype"]
    assert run(*arguments, "bfloat16").exit_code == 0
    refused = run(*arguments, "float8")
    assert refused.exit_code == 1
    names = "auto, float32, bfloat16, float16"
    assert f"kv_cache_dtype must be one of {names}" in " ".join(refused.stderr.split())


def test_demo(tiny_folders: SimpleNamespace) -> None:
    result = run("demo", "one", "-n", "8", "--plain", "--json", "--model", str(tiny_folders.target))
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(result.stdout)["modes"]) == ["plain decoding"]


def test_compare(tiny_folders: SimpleNamespace, tmp_path: Path) -> None:
    lines = [json.dumps({"question_id": i, "turns": [f"Question {i}?"]}) for i in range(2)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    call = ["compare", str(tmp_path / "c"), str(tmp_path / "q.jsonl"), "-n", "4", "--repeats", "1"]
    call += ["--split", "all", "--json", "--model", str(tiny_folders.target)]
    result = run(*call, "--mode", "plain", "--mode", "generate")
    assert result.exit_code == 0, result.stderr
    refused = run(*call, "--mode", "tree:4/1/4")
    assert refused.exit_code == 1
    assert "--draft must be given" in refused.stderr


def test_serve_has_one_mode(tiny_folders: SimpleNamespace, tmp_path: Path) -> None:
    decoder = SpeculativeDecoder.from_pretrained(tiny_folders.target, None)
    modes = _modes(decoder, "tree:1/0/1", [], None)
    assert [mode.name for mode in modes] == ["plain"]
    assert modes.default == "plain"
    with pytest.raises(ValueError, match="there being no draft head, got tree:6/2/4"):
        modes.get("tree:6/2/4")
    with pytest.raises(ValueError, match="--policies needs a draft head"):
        _modes(decoder, None, [tmp_path], None)
