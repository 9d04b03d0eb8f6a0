"""Choose a constant tree by decoding with each candidate before the comparison."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.mode_setup import Resources
from eaglerl.evaluation.modes.runners import DecoderRunner, answer
from eaglerl.evaluation.questions.question_files import Question
from eaglerl.evaluation.results.json_lines import LineWriter
from eaglerl.evaluation.results.records import SELECTION_NAME, Record, read_records

#: Length of the answers that warm up a mode and are not timed.
WARM_UP_TOKENS = 8


class Selector:
    """A search for the fastest constant tree on some questions, each decoded once per tree.

    All trees decode a question before the next one begins, in an order that rotates. The records
    are kept in the comparison's folder, so that they are not decoded again after an interruption or
    for another choice.
    """

    def __init__(
        self,
        resources: Resources,
        grid: Sequence[TreeParams],
        seed: int,
        folder: Path,
        run: int,
        progress: Callable[[str, float], None],
    ) -> None:
        """Set up.

        Args:
            resources: the decoder, and how it decodes.
            grid: trees to choose from.
            seed: seed of all random numbers.
            folder: folder of the comparison.
            run: index of this process in the comparison.
            progress: called with the current stage and the fraction done.
        """
        self._resources = resources
        self._trees = {f"tree:{tree}": tree for tree in grid}
        self._seed = seed
        self._path = folder / SELECTION_NAME
        self._run = run
        self._progress = progress

    def best(self, questions: Sequence[Question]) -> TreeParams:
        """Return the tree with the most decoding tokens per second on some questions."""
        if len(self._trees) == 1:
            return next(iter(self._trees.values()))
        with LineWriter(self._path) as writer:
            records = {record.key: record for record in read_records(self._path)}
            missing = [
                (question, label)
                for index, question in enumerate(questions)
                for label in self._in_turn(index)
                if (question.id, 0, label) not in records
            ]
            for record in self.measure(missing):
                writer.append(record.to_dict())
                records[record.key] = record
        return self._trees[_fastest(records.values(), self._trees, {q.id for q in questions})]

    def measure(self, missing: Sequence[tuple[Question, str]]) -> Iterator[Record]:
        """Decode questions with trees, given by their label, after a warm-up of all trees."""
        if missing:
            self._warm_up(missing[0][0])
        for count, (question, label) in enumerate(missing):
            self._progress(f"choosing a tree: {question.id}, {label}", count / len(missing))
            yield self._decode(question, label)

    def _in_turn(self, index: int) -> list[str]:
        labels = list(self._trees)
        shift = index % len(labels)
        return labels[shift:] + labels[:shift]

    def _warm_up(self, question: Question) -> None:
        short = replace(self._resources.decoding, max_new_tokens=WARM_UP_TOKENS)
        first = replace(question, turns=question.turns[:1])
        for tree in self._trees.values():
            runner = DecoderRunner(self._resources.decoder, tree)
            answer(runner, first, self._resources.decoder.tokenizer, short, self._seed)

    def _decode(self, question: Question, label: str) -> Record:
        resources = self._resources
        runner = DecoderRunner(resources.decoder, self._trees[label])
        started, load = time.time(), os.getloadavg()[0]
        turns = answer(
            runner, question, resources.decoder.tokenizer, resources.decoding, self._seed
        )
        return Record(
            question.id, question.domain, question.category, 0, label,
            self._run, self._in_turn(0).index(label), started, load, tuple(turns),
        )  # fmt: skip


def _fastest(records: Iterable[Record], labels: Iterable[str], questions: set[str]) -> str:
    totals = {label: [0, 0.0] for label in labels}
    for record in records:
        if record.mode in totals and record.question in questions:
            totals[record.mode][0] += record.decode_tokens
            totals[record.mode][1] += record.decode_seconds
    return max(totals, key=lambda label: totals[label][0] / max(totals[label][1], 1e-12))
