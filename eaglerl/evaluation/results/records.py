"""The files of a comparison: a manifest, and one line of JSON per question, repeat and mode.

A comparison is a folder:

- ``manifest.json``: what was compared, with what, on what machine (`Manifest`).
- ``records.jsonl``: one `Record` per question, repeat and mode, in the order of decoding.
- ``selection.jsonl``: records of the passes that chose the constant trees of the modes ``tuned``
  and ``hindsight``; their repeat is 0 and their mode the tree, as in ``tree:6/2/4``.
- ``answers/MODE/FILE.jsonl``: the answers to a file's questions in EAGLE's layout.

`load_comparison` reads the first two. Seconds are wall-clock seconds, token counts exclude the
prompt, and lists over cycles are parallel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from eaglerl.evaluation.results.json_lines import read_whole_lines
from eaglerl.evaluation.results.record_schema import (
    MAX_MANIFEST_BYTES,
    ManifestSchema,
    RecordSchema,
)
from eaglerl.files import atomic_path
from eaglerl.json_file import read_json

FORMAT = "eaglerl-comparison"
VERSION = 1
MANIFEST_NAME = "manifest.json"
RECORDS_NAME = "records.jsonl"
SELECTION_NAME = "selection.jsonl"
ANSWERS_NAME = "answers"

#: The mode whose output all others must give; part of every comparison.
PLAIN = "plain"
#: The mode that all others are compared with if it was measured.
TUNED = "tuned"

#: Digits after the point of seconds in a file: tenths of a microsecond.
_DIGITS = 7


@dataclass(frozen=True)
class Cycles:
    """The cycles of one answer after its prefill, as parallel lists.

    transformers' ``generate`` has a cycle per token, with T = 1.

    Attributes:
        tokens: acceptance lengths: emitted tokens, the bonus token included. The last cycle may
            have emitted some past the end of the answer.
        total_tokens: T of the drafted tree; 1 without a tree.
        depth: D of the tree.
        top_k: K of the tree.
        rows: rows that the target verified, the root and looked-up tokens included.
        lookup_tokens: number of looked-up tokens.
        lookup_accepted: number of leading looked-up tokens that were accepted.
        draft_seconds: the head's passes, without the policy's share.
        verify_seconds: the target's pass, the acceptance, and the cache's compaction.
        policy_seconds: all calls of the policy and the preparation of their inputs, without the
            encoder if one call on the CPU does both. None if not known.
        gap_seconds: of many at once, from the arrival of the tokens before to that of the cycle's;
            the other columns of seconds hold the answer's share. None for one after another.
    """

    tokens: tuple[int, ...] = ()
    total_tokens: tuple[int, ...] = ()
    depth: tuple[int, ...] = ()
    top_k: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    lookup_tokens: tuple[int, ...] = ()
    lookup_accepted: tuple[int, ...] = ()
    draft_seconds: tuple[float, ...] = ()
    verify_seconds: tuple[float, ...] = ()
    policy_seconds: tuple[float, ...] | None = None
    gap_seconds: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            name: values if values is None else [_rounded(value) for value in values]
            for name, values in asdict(self).items()
            if values is not None or name == "policy_seconds"
        }


@dataclass(frozen=True)
class Turn:
    """One answer of a conversation.

    Attributes:
        prompt_tokens: tokens of the conversation up to the answer.
        output_ids: tokens of the answer, a stop token included.
        finish_reason: see `StoppingRules`.
        prefill_seconds: time of reading the prompt, the answer's first token included.
        decode_seconds: time of everything after it, the policy included. Of many at once, the
            answer's share: over a group, both times add up to the time on the clock.
        cycles: the cycles that gave the other tokens.
        first_token_seconds: of many at once, from the joining of the batch to the first token.
    """

    prompt_tokens: int
    output_ids: tuple[int, ...]
    finish_reason: str
    prefill_seconds: float
    decode_seconds: float
    cycles: Cycles
    first_token_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        own = {name: _rounded(value) for name, value in vars(self).items() if value is not None}
        return own | {"output_ids": list(self.output_ids), "cycles": self.cycles.to_dict()}


@dataclass(frozen=True)
class Record:
    """What one mode did with one question in one repeat.

    Attributes:
        question: ``FILE/QUESTION_ID``, FILE without its ending.
        domain: FILE.
        category: the question's category, or FILE if it has none.
        repeat: index of the repeat.
        mode: the mode's label.
        run: index into `Manifest.runs` of the process that decoded it. A policy that learns starts
            anew in every process.
        place: index among the modes that decoded this question one after another.
        started: seconds since 1970.
        load: the machine's load average over the last minute, at the start.
        turns: the answers.
        cache_hits: number of cycles that used a cached decision; None for modes without a cache.
        cache_misses: number of cycles in which the policy decided.
        host_syncs: number of times that the host waited for a device while decoding; 0 without a
            device, None if not known.
        processor_share: share of the answers' time in which the decoding thread had a processor;
            None if not known, as with a device.
        concurrency: questions that were decoded at once.
        group: index of the questions that the modes decoded in turns; None for single questions.
    """

    question: str
    domain: str
    category: str
    repeat: int
    mode: str
    run: int
    place: int
    started: float
    load: float
    turns: tuple[Turn, ...]
    cache_hits: int | None = None
    cache_misses: int | None = None
    host_syncs: int | None = None
    processor_share: float | None = None
    concurrency: int = 1
    group: int | None = None

    @property
    def key(self) -> tuple[str, int, str]:
        """Unique key in a comparison: question, repeat and mode."""
        return self.question, self.repeat, self.mode

    @cached_property
    def output_ids(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of every answer."""
        return tuple(turn.output_ids for turn in self.turns)

    @cached_property
    def new_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.output_ids))

    @cached_property
    def decode_tokens(self) -> int:
        """Tokens that came after the prefills: all but the first of each answer."""
        return self.new_tokens - len(self.turns)

    @cached_property
    def decode_seconds(self) -> float:
        """Time of `decode_tokens`: drafting, verification, policy and loop."""
        return sum(turn.decode_seconds for turn in self.turns)

    @cached_property
    def prefill_seconds(self) -> float:
        """Time of the prefills."""
        return sum(turn.prefill_seconds for turn in self.turns)

    @property
    def seconds(self) -> float:
        """Time of prefills and decoding."""
        return self.prefill_seconds + self.decode_seconds

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values, without the fields that are None."""
        own = {column.name: getattr(self, column.name) for column in fields(self)}
        own["turns"] = [turn.to_dict() for turn in self.turns]
        if self.concurrency == 1:
            del own["concurrency"]
        return {name: _rounded(value) for name, value in own.items() if value is not None}

    @classmethod
    def of_schema(cls, content: RecordSchema) -> Record:
        """Make a record from its checked JSON values."""
        turns = tuple(
            Turn(**dict(turn) | {"cycles": Cycles(**dict(turn.cycles))}) for turn in content.turns
        )
        return cls(**dict(content) | {"turns": turns})


@dataclass(frozen=True)
class Mode:
    """A mode in a manifest.

    Attributes:
        spec: how it was requested, such as ``policy:models/policy-ppo``.
        description: one line that says what it is.
        fingerprint: hash of everything it is made from; None if the spec says it all.
        trees: for ``tuned`` and ``hindsight``, the constant trees [T, D, K] chosen for the
            questions of each split, "train" and "test".
        concurrency: questions that it decodes at once. Above 1, ``@`` and the number end its label.
    """

    spec: str
    description: str
    fingerprint: str | None = None
    trees: Mapping[str, tuple[int, int, int]] | None = None
    concurrency: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values, in which the fingerprint is called identity."""
        several = {} if self.concurrency == 1 else {"concurrency": self.concurrency}
        return several | {
            "spec": self.spec,
            "description": self.description,
            "identity": self.fingerprint,
            "trees": self.trees,
        }


@dataclass(frozen=True)
class Manifest:
    """The conditions of a comparison.

    Attributes:
        configuration: JSON values of all options that the results depend on, including
            ``max_new_tokens``, ``temperature``, ``repeats``, ``split`` and ``threads``.
        questions: per question its ``id`` (`Record.question`), ``domain``, ``category``,
            ``split`` ("train" or "test"), ``turns`` (their number) and ``prompt_id``, the hash of
            the first turn's prompt.
        target_id: fingerprint of the target.
        head_id: fingerprint of the draft head.
        machine: one line that describes it.
        versions: versions of eaglerl, torch, transformers, numpy and Python.
        modes: modes by label, in the order in which they were added.
        runs: per process that worked on it ``started`` (ISO 8601), ``load`` (averages over 1, 5
            and 15 minutes), ``processors`` (how many it might use) and ``modes`` (labels that it
            was to decode).
    """

    configuration: Mapping[str, Any]
    questions: tuple[Mapping[str, Any], ...]
    target_id: str
    head_id: str
    machine: str
    versions: Mapping[str, str]
    modes: Mapping[str, Mode] = field(default_factory=dict)
    runs: tuple[Mapping[str, Any], ...] = ()

    def to_json(self, folder: str | Path) -> None:
        """Write the manifest into a comparison's folder."""
        modes = {label: mode.to_dict() for label, mode in self.modes.items()}
        content = {"format": FORMAT, "version": VERSION} | asdict(self) | {"modes": modes}
        with atomic_path(Path(folder) / MANIFEST_NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, folder: str | Path) -> Manifest:
        """Read the manifest of a comparison's folder.

        Raises:
            ValueError: there is no manifest, or it is malformed.
        """
        path = Path(folder) / MANIFEST_NAME
        content = read_json(
            path,
            ManifestSchema,
            "manifest of a comparison",
            form=(FORMAT, VERSION),
            max_bytes=MAX_MANIFEST_BYTES,
        )
        return cls(
            configuration=content.configuration.model_dump(mode="json"),
            questions=tuple(one.model_dump(mode="json") for one in content.questions),
            target_id=content.target_id,
            head_id=content.head_id,
            machine=content.machine,
            versions=content.versions,
            modes={label: Mode(**dict(mode)) for label, mode in content.modes.items()},
            runs=tuple(run.model_dump(mode="json") for run in content.runs),
        )


@dataclass(frozen=True)
class Comparison:
    """A comparison as it was read.

    Attributes:
        manifest: its conditions.
        records: its records, in the order of decoding.
    """

    manifest: Manifest
    records: tuple[Record, ...]

    @property
    def missing(self) -> int:
        """Number of records still missing."""
        wanted = len(self.manifest.questions) * self.manifest.configuration["repeats"]
        return wanted * len(self.manifest.modes) - len(self.records)


def load_comparison(folder: str | Path) -> Comparison:
    """Read a comparison, finished or not.

    A last line that was cut short by a killed process is skipped with a warning.

    Raises:
        ValueError: there is no comparison, a line is malformed, a record occurs twice, or a record
            does not belong to the manifest.
    """
    manifest = Manifest.from_json(folder)
    path = Path(folder) / RECORDS_NAME
    records = read_records(path)
    _check_known(records, manifest, path)
    return Comparison(manifest, records)


def read_records(path: str | Path) -> tuple[Record, ...]:
    """Read the records of a file; none if there is no file.

    Raises:
        ValueError: a line is malformed, or a record occurs twice.
    """
    records: dict[tuple[str, int, str], Record] = {}
    for number, content in read_whole_lines(path, RecordSchema, "records"):
        record = Record.of_schema(content)
        if record.key in records:
            raise ValueError(f"line {number} of the records {str(path)!r} repeats {record.key}")
        records[record.key] = record
    return tuple(records.values())


def _check_known(records: Sequence[Record], manifest: Manifest, path: Path) -> None:
    """Check that records belong to the manifest's questions, modes, repeats and processes."""
    questions = {question["id"]: question for question in manifest.questions}
    limits = {"repeat": manifest.configuration["repeats"], "run": len(manifest.runs)}
    for record in records:
        where = f"a record of the records {str(path)!r}"
        known = questions.get(record.question)
        if known is None:
            raise ValueError(f"{where} is of {record.question!r}, no question of the manifest")
        if record.mode not in manifest.modes:
            raise ValueError(f"{where} is of {record.mode!r}, no mode of the manifest")
        if (record.domain, len(record.turns)) != (
            known["domain"],
            known.get("turns", len(record.turns)),
        ):
            raise ValueError(
                f"{where} of {record.question!r} has {len(record.turns)} turns of the domain "
                f"{record.domain!r}, the manifest says {known.get('turns')} of {known['domain']!r}"
            )
        for name, limit in limits.items():
            if getattr(record, name) >= limit:
                raise ValueError(
                    f"{name} of {where} must be below {limit}, got {getattr(record, name)}"
                )


def _rounded(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
