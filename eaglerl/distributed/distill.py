"""`eaglerl distill` on a cluster: every unit is a range of rows."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from eaglerl.cli.shared.options import resolve_model
from eaglerl.distributed.cluster import Cluster
from eaglerl.distributed.completion_order import in_order_of_completion
from eaglerl.distributed.worker import keep, model_for_nodes
from eaglerl.fingerprints import target_id
from eaglerl.training.distill import WriteRows
from eaglerl.training.row_writer import Row, RowOptions, RowWriter
from eaglerl.training.slot_engine import slot_dtype

# Rows of a unit for every slot. At the end of a unit slots become idle one after another, which
# costs about the time of one row.
_ROWS_PER_SLOT = 4


@dataclass(frozen=True)
class _Setup:
    """What a worker loads.

    Attributes:
        key: names this run.
        model: the target: a name that `prepare` knows, or a folder.
        options: what the rows depend on.
        stream: which stream of rows is written.
    """

    key: str
    model: str
    options: RowOptions
    stream: int

    def load(self) -> RowWriter:
        return RowWriter(replace(self.options, target=resolve_model(self.model)))


def distill_on(cluster: Cluster, model: str) -> WriteRows:
    """Return the argument `write` of `eaglerl.training.distill.distill`.

    Args:
        cluster: where to decode.
        model: the target, a name or a folder, which every node loads for itself.
    """

    def write(options: RowOptions, stream: int) -> Generator[Row, None, None]:
        # All nodes use what "auto" is on the machine where the command was started.
        options = replace(options, dtype=slot_dtype(options.dtype))
        setup = _Setup(uuid.uuid4().hex, model_for_nodes(model), options, stream)
        units = _ranges(_ROWS_PER_SLOT * options.slots)
        with closing(cluster.map(_write_unit, setup, units)) as answers:
            timed = ((row, row.passes) for row in _of_one_target(answers))
            yield from in_order_of_completion(timed, options.slots)

    return write


def _write_unit(setup: _Setup, numbers: range) -> tuple[str, list[Row]]:
    """Return the target's fingerprint, and the rows in the order of their numbers."""
    writer = keep(setup.key, setup.load)
    rows = writer.rows(setup.stream, numbers.start, numbers.stop)
    return str(target_id(writer.target)), sorted(rows, key=lambda row: row.number)


def _ranges(size: int) -> Iterator[range]:
    begin = 0
    while True:
        yield range(begin, begin + size)
        begin += size


def _of_one_target(answers: Iterator[tuple[str, list[Row]]]) -> Iterator[Row]:
    """Yield the rows of all units.

    Raises:
        ValueError: two nodes have different targets.
    """
    first = None
    for name, rows in answers:
        first = first or name
        if name != first:
            raise ValueError(
                f"all nodes must have the same model: target_id is {first} on one of them and "
                f"{name} on another"
            )
        yield from rows
