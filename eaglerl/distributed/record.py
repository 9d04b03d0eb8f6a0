"""`eaglerl record` on a cluster: every unit is as many prompts as are decoded side by side."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from eaglerl.cli.shared.options import DecoderSettings, load_decoder
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.completion_order import in_order_of_completion
from eaglerl.distributed.worker import for_nodes, keep
from eaglerl.traces.recording import Prompt, Recorded, Recorder, RecordOptions, RunPrompts

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Setup:
    """What a worker loads.

    Attributes:
        key: names this run.
        settings: target and head.
        options: what to record.
        header: what `Recorder.header` must be.
    """

    key: str
    settings: DecoderSettings
    options: RecordOptions
    header: Mapping[str, object]

    def load(self) -> Recorder:
        """Load target and head.

        Raises:
            ValueError: the node has another target or head.
        """
        recorder = Recorder(load_decoder(self.settings), self.options)
        for name, value in self.header.items():
            if recorder.header[name] != value:
                raise ValueError(
                    f"all nodes must have the same model: {name} is {recorder.header[name]!r} on "
                    f"one of them, {value!r} where the command was started"
                )
        return recorder


def record_on(
    cluster: Cluster, settings: DecoderSettings, options: RecordOptions
) -> Callable[[Recorder], RunPrompts]:
    """Return the argument `run` of `eaglerl.traces.recording.record`.

    Args:
        cluster: where to decode.
        settings: target and head, which every node loads for itself.
        options: the options of `record`.
    """

    def run(recorder: Recorder) -> RunPrompts:
        where = for_nodes(settings, cluster.threads)
        setup = _Setup(uuid.uuid4().hex, where, options, recorder.header)

        def run_prompts(prompts: Iterable[Prompt]) -> Generator[Recorded, None, None]:
            units = _batches(prompts, recorder.slots)
            with closing(cluster.map(_record_unit, setup, units)) as answers:
                # A prompt's first token comes from the pass that reads it.
                timed = (
                    (one, one.new_tokens + options.tail - 1) for unit in answers for one in unit
                )
                yield from in_order_of_completion(timed, recorder.slots)

        return run_prompts

    return run


def _record_unit(setup: _Setup, prompts: tuple[Prompt, ...]) -> list[Recorded]:
    """Return what each prompt gave, in the order of the prompts."""
    recorder = keep(setup.key, setup.load)
    found = {one.prompt_id: one for one in recorder.run(prompts)}
    return [found[prompt.id] for prompt in prompts]


def _batches(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    items = iter(items)
    while batch := tuple(itertools.islice(items, size)):
        yield batch
