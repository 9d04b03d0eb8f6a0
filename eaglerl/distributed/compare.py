"""`eaglerl compare` on a cluster: each unit is one question, or a group of them, with all modes.

Speeds are divided only by speeds of the same unit, which one worker measures, while its node does
nothing else. Every process of a worker is a run of the manifest, with the node that it is on.
"""

from __future__ import annotations

import itertools
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eaglerl.cli.shared.options import DecoderSettings, load_decoder, resolve_model
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.worker import for_nodes, keep
from eaglerl.evaluation.modes.batch_runner import BatchRunner
from eaglerl.evaluation.modes.mode_names import ModeSpec
from eaglerl.evaluation.modes.mode_setup import mode_fingerprint
from eaglerl.evaluation.modes.runners import Runner
from eaglerl.evaluation.questions.question_files import Question
from eaglerl.evaluation.results.json_lines import LineWriter
from eaglerl.evaluation.results.records import Manifest, Record
from eaglerl.evaluation.running.comparison_process import Progress, Run
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.evaluation.running.question_groups import Task
from eaglerl.evaluation.running.tree_selection import Selector
from eaglerl.fingerprints import head_id, target_id


@dataclass(frozen=True)
class _Unit:
    """All tasks of a question or of a group of questions in one repeat."""

    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        task = self.tasks[0]
        asked = task.questions[0].id if task.group is None else f"group {task.group}"
        return f"repeat {task.repeat + 1}: {asked}"


@dataclass(frozen=True)
class _SelectionUnit:
    """A question and the labels of the trees to choose from."""

    question: Question
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    """What a worker measured.

    Attributes:
        process: names the worker's process.
        described: that process as one of `Manifest.runs`.
        records: records whose run the command has yet to number.
    """

    process: str
    described: dict[str, Any]
    records: list[Record]


@dataclass(frozen=True)
class _Setup:
    """What a worker loads, and what it measures.

    Attributes:
        key: names this run of the command.
        settings: target and head.
        run: the comparison, without its decoder.
        manifest: manifest with the trees that are chosen so far.
        labels: labels of the modes that are missing anywhere.
    """

    key: str
    settings: DecoderSettings
    run: Run
    manifest: Manifest
    labels: frozenset[str]


class ClusterRun:
    """A cluster as `compare` uses it: see `Elsewhere`.

    Attributes:
        machine: describes it in the manifest.
        configuration: tells its comparisons from those of one machine.
    """

    def __init__(self, cluster: Cluster, settings: DecoderSettings) -> None:
        """Set up.

        Args:
            cluster: where to decode.
            settings: target and head, which every node loads for itself.
        """
        self._cluster = cluster
        self._settings = for_nodes(settings, cluster.threads)
        self.machine = f"Ray cluster, {cluster.threads} threads for each worker"
        self.configuration: Mapping[str, object] = {"ray": True}

    def decode(
        self,
        run: Run,
        output: Path,
        writer: LineWriter,
        done: set[tuple[str, int, str]],
        progress: Progress,
    ) -> None:
        """See `Elsewhere`.

        Raises:
            ValueError: some modes of a question were measured before, or a node has another target,
                head or policy.
        """
        missing = run.missing(done)
        units = [_whole_unit(group, done, output) for group in _in_units(missing)]
        manifest = run.begin(output)
        if not units:
            return
        resources = replace(run.resources, decoder=None)  # type: ignore[arg-type]
        modes = tuple(_for_nodes(mode) for mode in run.modes)
        setup = _Setup(
            uuid.uuid4().hex,
            self._settings,
            replace(run, resources=resources, modes=modes),
            manifest,
            frozenset(task.mode.label for task in missing),
        )
        runs = _Runs(len(manifest.runs))
        progress("waiting for the nodes", 0.0)
        with self._cluster.one_per_node() as nodes:
            tasks = _Tasks(self._cluster, nodes, setup, runs)
            manifest = run.select(manifest, output, progress, tasks.selector)
            setup = replace(setup, manifest=manifest)
            answers = self._cluster.map(_measure_unit, setup, units, nodes=nodes)
            with closing(answers):
                for count, (unit, measured) in enumerate(zip(units, answers, strict=True)):
                    records = runs.number(measured)
                    manifest = runs.write(manifest, output)
                    writer.append(*(record.to_dict() for record in records))
                    progress(unit.name, (count + 1) / len(units))


@dataclass
class _Runs:
    """The processes of workers, as runs of the manifest."""

    first: int
    known: dict[str, int] = field(default_factory=dict)
    described: list[dict[str, Any]] = field(default_factory=list)

    def number(self, measured: _Measured) -> list[Record]:
        """Return the records with the number of their process."""
        if measured.process not in self.known:
            self.known[measured.process] = self.first + len(self.described)
            self.described.append(measured.described)
        run = self.known[measured.process]
        return [replace(record, run=run) for record in measured.records]

    def write(self, manifest: Manifest, output: Path) -> Manifest:
        """Add the processes that the manifest lacks; write it if there are any."""
        lacking = self.described[len(manifest.runs) - self.first :]
        if lacking:
            manifest = replace(manifest, runs=(*manifest.runs, *lacking))
            manifest.to_json(output)
        return manifest


@dataclass(frozen=True)
class _Tasks:
    """The choice of constant trees by tasks; `selector` makes a `Selector` of it."""

    cluster: Cluster
    nodes: Any
    setup: _Setup
    runs: _Runs

    def selector(self, *arguments: Any) -> Selector:
        return _ClusterSelector(self, *arguments)


class _ClusterSelector(Selector):
    """A selector of which a worker decodes each question with all trees."""

    def __init__(self, tasks: _Tasks, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tasks = tasks

    def measure(self, missing: Sequence[tuple[Question, str]]) -> Iterator[Record]:
        """See `Selector.measure`."""
        groups = itertools.groupby(missing, key=lambda pair: pair[0].id)
        units = [_selection_unit([*group]) for _, group in groups]
        tasks = self._tasks
        answers = tasks.cluster.map(_select_unit, tasks.setup, units, nodes=tasks.nodes)
        with closing(answers):
            for measured in answers:
                yield from tasks.runs.number(measured)


class _Worker:
    """A comparison in the process of a worker."""

    def __init__(self, setup: _Setup) -> None:
        """Load target and head.

        Raises:
            ValueError: the node has others than the machine where the command was started.
        """
        decoder = load_decoder(setup.settings, plain=not setup.run.resources.head_id)
        self.process = uuid.uuid4().hex
        target = resolve_model(setup.settings.model)
        resources = replace(setup.run.resources, decoder=decoder, target=target)
        self.run = replace(setup.run, resources=resources)
        head = "" if decoder.draft_head is None else head_id(decoder.draft_head)
        for name, own in (("target_id", target_id(decoder.target)), ("head_id", head)):
            _check_same(name, own, getattr(setup.manifest, name))
        for mode in self.run.modes:
            known = setup.manifest.modes[mode.label].fingerprint
            _check_same(f"mode {mode.label!r}", mode_fingerprint(mode, resources), known)
        self.described = self.run.describe() | {
            "node": platform.node(),
            "machine": describe_machine(),
        }
        self._selector: Selector | None = None
        self._runners: dict[str, Runner | BatchRunner] | None = None

    def select(self, unit: _SelectionUnit) -> _Measured:
        """Decode a question with all trees."""
        if self._selector is None:
            run = self.run
            options = run.options
            self._selector = Selector(
                run.resources, options.grid, options.seed, Path(), 0, _tell_nobody
            )
        pairs = [(unit.question, label) for label in unit.labels]
        return _Measured(self.process, self.described, [*self._selector.measure(pairs)])

    def measure(self, setup: _Setup, unit: _Unit) -> _Measured:
        """Decode a question, or a group of questions, with all modes."""
        if self._runners is None:
            labels = {*setup.labels}
            runners = self.run.runners(labels, setup.manifest, selected=False)
            runners |= self.run.runners(labels, setup.manifest, selected=True)
            self.run.warm_up(runners, _tell_nobody)
            self._runners = runners
        records = [
            record
            for task in unit.tasks
            for record in self.run.measure(task, 0, self._runners[task.mode.label])
        ]
        return _Measured(self.process, self.described, records)


def _select_unit(setup: _Setup, unit: _SelectionUnit) -> _Measured:
    return _worker(setup).select(unit)


def _measure_unit(setup: _Setup, unit: _Unit) -> _Measured:
    return _worker(setup).measure(setup, unit)


def _worker(setup: _Setup) -> _Worker:
    make: Callable[[], _Worker] = lambda: _Worker(setup)  # noqa: E731
    return keep(setup.key, make)


def _tell_nobody(stage: str, fraction: float) -> None:
    pass


def _check_same(what: str, own: object, known: object) -> None:
    if own != known:
        raise ValueError(
            f"all nodes must have the same files: {what} is {own} on one of them, {known} where "
            "the command was started"
        )


def _for_nodes(mode: ModeSpec) -> ModeSpec:
    """Return a mode whose folder means the same in another working directory."""
    folder = Path(mode.argument).expanduser()
    if mode.argument and folder.is_dir():
        return replace(mode, argument=str(folder.absolute()))
    return mode


def _in_units(missing: Sequence[Task]) -> Iterator[tuple[Task, ...]]:
    def unit_of(task: Task) -> tuple[int, int | None, str]:
        alone = task.questions[0].id if task.group is None else ""
        return task.repeat, task.group, alone

    for _, tasks in itertools.groupby(missing, key=unit_of):
        yield tuple(tasks)


def _whole_unit(tasks: tuple[Task, ...], done: set[tuple[str, int, str]], output: Path) -> _Unit:
    """Make a unit of what is missing of a question, or of a group, in a repeat.

    Raises:
        ValueError: other modes of it were measured before, perhaps on another node.
    """
    asked = {(question.id, task.repeat) for task in tasks for question in task.questions}
    before = [(name, label) for name, repeat, label in done if (name, repeat) in asked]
    if before:
        name = min(before)[0]
        modes = sorted(label for other, label in before if other == name)
        raise ValueError(
            f"{str(output)!r} already has {name!r} with the modes {modes}: on a cluster all modes "
            "of a question are measured together. Name another folder"
        )
    return _Unit(tasks)


def _selection_unit(pairs: Sequence[tuple[Question, str]]) -> _SelectionUnit:
    return _SelectionUnit(pairs[0][0], tuple(label for _, label in pairs))
