"""Answers of a comparison in the layout of EAGLE's answer files."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eaglerl.evaluation.results.records import ANSWERS_NAME, Comparison, Record, Turn
from eaglerl.files import atomic_path


def write_answers(folder: str | Path, comparison: Comparison, tokenizer: Any) -> list[Path]:
    """Rewrite ``answers/MODE/FILE.jsonl``, one line per question with all repeats decoded so far.

    Each line has ``question_id``, ``answer_id``, ``model_id`` (the mode), ``tstamp`` and
    ``choices``: for each repeat its ``index`` and, for each turn, ``turns`` (text), ``idxs`` (index
    of the last cycle), ``new_tokens`` and ``wall_time`` (seconds, prefill included).

    Args:
        folder: folder of the comparison.
        comparison: the comparison.
        tokenizer: tokenizer of the target.

    Returns:
        The files written.
    """
    answers: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in comparison.records:
        questions = answers.setdefault((record.mode, record.domain), defaultdict(list))
        questions[record.question].append(record)
    names = _folder_names(list(comparison.manifest.modes))
    written = []
    for (mode, domain), questions in answers.items():
        path = Path(folder) / ANSWERS_NAME / names[mode] / f"{domain}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line(records, tokenizer) for records in questions.values()]
        with atomic_path(path) as temporary:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _line(records: list[Record], tokenizer: Any) -> dict[str, Any]:
    first = records[0]
    name = first.question.removeprefix(f"{first.domain}/")
    key = f"{first.mode} {first.question}".encode()
    return {
        "question_id": int(name) if name.isdecimal() else name,
        "answer_id": hashlib.sha256(key).hexdigest()[:22],
        "model_id": first.mode,
        "choices": [
            answer_choice(record.repeat, record.turns, tokenizer)
            for record in sorted(records, key=lambda one: one.repeat)
        ],
        "tstamp": max(record.started for record in records),
    }


def answer_choice(index: int, turns: Sequence[Turn], tokenizer: Any) -> dict[str, Any]:
    """Make one entry of an answer's ``choices``.

    Args:
        index: index of the entry.
        turns: answers of the conversation.
        tokenizer: tokenizer of the target.
    """
    return {
        "index": index,
        "turns": [tokenizer.decode(turn.output_ids, skip_special_tokens=True) for turn in turns],
        "idxs": [max(len(turn.cycles) - 1, 0) for turn in turns],
        "new_tokens": [len(turn.output_ids) for turn in turns],
        "wall_time": [turn.prefill_seconds + turn.decode_seconds for turn in turns],
    }


def _folder_names(labels: list[str]) -> dict[str, str]:
    """Return distinct folder names without separators and signs that file systems may refuse."""
    names: dict[str, str] = {}
    for label in labels:
        plain = re.sub(r"[^\w.+-]+", "_", label).strip(".")
        name, count = plain, 1
        while name in names.values():
            count += 1
            name = f"{plain}_{count}"
        names[label] = name
    return names
