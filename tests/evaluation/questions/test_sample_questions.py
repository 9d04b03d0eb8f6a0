"""The sample questions that are shipped, and what to do where there are too few of something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from eaglerl.cli.app import app
from eaglerl.cli.shared.options import question_paths
from eaglerl.cli.shared.trace_options import read_traces
from eaglerl.evaluation.questions.question_files import (
    Question,
    choose_split,
    question_files,
    read_questions,
)
from eaglerl.prepare import sample_questions_path
from eaglerl.resps.bench import find_bench

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["code", "everyday", "facts", "math", "summary"]


def test_they_are_questions_of_several_kinds() -> None:
    files = question_files([sample_questions_path()])
    assert [file.stem for file in files] == NAMES
    questions = read_questions(files)
    assert len(questions) == 40
    assert len({question.turns for question in questions}) == 40
    assert {question.category for question in questions} == set(NAMES)
    assert max(len(question.turns) for question in questions) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_bench_is_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bench(name) == sample_questions_path() / f"{name}.jsonl"
    own = tmp_path / "data" / name / "question.jsonl"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_bench(name).resolve() == own
    with pytest.raises(ValueError, match="Shipped are the samples code, everyday, facts, math"):
        find_bench("mt_bench")


def test_questions_stands_for_them_where_there_is_no_such_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = sample_questions_path()
    assert question_paths([Path("questions")]) == [shipped]
    assert question_paths([Path("questions/*.jsonl")]) == sorted(shipped.glob("*.jsonl"))
    assert question_paths([Path("questions/math.jsonl")]) == [shipped / "math.jsonl"]
    assert "using the packaged samples" in capsys.readouterr().err
    others = [Path("questions/none.jsonl"), Path("other"), tmp_path / "questions"]
    assert question_paths(others) == others
    assert capsys.readouterr().err == ""
    (tmp_path / "questions").mkdir()
    assert question_paths([Path("questions/math.jsonl")]) == [Path("questions/math.jsonl")]


def test_the_documents_name_those_that_there_are() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "eaglerl/cli/app.py"]
    named = set()
    for document in documents:
        text = document.read_text(encoding="utf-8")
        named |= set(re.findall(r"questions/([\w-]+)\.jsonl", text))
        named |= set(re.findall(r"--bench-name (\w+)", text))
    assert named
    assert named <= set(NAMES)


def test_no_half_is_left() -> None:
    question = Question("a/1", "a", "a", ("?",), split="train")
    message = "leaves none of the 1 questions: add questions, or use --split all"
    with pytest.raises(ValueError, match=message):
        choose_split([question], "test")


def test_too_few_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = [SimpleNamespace(prompt_id=f"{digit * 8}{part}") for digit, part in
              (("0", "0" * 8), ("1", "f" * 8))]  # fmt: skip

    class Folder(list):
        target_id = head_id = "x"

    def read(*, which: list, share: float):
        monkeypatch.setattr("eaglerl.traces.trace_set.TraceSet", lambda _: Folder(which))
        return read_traces([Path("traces")], share)

    assert [len(part) for part in read(which=traces, share=0.2)[:2]] == [1, 1]
    with pytest.raises(ValueError, match="got 1, all of them held out: record more prompts"):
        read(which=traces[:1], share=0.2)
    with pytest.raises(ValueError, match=r"got none of 1: record more prompts, raise it, or"):
        read(which=traces[1:], share=0.2)
    assert np.shape(read(which=traces[1:], share=0.0)[0]) == (1,)


def test_nothing_to_record(tiny_folders: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "data.jsonl").write_text(json.dumps({"p": [1, 2, 3], "r": [4]}) + "\n")
    for name, options in (("empty", []), ("data", ["--held-out"])):
        call = ["record", str(tmp_path / "t"), str(tmp_path / f"{name}.jsonl"), *options]
        result = CliRunner().invoke(app, [*call, *tiny_folders.arguments])
        assert result.exit_code == 1
        assert "must leave something to record" in result.stderr
        assert "take more prompts" in " ".join(result.stderr.split())
        assert not (tmp_path / "t").exists()
