"""The scripts in examples/ run, here on a small random model, and say what they promise."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run_example(name: str, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Call an example's ``main`` with a target, a head and more, and return what it prints."""
    # In this process, which has imported torch already.
    runpy.run_path(str(EXAMPLES / name))["main"](*arguments)
    return capsys.readouterr().out


def test_own_policy(tiny_folders: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    output = run_example("own_policy.py", capsys, tiny_folders.target, tiny_folders.head)
    assert "same text as plain decoding: True" in output
    depths = next(line for line in output.splitlines() if line.startswith("depths:"))
    assert len(set(depths.split()[1:])) > 1


def test_own_model(tiny_folders: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    output = run_example(
        "own_model.py", capsys, tiny_folders.target, tiny_folders.head, "A prompt of one's own"
    )
    assert "all texts equal: True" in output
    assert output.count("tokens/s") == 3


def test_sb3_policy(tiny_folders: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("stable_baselines3", reason="needs the extra rl")
    output = run_example("sb3_policy.py", capsys, tiny_folders.target, tiny_folders.head, 32)
    trees = next(line for line in output.splitlines() if line.startswith("trees:"))
    # Near the end of the text trees are cut.
    assert set(trees.split()[1:-4]) <= {"1", "4", "8"}
    assert "total_tokens, depth, top_k: [[" in output


def test_openai_client(tiny_folders: SimpleNamespace, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("openai", reason="needs OpenAI's client")
    pytest.importorskip("uvicorn", reason="needs the extra server")
    output = run_example(
        "openai_client.py", capsys, str(tiny_folders.target), str(tiny_folders.head)
    )
    assert "same answer: True" in output


def test_every_example_is_tested_and_listed() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(scripts) == 4
    for name in scripts:
        assert f'"{name}", capsys' in tests
        assert f"[{name}]({name})" in listed
        assert f"python examples/{name}" in (EXAMPLES / name).read_text(encoding="utf-8")
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= 60
