"""Calls of the scorers of a draft's candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from arguments import Source
from memory import Memory, Step, drive_calls, spoil_numbers, spoiled_array

from eaglerl._ext import C


def _draft(source: Source, top_k: int, max_depth: int) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """Scores, spoiled numbers and looked-up nodes of a draft of any depth."""
    depth = source.randrange(max_depth + 1)
    nodes = np.full(depth + 1, -1) if source.random() < 0.7 else np.arange(depth + 1) * top_k
    scores = -np.abs(source.floats(top_k + depth * top_k**2).numpy())
    numbers = spoil_numbers([depth, 10, source.randrange(4), source.randrange(9)], source)
    return scores, numbers, nodes


def online_acceptance(source: Source, memory: Memory) -> Step:
    def drive(*numbers: Any) -> None:
        shared = C.OnlineAcceptance(*numbers)
        drive_calls([lambda: shared.rate, shared.node_weights, shared.lookup_weights])

    return drive, [source.randrange(4), source.choice((0.01, 0.0, -1.0, 1e300, float("nan")))]


def online_cycle(source: Source, memory: Memory) -> Step:
    rows, seconds = source.choice((1, 8)), [1e-3, 1e-3, 0.0]

    def drive(*_: Any) -> None:
        cycle = C.OnlineCycle(
            C.OnlineAcceptance(2, 0.01), *_sizes(rows, source),
            spoiled_array(np.full(rows, 0.01), source), spoiled_array(np.zeros(rows), source),
            *(spoil_numbers(seconds, source) if source.random() < 0.1 else seconds),
        )  # fmt: skip
        _drive_cycle(cycle, rows, source)

    return drive, []


def learning_cycle(source: Source, memory: Memory) -> Step:
    rows = source.choice((1, 8))

    def drive(*_: Any) -> None:
        cycle = C.make_learning_cycle(
            C.OnlineAcceptance(2, 1.0), *_sizes(rows, source), C.OnlineCost(8, [3, 6]),
            source.choice((0, 0, 1, 2, -1)),
        )  # fmt: skip
        _drive_cycle(cycle, rows, source)

    return drive, []


def online_batch(source: Source, memory: Memory) -> Step:
    slots, rows = source.choice((1, 2, 5)), source.choice((5, 8))
    chains = source.random() < 0.4
    width = 3 if not chains or source.random() < 0.1 else 1

    def drive(*_: Any) -> None:
        limits: list[Any] = [slots, rows, chains]
        batch = C.OnlineBatch(
            C.OnlineAcceptance(2, 1.0), *_sizes(source.choice((1, 4, 8)), source, width),
            C.OnlineCost(8, source.choice(([3, 6, 12], [3], [1, 2]))),
            *(spoil_numbers(limits, source) if source.random() < 0.1 else limits),
        )  # fmt: skip
        _drive_batch(batch, slots, source, width)

    return drive, []


def _drive_batch(batch: Any, slots: int, source: Source, width: int) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: (batch.rate, batch.mean_rate),
        batch.decide,
        batch.select,
    ]
    for _ in range(6):
        calls.append(lambda: batch.join(*spoil_numbers([source.randrange(slots)], source)))
        chosen = source.sample(range(slots), source.randrange(1, slots + 1))
        entries = [
            [slot, 10, source.randrange(4), source.randrange(6), source.choice((2, 90)),
             source.choice((0, 1, 50))] for slot in chosen
        ]  # fmt: skip
        if source.random() < 0.1:
            entries[0] = spoil_numbers(entries[0], source)
        calls.append(lambda entries=entries: batch.plan(entries))
        for slot in source.sample(range(slots), source.randrange(slots + 1)):
            calls += _slot_calls(batch, slot, source, width)
        calls += [
            lambda: batch.decide(),
            lambda: batch.select(),
            lambda: batch.selection(*spoil_numbers([source.randrange(slots)], source)),
            lambda: batch.survival(*spoil_numbers([source.randrange(slots)], source)),
            lambda: batch.end_cycle(*spoil_numbers([slots + 3, 0.01, 0.001], source)),
        ]
    drive_calls(calls)


def _slot_calls(batch: Any, slot: int, source: Source, width: int) -> list[Callable[[], Any]]:
    scores, numbers, nodes = _draft(source, width, 2)
    drafted = [source.randrange(4) for _ in range(source.randrange(1, 4))]
    accepted = sorted(source.randrange(5) for _ in range(source.randrange(3)))
    return [
        lambda: batch.score(
            slot, spoiled_array(scores, source, 0.2), *numbers,
            source.choice((None, spoiled_array(nodes, source, 0.2))),
        ),
        lambda: batch.look(slot, _builder(source), *spoil_numbers([10, 3, [1, 2]], source)),
        source.choice((batch.decide, batch.select)),
        lambda: batch.select_in(slot, _builder(source), *spoil_numbers([[1, 2]], source)),
        lambda: batch.observe(slot, *spoil_numbers([accepted, [1, 2], [1, 3]], source)),
        lambda: batch.observe_chains(slot, *spoil_numbers([drafted, [1, 3], [1, 2]], source)),
    ]  # fmt: skip


def _sizes(rows: int, source: Source, width: int = 3) -> list[Any]:
    sizes = [width, 2, rows, source.choice((0, 4))]
    return spoil_numbers(sizes, source) if source.random() < 0.3 else sizes


def _drive_cycle(cycle: Any, rows: int, source: Source) -> None:
    calls: list[Callable[[], Any]] = []
    for _ in range(6):
        scores, numbers, nodes = _draft(source, 3, 2)
        accepted = sorted(source.randrange(9) for _ in range(source.randrange(4)))
        calls += [
            source.choice((cycle.begin, cycle.reset)),
            lambda: cycle.plan(*spoil_numbers([10, source.randrange(4), 4, 3], source)),
            lambda scores=scores, numbers=numbers, nodes=nodes: cycle.score(
                spoiled_array(scores, source, 0.2), *numbers,
                source.choice((None, spoiled_array(nodes, source, 0.2))),
            ),
            cycle.select,
            lambda: cycle.look(_builder(source), *spoil_numbers([10, 3, [1, 2]], source)),
            lambda: cycle.select_in(_builder(source), *spoil_numbers([[1, 2]], source)),
            lambda: cycle.selected,
            cycle.survival,
            lambda accepted=accepted: cycle.observe(*spoil_numbers([accepted, 3], source)),
            lambda accepted=accepted: cycle.observe_planned(
                *spoil_numbers([accepted, [1, 2], [1, 3], rows, 0.01, 0.001], source)
            ),
            lambda: cycle.count_lookup(*spoil_numbers([True], source)),
            lambda: cycle.selection_rule(spoil_numbers([3, 2, 8, 4], source)),
            lambda: cycle.limit(*spoil_numbers([2, 1, 6, 2, 0], source)),
            lambda: cycle.take_choice(*spoil_numbers([[0, 2], source.choice((0, 1))], source)),
        ]  # fmt: skip
    drive_calls(calls)


def _builder(source: Source) -> Any:
    """A draft of up to three rounds, of a width that the cycle has or has not."""
    width, builder = source.choice((3, 3, 3, 2)), C.DraftTreeBuilder()
    rounds = source.randrange(5)
    if rounds:
        builder.begin(5, width)
    for depth in range(rounds):
        logits = source.floats(width, 40)
        if depth:
            builder.expand(logits.data_ptr(), 40, 40, 0, 1)
        else:
            builder.first(logits.data_ptr(), 40, 0)
    return source.choice((builder, builder, builder, None))


def online_cost(source: Source, memory: Memory) -> Step:
    wrong = ([4, 2], [0, 1], [], [-1, 2**63], None, [0.5])
    widths = source.choice(([2, 4], [1, 3, 9])) if source.random() < 0.9 else source.choice(wrong)

    def drive(*numbers: Any) -> None:
        cost = C.OnlineCost(*numbers, widths)
        calls: list[Callable[[], Any]] = []
        for _ in range(4):
            calls += [
                lambda: cost.observe(*spoil_numbers([3, 10, 0.01, 1, 2, 0.001], source)),
                lambda: cost.passes(*spoil_numbers([source.randrange(3)], source)),
                lambda: cost.restore(
                    *(spoiled_array(part, source, 0.2) for part in cost.belief()), 5
                ),
                lambda: (cost.speed, cost.context_growth, cost.cycles),
                cost.verify,
                cost.deviation,
                cost.trial_deviation,
                cost.knots,
            ]
        drive_calls(calls)

    return drive, [source.choice((1, 8, 40))]
