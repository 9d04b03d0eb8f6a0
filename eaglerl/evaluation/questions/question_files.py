"""Conversations to decode, from files in the ``question.jsonl`` layout of MT-bench and EAGLE."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field

from eaglerl.evaluation.questions.answer_schema import QuestionId
from eaglerl.fingerprints import prompt_id, split_of
from eaglerl.json_file import Items, Line, Schema, parse_json, read_lines
from eaglerl.regular_file import open_regular

SplitName = Literal["test", "train", "all"]
SPLITS: tuple[str, ...] = get_args(SplitName)

_MAX_LINE_BYTES = 1 << 24
# Tokens that a chat template may add around one turn and its answer.
_TEMPLATE_ROOM = 32


@dataclass(frozen=True)
class Question:
    """One conversation: the user's turns.

    Attributes:
        id: ``FILE/QUESTION_ID``.
        domain: FILE, without its ending.
        category: the category that the file gives it, or FILE.
        turns: the user's messages.
        prompt_id: hash of the first turn's prompt; set by `prepare_questions`, empty before.
        split: half that the prompt belongs to; set by `prepare_questions`, empty before.
    """

    id: str
    domain: str
    category: str
    turns: tuple[str, ...]
    prompt_id: str = ""
    split: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return its entry in a manifest: all fields, with the number of turns for the turns."""
        own = {name: value for name, value in vars(self).items() if name != "turns"}
        return own | {"turns": len(self.turns)}


def question_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the named files, and the ``.jsonl`` files of the named folders.

    Raises:
        ValueError: a path does not exist, a folder has no such files, there is no file at all, or
            two files have the same name.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            raise ValueError(
                "questions must name existing JSONL files, or folders that hold such files, got "
                f"{str(path)!r}"
            )
        files.extend(found)
    names = [file.stem for file in files]
    if not files or len(set(names)) < len(names):
        raise ValueError(f"questions must be at least one file, of distinct names, got {names}")
    return files


def read_questions(files: Iterable[Path]) -> list[Question]:
    """Read question files, without loading a model.

    Raises:
        ValueError: a line is not a question, or an id occurs twice.
    """
    questions: dict[str, Question] = {}
    files = list(files)
    for file in files:
        for line in read_lines(file, "questions", max_line_bytes=_MAX_LINE_BYTES):
            question = _parse(file, line)
            if question.id in questions:
                raise ValueError(
                    f"question_id must be unique in a file, {line.where} repeats {question.id}"
                )
            questions[question.id] = question
    if not questions:
        named = ", ".join(map(str, files))
        raise ValueError(f"questions must hold at least one question, got none in {named}")
    return list(questions.values())


def files_digest(files: Iterable[Path]) -> dict[str, str]:
    """Return the first 16 hexadecimal digits of each file's SHA-256, by the file's name."""
    digests = {}
    for path in files:
        with open_regular(path, "questions") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return digests


def chat_ids(tokenizer: Any, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Encode a conversation up to the next answer with the model's chat template.

    Args:
        tokenizer: tokenizer of the target, with a chat template.
        turns: the user's messages, one more than there are answers.
        answers: the model's answers.
    """
    chat: list[Mapping[str, str]] = []
    for index, turn in enumerate(turns):
        chat.append({"role": "user", "content": turn})
        if index < len(answers):
            chat.append({"role": "assistant", "content": answers[index]})
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def prepare_questions(
    questions: Sequence[Question], tokenizer: Any, *, max_new_tokens: int, max_positions: int
) -> list[Question]:
    """Set every question's prompt id and split, and check that it fits the target's context.

    Args:
        questions: questions from `read_questions`.
        tokenizer: tokenizer of the target.
        max_new_tokens: longest answer.
        max_positions: context length of the target.

    Raises:
        ValueError: there is no chat template, or a conversation may not fit.
    """
    if tokenizer is None or tokenizer.chat_template is None:
        raise ValueError("questions need a target whose tokenizer has a chat template")
    prepared = []
    for question in questions:
        first = chat_ids(tokenizer, question.turns[:1], ())
        longest = most_tokens(question, tokenizer, max_new_tokens)
        if longest > max_positions:
            raise ValueError(
                f"the conversation of {question.id} may take {longest} tokens, more than the "
                f"target's context of {max_positions}"
            )
        known = prompt_id(first)
        prepared.append(replace(question, prompt_id=known, split=split_of(known)))
    return prepared


def most_tokens(question: Question, tokenizer: Any, max_new_tokens: int) -> int:
    """Return a bound of the tokens of a conversation, all answers included.

    Args:
        question: the conversation.
        tokenizer: tokenizer of the target, with a chat template.
        max_new_tokens: longest answer.
    """
    first = chat_ids(tokenizer, question.turns[:1], ())
    later = sum(len(tokenizer(turn).input_ids) for turn in question.turns[1:])
    count = len(question.turns)
    return len(first) + later + max_new_tokens * count + _TEMPLATE_ROOM * (count - 1)


def choose_split(
    questions: Iterable[Question], split: str, per_file: int | None = None
) -> list[Question]:
    """Return the questions of one half, or all; of each file the first `per_file` at most.

    Raises:
        ValueError: the split is unknown, or no question is left.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {split!r}")
    questions = list(questions)
    wanted = [question for question in questions if split in ("all", question.split)]
    chosen = []
    for _, group in groupby(wanted, key=lambda question: question.domain):
        chosen.extend(list(group)[:per_file])
    if not chosen:
        raise ValueError(
            f"split {split!r} leaves none of the {len(questions)} questions: add questions, or use "
            "--split all"
        )
    return chosen


def _check_turn(text: str) -> str:
    if not text.strip():
        raise ValueError(f"must not be empty or blank, got {text!r}")
    return text


class _LineSchema(Schema):
    model_config = ConfigDict(extra="allow")

    question_id: QuestionId
    turns: Annotated[Items[Annotated[str, AfterValidator(_check_turn)]], Field(min_length=1)]
    category: str | None = None


def _parse(file: Path, line: Line) -> Question:
    row = parse_json(line.data, _LineSchema, line.where)
    category = file.stem if row.category is None else row.category
    return Question(f"{file.stem}/{row.question_id}", file.stem, category, row.turns)
