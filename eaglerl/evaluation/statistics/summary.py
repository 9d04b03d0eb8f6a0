"""Summaries of a comparison: speeds, paired ratios with intervals, and what policies did.

There are two speeds. The headline counts decoding only: all tokens but the first of each answer,
over all seconds after the prefills (drafting, verification, policy and loop). The all-in speed is
all tokens over all seconds, prefills included. Both are ratios of sums, never means of ratios.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from eaglerl.evaluation.results.completeness import complete_part, lacking
from eaglerl.evaluation.results.records import PLAIN, TUNED, Comparison, Record, Turn
from eaglerl.evaluation.statistics.disturbance import disturbances
from eaglerl.evaluation.statistics.paired_speeds import paired_ratio
from eaglerl.ratio_intervals import Interval

#: With fewer questions intervals are not shown, and an unfinished comparison has no ratios.
FEWEST_QUESTIONS = 5
#: An answer loops if its last LOOP_TOKENS repeat with a period of at most LOOP_PERIOD tokens.
LOOP_TOKENS, LOOP_PERIOD = 48, 24

_T = TypeVar("_T")


@dataclass(frozen=True)
class ModeSummary:
    """Figures of one mode.

    Attributes:
        mode: its label.
        questions: number of questions.
        records: number of records: questions times repeats.
        tokens_per_second: decoding only, the headline.
        all_in_tokens_per_second: prefills included.
        acceptance_length: mean acceptance length, the bonus token included.
        token_milliseconds_p50: median time per token; a cycle's time is shared equally by its
            tokens.
        token_milliseconds_p99: 99 % quantile of the time per token.
        policy_share: share of the decoding seconds spent in the policy; None if not known.
        hit_rate: share of the cycles that a cached decision served; None without a cache.
        distinct_actions: number of different trees and lookup lengths, without cycles that the end
            of an answer may have cut short.
        switches: number of changes of the action per 100 cycles.
        wasted_drafts: share of the drafted rows that were verified and not accepted; None if
            nothing was drafted.
        host_syncs: waits of the host per cycle; None if not known.
        identical: number of records whose output is plain decoding's.
        compared: number of records that could be compared with plain decoding; 0 when sampling.
        ratios: ratios of tokens per second to other modes, by their labels.
        runs: indices of the processes that decoded it.
    """

    mode: str
    questions: int
    records: int
    tokens_per_second: float
    all_in_tokens_per_second: float
    acceptance_length: float
    token_milliseconds_p50: float
    token_milliseconds_p99: float
    policy_share: float | None
    hit_rate: float | None
    distinct_actions: int
    switches: float
    wasted_drafts: float | None
    host_syncs: float | None
    identical: int
    compared: int
    ratios: Mapping[str, Interval]
    runs: tuple[int, ...]

    @property
    def failed(self) -> bool:
        """Whether its output differs from plain decoding's, so that it is not ranked."""
        return self.identical < self.compared


@dataclass(frozen=True)
class Summary:
    """Figures of a comparison.

    Attributes:
        modes: figures over all questions, in the manifest's order.
        without_looping: figures without the questions that loop.
        looping: questions to which plain decoding's answer loops.
        by_domain: ratios of each mode to the first reference, per file.
        by_category: the same per category.
        references: labels of the references.
        load: median and largest load average at the starts of the records, per repeat.
        missing: number of records still missing.
        disturbed: reasons not to trust the speeds, sentences without a full stop.
        questions: number of questions.
        complete: number of questions that all modes with records have decoded at least once; only
            these are compared.
        lacking: number of missing records of the modes that are behind, by label.
    """

    modes: tuple[ModeSummary, ...]
    without_looping: tuple[ModeSummary, ...]
    looping: tuple[str, ...]
    by_domain: Mapping[str, Mapping[str, Interval]]
    by_category: Mapping[str, Mapping[str, Interval]]
    references: tuple[str, ...]
    load: tuple[tuple[float, float], ...]
    missing: int
    disturbed: tuple[str, ...] = ()
    questions: int = 0
    complete: int = 0
    lacking: Mapping[str, int] = field(default_factory=dict)

    @property
    def preliminary(self) -> bool:
        """Whether too few questions are complete for ratios."""
        return self.missing > 0 and self.complete < FEWEST_QUESTIONS

    @property
    def progress(self) -> str | None:
        """Progress of an unfinished comparison, without a full stop; None if it is finished."""
        if not self.missing:
            return None
        behind = ", ".join(f"{label} lacks {count}" for label, count in self.lacking.items())
        return (
            f"{self.complete} of {self.questions} questions are complete in every mode that has "
            f"begun, and only these are compared; {self.missing} records are still missing"
            + (f" ({behind})" if behind else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values; figures that do not exist are None."""
        first = {"disturbed": list(self.disturbed), "preliminary": self.preliminary}
        return (
            first
            | without_nan(asdict(self))
            | {"failed": [mode.mode for mode in self.modes if mode.failed]}
        )


def summarise(
    comparison: Comparison,
    references: Sequence[str] = (),
    *,
    resamples: int | None = None,
    seed: int | None = None,
) -> Summary:
    """Summarise a comparison, finished or not, over the questions that all modes have decoded.

    An unfinished comparison with fewer than 5 such questions gets no ratios. Outputs are compared
    with plain decoding's wherever plain decoding has one.

    Args:
        comparison: what was recorded.
        references: labels of the modes that the others are compared with; by default the tuned
            constant tree and plain decoding, if they were recorded.
        resamples: deprecated and ignored.
        seed: deprecated and ignored.

    Raises:
        ValueError: a reference was not compared.
    """
    if resamples is not None or seed is not None:
        warn_of_resampling("summarise")
    labels = list(comparison.manifest.modes)
    for reference in references:
        if reference not in labels:
            raise ValueError(f"references must be among {labels}, got {reference!r}")
    references = tuple(references) or tuple(name for name in (TUNED, PLAIN) if name in labels)
    by_mode = _by_mode(labels, complete_part(comparison).records)
    complete = len({record.question for records in by_mode.values() for record in records})
    looped = looping_questions(by_mode.get(PLAIN, ()))
    preliminary = comparison.missing > 0 and complete < FEWEST_QUESTIONS
    compared = () if preliminary else references
    return Summary(
        modes=_summaries(comparison, by_mode, compared, set()),
        without_looping=_summaries(comparison, by_mode, compared, looped),
        looping=tuple(sorted(looped)),
        by_domain=_grouped(by_mode, compared, lambda record: record.domain),
        by_category=_grouped(by_mode, compared, lambda record: record.category),
        references=references,
        load=_loads(comparison.records),
        missing=comparison.missing,
        disturbed=disturbances(comparison),
        questions=len(comparison.manifest.questions),
        complete=complete,
        lacking=lacking(comparison),
    )


def warn_of_resampling(function: str) -> None:
    """Warn that the bootstrap's arguments of a public function have no effect."""
    warnings.warn(
        f"resamples and seed of {function} are deprecated, have no effect and go with the next "
        "release: intervals are no longer from a bootstrap",
        DeprecationWarning,
        stacklevel=3,
    )


def loops(output_ids: Sequence[int]) -> bool:
    """Return whether the last 48 tokens of an answer repeat with a period of at most 24."""
    tail = np.asarray(output_ids[-LOOP_TOKENS:])
    if len(tail) < LOOP_TOKENS:
        return False
    periods = range(1, LOOP_PERIOD + 1)
    return any((tail[period:] == tail[:-period]).all() for period in periods)


def looping_questions(records: Iterable[Record]) -> set[str]:
    """Return the questions with an answer that loops."""
    return {record.question for record in records if any(map(loops, record.output_ids))}


def _by_mode(labels: Sequence[str], records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {label: [] for label in labels}
    for record in records:
        found[record.mode].append(record)
    return found


def _summaries(
    comparison: Comparison,
    by_mode: Mapping[str, Sequence[Record]],
    references: Sequence[str],
    left_out: set[str],
) -> tuple[ModeSummary, ...]:
    """Summarise every mode that has records, without the questions `left_out`."""
    configuration = comparison.manifest.configuration
    kept = {m: [r for r in rs if r.question not in left_out] for m, rs in by_mode.items()}
    # Outputs are compared over all records, because a different output is wrong even while the
    # comparison is incomplete.
    every = _by_mode(list(by_mode), comparison.records)
    found = []
    for label in by_mode:
        if kept[label]:
            own = [record for record in every[label] if record.question not in left_out]
            plain = every.get(PLAIN, []) if not configuration["temperature"] else []
            identical, compared = _count_identical(own, plain)
            limit = configuration["max_new_tokens"]
            one = _mode_summary(label, kept, references, limit)
            found.append(replace(one, identical=identical, compared=compared))
    return tuple(found)


def _mode_summary(
    label: str, by_mode: Mapping[str, Sequence[Record]], references: Sequence[str], limit: int
) -> ModeSummary:
    """Summarise one mode; no output is compared yet."""
    records = by_mode[label]
    ratios = {name: paired_ratio(records, by_mode[name]) for name in references}
    cycles = [turn.cycles for record in records for turn in record.turns]
    count = sum(map(len, cycles))
    drafted = sum(sum(one.rows) for one in cycles) - count
    accepted = sum(sum(one.tokens) for one in cycles) - count
    times = 1e3 * _token_seconds(records)
    p50, p99 = np.quantile(times, [0.5, 0.99]) if len(times) else (math.nan, math.nan)
    actions = [uncut_actions(turn, limit) for record in records for turn in record.turns]
    pairs = [pair for one in actions for pair in pairwise(one)]
    switched = sum(before != after for before, after in pairs)
    seconds = sum(record.decode_seconds for record in records)
    syncs = known([record.host_syncs for record in records])
    return ModeSummary(
        mode=label,
        questions=len({record.question for record in records}),
        records=len(records),
        tokens_per_second=_over(sum(r.decode_tokens for r in records), seconds),
        all_in_tokens_per_second=_over(
            sum(r.new_tokens for r in records), sum(r.seconds for r in records)
        ),
        acceptance_length=_over(accepted + count, count),
        token_milliseconds_p50=float(p50),
        token_milliseconds_p99=float(p99),
        policy_share=_policy_share(records, seconds),
        hit_rate=_hit_rate(records),
        distinct_actions=len(Counter(action for one in actions for action in one)),
        switches=100 * _over(switched, len(pairs)) if pairs else 0.0,
        wasted_drafts=_over(drafted - accepted, drafted) if drafted else None,
        host_syncs=None if syncs is None else _over(sum(syncs), count),
        identical=0,
        compared=0,
        ratios={name: ratio for name, ratio in ratios.items() if ratio is not None},
        runs=tuple(sorted({record.run for record in records})),
    )


def uncut_actions(turn: Turn, max_new_tokens: int) -> list[tuple[int, int, int, int]]:
    """Return (T, D, K, looked-up tokens) of the cycles that the answer's end cannot have cut short.

    Near the end, drafts are no deeper than the tokens that are left, so that even a constant tree
    changes.
    """
    found = []
    left = max_new_tokens - 1
    cycles = turn.cycles
    columns = (cycles.total_tokens, cycles.depth, cycles.top_k, cycles.lookup_tokens, cycles.tokens)
    for total, depth, top_k, looked_up, emitted in zip(*columns, strict=True):
        levels = depth + 1 if total > 1 else 0
        if max(levels, looked_up) < left - 1:
            found.append((total, depth, top_k, looked_up))
        left -= emitted
    return found


def _count_identical(records: Sequence[Record], plain: Sequence[Record]) -> tuple[int, int]:
    """Count the records with the output of plain decoding, and those that could be compared."""
    # Greedy decoding gives the same output in every repeat: any of them will do.
    outputs = {record.question: record.output_ids for record in plain}
    compared = [record for record in records if record.question in outputs]
    same = sum(record.output_ids == outputs[record.question] for record in compared)
    return same, len(compared)


def _token_seconds(records: Sequence[Record]) -> np.ndarray:
    parts = [np.empty(0)]
    for record in records:
        for turn in record.turns:
            cycles = turn.cycles
            tokens = np.asarray(cycles.tokens, dtype=np.int64)
            seconds = np.asarray(cycles.draft_seconds) + np.asarray(cycles.verify_seconds)
            if cycles.policy_seconds is not None:
                seconds = seconds + np.asarray(cycles.policy_seconds)
            if len(tokens):
                parts.append(np.repeat(seconds / tokens, tokens))
    return np.concatenate(parts)


def _policy_share(records: Sequence[Record], seconds: float) -> float | None:
    spent = known([turn.cycles.policy_seconds for record in records for turn in record.turns])
    return None if spent is None else _over(sum(sum(each) for each in spent), seconds)


def _hit_rate(records: Sequence[Record]) -> float | None:
    hits = known([record.cache_hits for record in records])
    misses = known([record.cache_misses for record in records])
    if hits is None or misses is None:
        return None
    return _over(sum(hits), sum(hits) + sum(misses))


def known(values: Sequence[_T | None]) -> list[_T] | None:
    """Return the values, or None if one of them is None."""
    found = [value for value in values if value is not None]
    return found if len(found) == len(values) else None


def _grouped(
    by_mode: Mapping[str, Sequence[Record]],
    references: Sequence[str],
    group: Callable[[Record], str],
) -> dict[str, dict[str, Interval]]:
    """Return the ratio of each mode to the first reference, per group of questions."""
    if not references:
        return {}
    names = sorted({group(record) for records in by_mode.values() for record in records})
    found: dict[str, dict[str, Interval]] = {}
    for name in names:
        parts = {m: [r for r in rs if group(r) == name] for m, rs in by_mode.items()}
        ratios = {mode: paired_ratio(part, parts[references[0]]) for mode, part in parts.items()}
        found[name] = {mode: ratio for mode, ratio in ratios.items() if ratio is not None}
    return found


def _loads(records: Sequence[Record]) -> tuple[tuple[float, float], ...]:
    repeats = sorted({record.repeat for record in records})
    loads = [[r.load for r in records if r.repeat == repeat] for repeat in repeats]
    return tuple((float(np.median(load)), max(load)) for load in loads)


def _over(amount: float, per: float) -> float:
    return amount / per if per else math.nan


def without_nan(value: Any) -> Any:
    """Return JSON values with None for figures that do not exist."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
