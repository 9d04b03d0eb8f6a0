"""What a report needs of one comparison: records, their summary, prompts and answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.questions.answer_schema import AnswerSchema
from eaglerl.evaluation.questions.question_files import question_files, read_questions
from eaglerl.evaluation.results.completeness import complete_part
from eaglerl.evaluation.results.records import (
    ANSWERS_NAME,
    PLAIN,
    TUNED,
    Comparison,
    Record,
    load_comparison,
)
from eaglerl.evaluation.statistics.disturbance import disturbances
from eaglerl.evaluation.statistics.many_at_once import Throughput, serial_part, throughputs
from eaglerl.evaluation.statistics.summary import (
    FEWEST_QUESTIONS,
    ModeSummary,
    Summary,
    summarise,
    warn_of_resampling,
)
from eaglerl.json_file import parse_json, read_lines
from eaglerl.ratio_intervals import Interval

#: Kinds of mode that are policies: trained ones, and those that learn while decoding.
POLICY_KINDS = ("policy", "auto", "auto-trees")
#: Kinds whose tree never changes.
CONSTANT_KINDS = ("generate", "plain", "tree", "tuned", "hindsight")


@dataclass(frozen=True, eq=False)
class Evidence:
    """One comparison.

    Attributes:
        name: its name in the report.
        comparison: the manifest, and the records of what all modes have decoded, one question after
            another.
        summary: summary of the records.
        at_once: figures of several questions at once; empty if none were measured.
        answers: texts of the answers of the first repeat, by mode and question; empty if there are
            no answer files.
        prompts: the user's turns by question; empty if no question files were given.
    """

    name: str
    comparison: Comparison
    summary: Summary
    at_once: Sequence[Throughput] = ()
    answers: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        folder: str | Path,
        *,
        questions: Iterable[str | Path] = (),
        name: str = "",
        resamples: int | None = None,
    ) -> Evidence:
        """Read a comparison's folder.

        Args:
            folder: folder that `compare` wrote.
            questions: question files, or folders of them, for the texts of the prompts.
            name: its name in the report; the folder's name by default.
            resamples: deprecated and ignored.

        Raises:
            ValueError: the folder holds no comparison or one with too few complete questions, or
                a question file is malformed.
        """
        if resamples is not None:
            warn_of_resampling("Evidence.read")
        folder = Path(folder)
        whole = load_comparison(folder)
        comparison = serial_part(whole)
        if not comparison.records:
            raise ValueError(
                f"a comparison must hold at least one record, {str(folder)!r} holds none"
            )
        prompts = {}
        if paths := list(questions):
            prompts = {q.id: q.turns for q in read_questions(question_files(paths))}
        summary = replace(_summarise(comparison), disturbed=disturbances(whole))
        if summary.preliminary:
            raise ValueError(
                f"a report needs {FEWEST_QUESTIONS} complete questions or more in {str(folder)!r}: "
                f"{summary.progress}. Run the same `eaglerl compare` again to continue"
            )
        name = name or folder.resolve().name
        return cls(
            name,
            complete_part(comparison),
            summary,
            throughputs(whole),
            read_answers(folder / ANSWERS_NAME),
            prompts,
        )

    @property
    def reference(self) -> str:
        """Label of the mode that gains are relative to: the tuned tree or plain decoding."""
        return self.summary.references[0]

    @property
    def tuned_trees(self) -> dict[str, TreeParams]:
        """Constant trees that the comparison tuned, by split of the questions."""
        tuned = self.comparison.manifest.modes.get(TUNED)
        trees = tuned.trees if tuned else None
        return {split: TreeParams(*tree) for split, tree in (trees or {}).items()}

    @property
    def reference_words(self) -> str:
        """The reference in words."""
        if self.reference != TUNED:
            return "plain decoding" if self.reference == PLAIN else self.reference
        chosen = self.tuned_trees.values()
        trees = sorted({str(tree) for tree in chosen})
        return f"the tuned constant tree {' and '.join(trees)}" if trees else "the tuned constant"

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy, so that outputs can be compared."""
        return not self.comparison.manifest.configuration["temperature"]

    @cached_property
    def by_mode(self) -> dict[str, list[Record]]:
        """Records of every mode, in the manifest's order."""
        found: dict[str, list[Record]] = {label: [] for label in self.comparison.manifest.modes}
        for record in self.comparison.records:
            found[record.mode].append(record)
        return found

    @cached_property
    def summaries(self) -> dict[str, ModeSummary]:
        """Summaries by label."""
        return {mode.mode: mode for mode in self.summary.modes}

    @cached_property
    def without_looping(self) -> dict[str, ModeSummary]:
        """Summaries without the questions that loop, by label."""
        return {mode.mode: mode for mode in self.summary.without_looping}

    @property
    def ranked(self) -> list[ModeSummary]:
        """Modes that did not fail, the fastest first."""
        valid = [mode for mode in self.summary.modes if not mode.failed]
        return sorted(valid, key=lambda mode: -mode.tokens_per_second)

    @property
    def failed(self) -> list[ModeSummary]:
        """Modes whose output differs from plain decoding's."""
        return [mode for mode in self.summary.modes if mode.failed]

    @property
    def policies(self) -> list[str]:
        """Labels of the policies that did not fail, the fastest first."""
        return [mode.mode for mode in self.ranked if self.kind(mode.mode) in POLICY_KINDS]

    def kind(self, label: str) -> str:
        """Return the kind of a mode."""
        return self.comparison.manifest.modes[label].spec.partition(":")[0]

    def gain(self, label: str) -> Interval | None:
        """Return the ratio of a mode's tokens per second to the reference's."""
        return self.summaries[label].ratios.get(self.reference)

    def gain_without_looping(self, label: str) -> Interval | None:
        """Return the same without the questions that loop, or None if none is left."""
        mode = self.without_looping.get(label)
        return None if mode is None else mode.ratios.get(self.reference)

    def by_domain(self, label: str) -> dict[str, Interval]:
        """Return the same per set of questions."""
        found = self.summary.by_domain
        return {domain: modes[label] for domain, modes in found.items() if label in modes}


def read_answers(folder: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Read the answers of the first repeat, by mode and question, from EAGLE's answer files.

    A malformed line is left out with a warning.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for path in sorted(folder.glob("*/*.jsonl")):
        for line in read_lines(path, "answers"):
            try:
                answer = parse_json(line.data, AnswerSchema, line.where)
            except ValueError as error:
                warnings.warn(f"{error}; its text is left out", stacklevel=2)
                continue
            key = answer.model_id, f"{path.stem}/{answer.question_id}"
            found[key] = answer.choices[0].turns
    return found


def _summarise(comparison: Comparison) -> Summary:
    """Summarise with references that have records and did not fail."""
    begun = list(dict.fromkeys(record.mode for record in comparison.records))
    references = [label for label in (TUNED, PLAIN) if label in begun] or begun[:1]
    summary = summarise(comparison, references)
    failed = {mode.mode for mode in summary.modes if mode.failed}
    valid = [label for label in references if label not in failed]
    if not valid or valid == references:
        return summary
    return summarise(comparison, valid)
