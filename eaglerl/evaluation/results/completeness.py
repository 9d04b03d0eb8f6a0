"""What of an unfinished comparison can be compared: the questions that all modes have decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from eaglerl.evaluation.results.records import Comparison


def complete_part(comparison: Comparison) -> Comparison:
    """The questions and repeats that all modes have decoded, of those that have begun.

    Only these may be compared: what an interrupted run left over tells of other questions for one
    mode than for another.
    """
    records = comparison.records
    begun = {record.mode for record in records}
    count = Counter((record.question, record.repeat) for record in records)
    whole = tuple(r for r in records if count[r.question, r.repeat] == len(begun))
    return replace(comparison, records=whole)


def lacking(comparison: Comparison) -> dict[str, int]:
    """How many records each mode that has begun lacks of those that another has, if any."""
    keys: dict[str, set[tuple[str, int]]] = {}
    for record in comparison.records:
        keys.setdefault(record.mode, set()).add((record.question, record.repeat))
    every = set().union(*keys.values())
    return {label: len(every - own) for label, own in keys.items() if every - own}
