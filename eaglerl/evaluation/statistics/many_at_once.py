"""Figures of modes that decode several questions at once: throughput, ratios and waiting times.

A group of questions is the unit: its questions share passes, so that they are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from eaglerl.evaluation.results.completeness import complete_part
from eaglerl.evaluation.results.records import PLAIN, Comparison, Mode, Record
from eaglerl.evaluation.statistics.summary import without_nan
from eaglerl.ratio_intervals import Interval, ratio_interval

#: References of a mode: itself with one question after another, and at the same concurrency plain
#: decoding and the fastest constant tree.
SERIAL, BATCHED_PLAIN, BEST_TREE = "serial", "plain", "best tree"
_TREES = ("tree", "tuned", "hindsight")


@dataclass(frozen=True)
class Ratios:
    """Ratios of tokens per second to one reference.

    Attributes:
        reference: label of the reference.
        decoding: prompts left out.
        whole: prompts included.
    """

    reference: str
    decoding: Interval
    whole: Interval


@dataclass(frozen=True)
class Throughput:
    """Figures of one mode at one concurrency.

    Attributes:
        mode: label of the mode with one question after another.
        concurrency: questions at once.
        groups: number of groups.
        questions: number of questions.
        tokens_per_second: of all questions together, prompts left out.
        all_in_tokens_per_second: the same over the time on the clock.
        in_flight: mean number of answers at work: fewer than `concurrency` at the ends of groups.
        first_token_p50: median seconds from the joining of an answer to its first token.
        first_token_p99: 99 % quantile of these.
        between_tokens_p50: median seconds between tokens; those that come together share their
            time.
        between_tokens_p99: 99 % quantile of these.
        identical: number of records whose output is that of plain decoding, one after another.
        compared: number of records that could be compared with it; 0 when sampling.
        ratios: by `SERIAL`, `BATCHED_PLAIN` and `BEST_TREE`, as far as these were measured.
    """

    mode: str
    concurrency: int
    groups: int
    questions: int
    tokens_per_second: float
    all_in_tokens_per_second: float
    in_flight: float
    first_token_p50: float
    first_token_p99: float
    between_tokens_p50: float
    between_tokens_p99: float
    identical: int
    compared: int
    ratios: Mapping[str, Ratios]

    @property
    def failed(self) -> bool:
        """Whether an output differs from plain decoding's, so that the speed means nothing."""
        return self.identical < self.compared

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values; figures that do not exist are None."""
        return without_nan(asdict(self))


def serial_part(comparison: Comparison) -> Comparison:
    """Return the comparison without the modes that decode several questions at once."""
    modes = {
        label: mode for label, mode in comparison.manifest.modes.items() if mode.concurrency == 1
    }
    return Comparison(
        replace(comparison.manifest, modes=modes),
        tuple(record for record in comparison.records if record.mode in modes),
    )


def throughputs(comparison: Comparison) -> list[Throughput]:
    """Return the figures of every mode at every concurrency, over complete questions.

    In the order of the concurrencies, and at each of them in that of the manifest. Empty if no mode
    decodes several questions at once. transformers' ``generate`` is left out.
    """
    modes = comparison.manifest.modes
    if all(mode.concurrency == 1 for mode in modes.values()):
        return []
    records: dict[str, list[Record]] = {label: [] for label in modes}
    for record in complete_part(comparison).records:
        records[record.mode].append(record)
    greedy = not comparison.manifest.configuration["temperature"]
    outputs = {record.question: record.output_ids for record in records[PLAIN] if greedy}
    order = sorted(modes, key=lambda label: modes[label].concurrency)
    return [
        _throughput(label, modes, records, outputs)
        for label in order
        if records[label] and modes[label].spec != "generate"
    ]


def _throughput(
    label: str,
    modes: Mapping[str, Mode],
    records: Mapping[str, Sequence[Record]],
    outputs: Mapping[str, tuple[tuple[int, ...], ...]],
) -> Throughput:
    own, concurrency = records[label], modes[label].concurrency
    seconds = sum(record.seconds for record in own)
    first, between = _waits(own)
    compared = [record for record in own if record.question in outputs]
    references = {
        name: reference
        for name, reference in _references(label, modes, records).items()
        if reference != label and records.get(reference)
    }
    return Throughput(
        mode=_single(label, concurrency),
        concurrency=concurrency,
        groups=len({record.group for record in own}),
        questions=len({record.question for record in own}),
        tokens_per_second=_speed(own),
        all_in_tokens_per_second=_over(sum(record.new_tokens for record in own), seconds),
        in_flight=_over(sum(map(_at_work, own)), seconds),
        first_token_p50=_quantile(first, 0.5),
        first_token_p99=_quantile(first, 0.99),
        between_tokens_p50=_quantile(between, 0.5),
        between_tokens_p99=_quantile(between, 0.99),
        identical=sum(record.output_ids == outputs[record.question] for record in compared),
        compared=len(compared),
        ratios={
            name: Ratios(
                reference,
                *(ratio_interval(_sums(own, records[reference], whole)) for whole in (False, True)),
            )
            for name, reference in references.items()
        },
    )


def _references(
    label: str, modes: Mapping[str, Mode], records: Mapping[str, Sequence[Record]]
) -> dict[str, str]:
    concurrency = modes[label].concurrency
    single = _single(label, concurrency)
    found = {SERIAL: single, BATCHED_PLAIN: f"{PLAIN}{label.removeprefix(single)}"}
    trees = [
        other
        for other, mode in modes.items()
        if mode.concurrency == concurrency
        and mode.spec.partition(":")[0] in _TREES
        and records[other]
    ]
    if trees:
        found[BEST_TREE] = max(trees, key=lambda other: _speed(records[other]))
    return found


def _single(label: str, concurrency: int) -> str:
    return label if concurrency == 1 else label.removesuffix(f"@{concurrency}")


def _sums(records: Sequence[Record], reference: Sequence[Record], whole: bool) -> np.ndarray:
    """Return tokens and seconds of both per group, repeats added up, as (n, 4) float64.

    Args:
        records: of the mode.
        reference: of the other mode.
        whole: whether to include the prompts.
    """
    others = {(record.question, record.repeat): record for record in reference}
    sums: dict[int | None, np.ndarray] = {}
    for one in records:
        other = others.get((one.question, one.repeat))
        if other is not None:
            row = [part for record in (one, other) for part in _work(record, whole)]
            sums[one.group] = sums.get(one.group, np.zeros(4)) + row
    return np.array(list(sums.values())).reshape(-1, 4)


def _work(record: Record, whole: bool) -> tuple[int, float]:
    if whole:
        return record.new_tokens, record.seconds
    return record.decode_tokens, record.decode_seconds


def _speed(records: Sequence[Record]) -> float:
    tokens = sum(record.decode_tokens for record in records)
    return _over(tokens, sum(record.decode_seconds for record in records))


def _at_work(record: Record) -> float:
    """Return the seconds between the joining and the end of a record's answers."""
    found = 0.0
    for turn in record.turns:
        if turn.first_token_seconds is None:
            found += turn.prefill_seconds + turn.decode_seconds
        else:
            found += turn.first_token_seconds + sum(turn.cycles.gap_seconds or ())
    return found


def _waits(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds to the first token of every answer, and those between tokens."""
    first: list[float] = []
    between = [np.empty(0)]
    for turn in (turn for record in records for turn in record.turns):
        cycles, told = turn.cycles, turn.first_token_seconds
        first.append(turn.prefill_seconds if told is None else told)
        tokens = np.asarray(cycles.tokens, dtype=np.int64)
        if cycles.gap_seconds is not None:
            seconds = np.asarray(cycles.gap_seconds)
        else:
            columns = (cycles.draft_seconds, cycles.verify_seconds, cycles.policy_seconds or ())
            seconds = sum((np.asarray(c) for c in columns if c), np.zeros(len(tokens)))
        between.append(np.repeat(seconds / np.maximum(tokens, 1), tokens))
    return np.array(first), np.concatenate(between)


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else math.nan


def _over(amount: float, per: float) -> float:
    return amount / per if per else math.nan
