"""What a run has measured: kept line by line, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

import eaglerl
from eaglerl.evaluation.results.json_lines import LineWriter, read_whole_lines
from eaglerl.files import atomic_path
from eaglerl.json_file import Count, JsonObject, Schema, Seconds, read_json

_SETTINGS, _ANSWERS, _PASSES = "settings.json", "answers.jsonl", "passes.jsonl"


class Answer(Schema):
    """One answer of one runner.

    Attributes:
        runner: its name.
        question: the question's id.
        repeat: from 0.
        session: number of the process that measured it, from 0: more than one after a resumption.
        tokens: ids of the answer, the end token included where the engine gives it.
        generated: tokens that were decoded in the time; more than ``tokens`` where an engine passes
            the limit.
        prompt_tokens: tokens that were there at the end of the prompt's time.
        prompt_seconds: to the first token.
        decode_seconds: from there to the end.
        drafted: tokens that llama.cpp drafted.
        accepted: tokens of them that it accepted.
    """

    runner: str
    question: str
    repeat: Count
    session: Count
    tokens: tuple[Count, ...]
    generated: Count
    prompt_tokens: Count
    prompt_seconds: Seconds
    decode_seconds: Seconds
    drafted: Count = 0
    accepted: Count = 0

    def text(self, end: int) -> tuple[int, ...]:
        """Return the tokens without the end token, which some engines leave out."""
        return self.tokens[:-1] if self.tokens[-1:] == (end,) else self.tokens


class Passes(Schema):
    """Seconds of passes over a number of rows, one after another."""

    runner: str
    rows: Count
    turn: Count
    seconds: tuple[Seconds, ...]


class RunRecords:
    """The records of a run, in a folder; the caller holds its lock."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open a run, or begin it.

        Args:
            folder: of this run.
            settings: what all its measurements have in common.

        Raises:
            ValueError: the folder's measurements were made with other settings, or are damaged.
        """
        check_settings(folder / _SETTINGS, settings)
        self.answers: dict[tuple[str, str, int], Answer] = {}
        self.passes: dict[tuple[str, int, int], Passes] = {}
        for _, answer in read_whole_lines(folder / _ANSWERS, Answer, "answers"):
            self.answers[answer.runner, answer.question, answer.repeat] = answer
        for _, passes in read_whole_lines(folder / _PASSES, Passes, "passes"):
            self.passes[passes.runner, passes.rows, passes.turn] = passes
        self.session = 1 + max((a.session for a in self.answers.values()), default=-1)
        with warnings.catch_warnings():
            # Said already by the readers above.
            warnings.simplefilter("ignore")
            self._answer_lines = LineWriter(folder / _ANSWERS)
            self._pass_lines = LineWriter(folder / _PASSES)

    def add_answer(self, answer: Answer) -> None:
        """Keep an answer."""
        self._answer_lines.append(answer.model_dump())
        self.answers[answer.runner, answer.question, answer.repeat] = answer

    def add_passes(self, passes: Passes) -> None:
        """Keep seconds of passes."""
        self._pass_lines.append(passes.model_dump())
        self.passes[passes.runner, passes.rows, passes.turn] = passes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer_lines.close()
        self._pass_lines.close()


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a run's settings, or compare them with those that are there.

    Raises:
        ValueError: they differ; the message names the first that does.
    """
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dict(settings), indent=2) + "\n", encoding="utf-8")
        return
    before = read_json(path, TypeAdapter(JsonObject), "settings")
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{path.parent} was measured with {name} {before.get(name)!r}, and this would be "
                f"{value!r}: give --run another name"
            )


def code_digest() -> str:
    """Return a digest of the installed eaglerl: its Python files and its extension."""
    package = Path(eaglerl.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.glob("_C*.so")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
