"""One process of a comparison: it decodes the missing records and writes them to the folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.modes.batch_runner import Answers, BatchRunner
from eaglerl.evaluation.modes.mode_names import ModeSpec
from eaglerl.evaluation.modes.mode_setup import SELECTED_KINDS, Resources, make_runner
from eaglerl.evaluation.modes.runners import Runner, answer
from eaglerl.evaluation.questions.question_files import Question
from eaglerl.evaluation.results.json_lines import LineWriter
from eaglerl.evaluation.results.records import MANIFEST_NAME, Manifest, Record
from eaglerl.evaluation.running.agreement import add_modes, check_agreement
from eaglerl.evaluation.running.comparison_options import CompareOptions
from eaglerl.evaluation.running.question_groups import Task, tasks
from eaglerl.evaluation.running.tree_selection import WARM_UP_TOKENS, Selector
from eaglerl.evaluation.statistics.disturbance import processors

Progress = Callable[[str, float], None]


class Elsewhere(Protocol):
    """Other machines that decode in place of this process.

    Attributes:
        machine: describes them in the manifest.
        configuration: what joins the manifest's configuration.
    """

    machine: str
    configuration: Mapping[str, object]

    def decode(
        self,
        run: Run,
        output: Path,
        writer: LineWriter,
        done: set[tuple[str, int, str]],
        progress: Progress,
    ) -> None:
        """Begin the run, and decode and write its missing records.

        Args:
            run: what is decoded.
            output: folder of the comparison.
            writer: writer of the records.
            done: keys of the records that the folder already holds.
            progress: called with the current stage and the fraction done.
        """


# The turns of a conversation have consecutive seeds.
_SEEDS_PER_REPEAT = 1000


@dataclass(frozen=True)
class Run:
    """One process of a comparison.

    Attributes:
        resources: what runners are made from.
        questions: questions to decode.
        validation: questions that ``tuned`` is chosen on, by the split that the tree is for.
        modes: modes of this process.
        options: settings of the comparison.
        manifest: manifest that the folder's must agree with.
    """

    resources: Resources
    questions: tuple[Question, ...]
    validation: Mapping[str, Sequence[Question]]
    modes: tuple[ModeSpec, ...]
    options: CompareOptions
    manifest: Manifest

    def begin(self, output: Path) -> Manifest:
        """Add this run and its modes to the folder's manifest, and write it."""
        manifest = self.manifest
        if (output / MANIFEST_NAME).exists():
            before = Manifest.from_json(output)
            check_agreement(before, manifest, output)
            manifest = add_modes(before, manifest.modes)
        manifest = replace(manifest, runs=(*manifest.runs, self.describe()))
        manifest.to_json(output)
        return manifest

    def describe(self) -> dict[str, Any]:
        """Describe this process as one of `Manifest.runs`."""
        return {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": list(os.getloadavg()),
            "processors": processors(),
            "modes": [mode.label for mode in self.modes],
        }

    def missing(self, done: Iterable[tuple[str, int, str]]) -> list[Task]:
        """Return what is still to be decoded, in the order of decoding."""
        options = self.options
        return list(tasks(self.questions, self.modes, options.repeats, options.group, done))

    def select(
        self,
        manifest: Manifest,
        output: Path,
        progress: Progress,
        selector_type: Callable[..., Selector] = Selector,
    ) -> Manifest:
        """Choose the trees of ``tuned`` and ``hindsight`` unless the manifest already has them."""
        modes = dict(manifest.modes)
        selector = selector_type(
            self.resources, self.options.grid, self.options.seed, output,
            len(manifest.runs) - 1, progress,
        )  # fmt: skip
        for mode in self.modes:
            if mode.kind not in SELECTED_KINDS or modes[mode.label].trees:
                continue
            if mode.kind == "tuned":
                sources = self.validation
            else:
                splits = sorted({question.split for question in self.questions})
                sources = dict.fromkeys(splits, self.questions)
            trees = {split: selector.best(asked) for split, asked in sources.items()}
            chosen = {
                split: (tree.total_tokens, tree.depth, tree.top_k) for split, tree in trees.items()
            }
            modes[mode.label] = replace(modes[mode.label], trees=chosen)
        manifest = replace(manifest, modes=modes)
        manifest.to_json(output)
        return manifest

    def runners(
        self, labels: set[str], manifest: Manifest, *, selected: bool
    ) -> dict[str, Runner | BatchRunner]:
        """Make the runners of the modes whose tree is chosen beforehand, or of all others.

        Args:
            labels: labels of the modes that have something to decode.
            manifest: manifest with the chosen trees.
            selected: True for the modes whose tree is chosen, False for the others.

        Raises:
            ValueError: a policy belongs to another target or head, or cannot decide for several
                sequences.
        """
        made = {}
        for mode in self.modes:
            if mode.label in labels and (mode.kind in SELECTED_KINDS) == selected:
                chosen = manifest.modes[mode.label].trees or {}
                trees = {split: TreeParams(*tree) for split, tree in chosen.items()}
                made[mode.label] = make_runner(mode, self.resources, trees)
        return made

    def decode(
        self,
        manifest: Manifest,
        runners: Mapping[str, Runner | BatchRunner],
        writer: LineWriter,
        done: Iterable[tuple[str, int, str]],
        progress: Progress,
    ) -> None:
        """Decode the missing records, and write each as soon as it is complete.

        Args:
            manifest: manifest of the comparison; its last run is this one.
            runners: runners by label.
            writer: writer of the records.
            done: keys of the records that the folder already holds.
            progress: called with the current stage and the fraction done.
        """
        missing = self.missing(done)
        self.warm_up(runners, progress)
        run = len(manifest.runs) - 1
        for count, task in enumerate(missing):
            runner = runners[task.mode.label]
            several = isinstance(runner, BatchRunner)
            asked = f"group {task.group}" if several else task.questions[0].id
            stage = f"repeat {task.repeat + 1}: {asked}, {task.mode.label}"
            progress(stage, count / len(missing))
            writer.append(*(one.to_dict() for one in self.measure(task, run, runner)))

    def measure(self, task: Task, run: int, runner: Runner | BatchRunner) -> list[Record]:
        """Decode a task's questions with its mode.

        Args:
            task: the task.
            run: number of the run that its records name.
            runner: runner of the mode.
        """
        decoder, decoding = self.resources.decoder, self.resources.decoding
        before, started, load = runner.cache_counts(), time.time(), os.getloadavg()[0]
        seed = self.options.seed + _SEEDS_PER_REPEAT * task.repeat
        watch = time.perf_counter(), time.thread_time()
        answers: Answers
        if isinstance(runner, BatchRunner):
            answers = runner.answer(task.questions, decoding, seed)
        else:
            (question,) = task.questions
            answers = {question.id: answer(runner, question, decoder.tokenizer, decoding, seed)}
        took, ran = time.perf_counter() - watch[0], time.thread_time() - watch[1]
        host = decoder.target.device.type == "cpu"
        hits, misses = _difference(runner.cache_counts(), before)
        return [
            Record(
                question.id, question.domain, question.category, task.repeat, task.mode.label,
                run, task.place, started, load, tuple(answers[question.id]), hits, misses,
                0 if host else None, min(ran / took, 1.0) if host else None,
                task.mode.concurrency, task.group,
            )
            for question in task.questions
        ]  # fmt: skip

    def warm_up(self, runners: Mapping[str, Runner | BatchRunner], progress: Progress) -> None:
        """Run every mode once, so that packing, compilation and first calls are not timed."""
        first_turns = [replace(question, turns=question.turns[:1]) for question in self.questions]
        decoding = replace(self.resources.decoding, max_new_tokens=WARM_UP_TOKENS)
        for label, runner in runners.items():
            progress(f"warming up {label}", 0.0)
            if isinstance(runner, BatchRunner):
                runner.answer(first_turns[: runner.slots], decoding, seed=0)
            else:
                answer(runner, first_turns[0], self.resources.decoder.tokenizer, decoding, seed=0)


def _difference(
    after: tuple[int, int] | None, before: tuple[int, int] | None
) -> tuple[int | None, int | None]:
    if after is None or before is None:
        return None, None
    return after[0] - before[0], after[1] - before[1]
