"""The part of an unfinished comparison that can be compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from eaglerl.evaluation.results.records import Comparison


def complete_part(comparison: Comparison) -> Comparison:
    """Return the questions and repeats that every mode with records has decoded.

    Only these may be compared: the other records of an interrupted run are of different questions
    for different modes.
    """
    records = comparison.records
    begun = {record.mode for record in records}
    count = Counter((record.question, record.repeat) for record in records)
    whole = tuple(r for r in records if count[r.question, r.repeat] == len(begun))
    return replace(comparison, records=whole)


def lacking(comparison: Comparison) -> dict[str, int]:
    """Count, for each mode with records, the records that it lacks and another mode has."""
    keys: dict[str, set[tuple[str, int]]] = {}
    for record in comparison.records:
        keys.setdefault(record.mode, set()).add((record.question, record.repeat))
    every = set().union(*keys.values())
    return {label: len(every - own) for label, own in keys.items() if every - own}
