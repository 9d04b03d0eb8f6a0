"""Signs that other programs disturbed a comparison.

Disturbed speeds are worthless, whatever their intervals: an interval covers the differences between
questions, not another program that took the processor away from one mode.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from eaglerl.evaluation.results.records import Comparison, Record

#: Load average per processor above which other programs are running; decoding alone gives 1.
MOST_LOAD = 1.25
#: Largest share of records that may begin at a higher load.
MOST_LOADED = 0.1
#: Largest share of the time that the decoding thread may wait for a processor.
MOST_WAITING = 0.2
#: A cycle stalls if it takes this many times the median of the cycles with as many rows.
STALL = 10.0
#: Largest share of a mode's decoding time that stalls may take.
MOST_STALLED = 0.1


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_now() -> str | None:
    """Return a warning if the load average is too high to begin measuring, otherwise None."""
    load, count = os.getloadavg()[0], processors()
    # Decoding adds one thread at least.
    if load + 1 <= max(MOST_LOAD * count, 1.5):
        return None
    return (
        f"the load average is {load:.1f} on {_processors(count)}: other programs are at work, and "
        "speeds measured now are unreliable"
    )


def disturbances(comparison: Comparison) -> tuple[str, ...]:
    """Find what disturbed a comparison, as sentences without a full stop.

    Looks at the load averages at the starts of the answers, at the share of the time that the
    decoding thread had a processor, and at cycles that took many times as long as similar ones.
    """
    records = comparison.records
    return tuple(
        [
            *_of_load(records, comparison.manifest.runs),
            *_of_waiting(records),
            *_of_stalls(records),
        ]
    )


def _of_load(records: Sequence[Record], runs: Sequence[object]) -> Iterator[str]:
    counts = [run.get("processors") for run in runs if isinstance(run, dict)]
    known: list[tuple[float, int]] = []
    for record in records:
        count = counts[record.run] if record.run < len(counts) else None
        if count:
            known.append((record.load, count))
    loaded = [load > MOST_LOAD * count for load, count in known]
    if loaded and np.mean(loaded) > MOST_LOADED:
        loads = [load for load, _ in known]
        yield (
            f"other programs were running: the load average was {np.median(loads):.1f} in the "
            f"median and up to {max(loads):.1f}, on {_processors(known[0][1])}"
        )


def _of_waiting(records: Sequence[Record]) -> Iterator[str]:
    known = [(r.processor_share, r.seconds) for r in records if r.processor_share is not None]
    whole = sum(seconds for _, seconds in known)
    if whole:
        share = sum(part * seconds for part, seconds in known) / whole
        if share < 1 - MOST_WAITING:
            yield f"the decoding thread had a processor for only {100 * share:.0f} % of the time"


def _of_stalls(records: Sequence[Record]) -> Iterator[str]:
    alike: dict[tuple[str, int], list[float]] = defaultdict(list)
    whole: dict[str, float] = defaultdict(float)
    for record in records:
        if record.concurrency > 1:
            # A share of a shared cycle depends on how many sequences share it.
            continue
        for turn in record.turns:
            parts = zip(turn.cycles.draft_seconds, turn.cycles.verify_seconds, strict=True)
            for rows, took in zip(turn.cycles.rows, map(sum, parts), strict=True):
                alike[record.mode, rows].append(took)
                whole[record.mode] += took
    lost: dict[str, float] = defaultdict(float)
    for (mode, _), seconds in alike.items():
        values, usual = np.array(seconds), np.median(seconds)
        lost[mode] += float((values - usual)[values > STALL * usual].sum())
    shares = {mode: lost[mode] / whole[mode] for mode in whole if whole[mode]}
    worst = max(shares, key=lambda mode: shares[mode], default=None)
    if worst is not None and shares[worst] > MOST_STALLED:
        yield (
            f"decoding stalled: {100 * shares[worst]:.0f} % of {worst}'s time went to cycles that "
            f"took more than {STALL:.0f} times as long as others like them"
        )


def _processors(count: int) -> str:
    return "1 processor" if count == 1 else f"{count} processors"
