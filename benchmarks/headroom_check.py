"""Check what `eaglerl headroom` predicts against live decoding, in one run.

    python benchmarks/headroom_check.py FOLDER questions/ --per-file 4 --output docs/results/FILE

It records traces, measures costs, decodes the same questions live in every mode, and prints how far
each predicted speed is off, and for how many pairs of modes the predicted order is the live one.
Costs are measured before and after the live part, since a machine's speed changes: the predictions
use their mean. Chains are predicted twice: exactly, from drafts at every position, and as from an
engine's log, which has the steps of one chain length only. Finished parts of FOLDER are kept.

    python benchmarks/headroom_check.py --traces FOLDER --cost FILE

compares only these two, for policies and oracles of chains as well, and decodes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.evaluation.results.records import Comparison, load_comparison
from eaglerl.evaluation.statistics.summary import Summary, summarise
from eaglerl.headroom import ChainOptions, Headroom, Way, study_steps, study_trees
from eaglerl.headroom.cost_curve import TableCost
from eaglerl.headroom.trace_steps import steps_of_traces
from eaglerl.ratio_intervals import Interval
from eaglerl.traces import Trace, TraceSet

#: Longest chain, which is also the one that the log has.
LEVELS = 5
TREES = (TreeParams(8, 2, 4), TreeParams(16, 3, 4), TreeParams(31, 4, 4))


def chains() -> list[TreeParams]:
    """Return plain decoding and the chains, by their length."""
    return [TreeParams(1), *(TreeParams(n + 1, n - 1, 1) for n in range(1, LEVELS + 1))]


def trees() -> dict[str, TreeParams]:
    """Return the constants by their labels in the comparison."""
    plain, *drafting = chains()
    narrow = {f"chain-{tree.total_tokens - 1}": tree for tree in drafting}
    return {"plain": plain} | narrow | {f"tree-{tree.total_tokens}": tree for tree in TREES}


def run(*arguments: object) -> None:
    """Run a command of eaglerl."""
    subprocess.run([sys.executable, "-m", "eaglerl", *map(str, arguments)], check=True)


def measure(folder: Path, given: argparse.Namespace) -> None:
    """Record, measure and decode, as far as that is not done yet."""
    common = ["--split", given.split, "-n", given.tokens]
    if given.per_file:
        common += ["--per-file", given.per_file]
    questions = given.questions
    files = [
        path for each in questions for path in (each.glob("*.jsonl") if each.is_dir() else [each])
    ]
    run(
        "record",
        folder / "traces",
        *sorted(files),
        *common,
        "--top-k",
        "1,2,4",
        "--max-depth",
        LEVELS,
    )
    costs = ["--top-k", "1,2,4", "--passes", given.passes]
    if not (folder / "before.json").exists():
        run("calibrate", folder / "before.json", *costs)
    modes = [f"{label}=tree:{tree}" for label, tree in trees().items() if label != "plain"]
    modes += ["auto", "auto-trees"]
    flags = [part for mode in modes for part in ("--mode", mode)]
    run("compare", folder / "live", *questions, *common, *flags, "--repeats", given.repeats)
    if not (folder / "after.json").exists():
        run("calibrate", folder / "after.json", *costs)


def mean_cost(one: CostTable, other: CostTable) -> CostTable:
    """Return the mean of two measurements of the same machine."""
    names = ("verify_base", "verify_slope", "first_pass", "later_pass")
    columns = {
        name: tuple(np.mean([getattr(one, name), getattr(other, name)], axis=0).tolist())
        for name in names
    }
    slope = (one.draft_slope + other.draft_slope) / 2
    return dataclasses.replace(one, **columns, draft_slope=slope, error=None)


def cycles_alone(cost: CostTable) -> CostTable:
    """Return costs of a second for every cycle: tokens per second are then tokens per cycle."""
    none = (0.0,) * len(cost.top_ks)
    rows = len(cost.total_tokens)
    return dataclasses.replace(
        cost, verify_base=(1.0,) * rows, verify_slope=(0.0,) * rows, first_pass=none,
        later_pass=none, draft_slope=0.0, error=None,
    )  # fmt: skip


def predict(traces: TraceSet, cost: CostTable) -> dict[str, tuple[float, float | None]]:
    """Return the predicted speed of every mode, and of chains also from a log of the longest."""
    recorded = list(traces)
    exact = study_trees(recorded, cost, actions=ActionSpace(trees().values()))
    found: dict[str, tuple[float, float | None]] = {}
    logged = study_steps(steps_of_traces(recorded, LEVELS), TableCost(cost), ChainOptions())
    for (label, tree), way in zip(trees().items(), exact.constants, strict=True):
        length = tree.total_tokens - 1 if label == "plain" or label.startswith("chain") else None
        from_log = None if length is None else _speed(logged, length)
        found[label] = exact.speed(way).ratio, from_log
    plain, with_lookup = exact.policies
    found["auto-trees"] = exact.speed(plain).ratio, None
    found["auto"] = exact.speed(with_lookup).ratio, None
    return found


def _speed(study: Headroom, length: int) -> float:
    return study.speed(study.constants[length]).ratio


def lengths(summary: Summary, predicted: Mapping[str, tuple[float, float | None]]) -> Iterator[str]:
    """Yield a table of tokens per cycle, which no other program disturbs."""
    live = {mode.mode: mode.acceptance_length for mode in summary.modes}
    yield "| constant | live, tokens per cycle | predicted | off, % | from the log, off, % |"
    yield "|---|---|---|---|---|"
    for label in trees():
        exact, logged = predicted[label]
        cells = [
            "" if x is None else f"{100 * (x / live[label] - 1):+.1f}" for x in (exact, logged)
        ]
        yield f"| {label} | {live[label]:.3f} | {exact:.3f} | {cells[0]} | {cells[1]} |"


def log_beside_replay(traces: Sequence[Trace], cost: CostTable) -> Iterator[str]:
    """Yield a table of what logs of chains predict beside an exact replay of chains alone."""
    narrow = [_of_width_1(trace) for trace in traces]
    exact = study_trees(narrow, cost, actions=ActionSpace(chains()))
    rows = {way.name.replace("tree", "chain"): [exact.speed(way).ratio] for way in _ways(exact)}
    logged = (3, LEVELS)
    for length in logged:
        study = study_steps(steps_of_traces(narrow, length), TableCost(cost))
        known = dict(enumerate(_ways(study)))
        # Constants come first, and a log of short chains has fewer of them.
        missing = LEVELS - length
        for place, row in enumerate(rows.values()):
            way = known.get(place if place <= length else place - missing)
            skip = length < place <= LEVELS
            row.append(float("nan") if skip or way is None else study.speed(way).ratio)
    yield (
        "| what decides | exact, tokens/s | "
        + " | ".join(f"from a log of chains of {length}, off, %" for length in logged)
        + " |"
    )
    yield "|---" * (2 + len(logged)) + "|"
    for name, (true, *found) in rows.items():
        cells = [f"{100 * (one / true - 1):+.1f}" if one == one else "" for one in found]
        yield f"| {name} | {true:.1f} | {' | '.join(cells)} |"


def _ways(study: Headroom) -> list[Way]:
    return [*study.constants, *study.others, *study.policies, *study.oracles]


def _of_width_1(trace: Trace) -> Trace:
    """Return a trace without the wider drafts."""
    place = trace.top_ks.index(1)
    part = {
        name: getattr(trace, name)[:, place : place + 1]
        for name in ("ranks", "path", "lookup_path")
    }
    return dataclasses.replace(trace, top_ks=(1,), scores={1: trace.scores[1]}, **part)


def pairs(
    predicted: Mapping[str, float], summary: Summary, ratios: Mapping[tuple[str, str], Interval]
) -> Iterator[tuple[str, str, bool, bool]]:
    """Yield every pair of modes, whether its order is right, and whether live is sure of it."""
    live = {mode.mode: mode.tokens_per_second for mode in summary.modes}
    for one, other in itertools.combinations(predicted, 2):
        interval = ratios[one, other]
        sure = interval.low > 1.0 or interval.high < 1.0
        right = (predicted[one] > predicted[other]) == (live[one] > live[other])
        yield one, other, right, sure


def tables(
    predicted: Mapping[str, tuple[float, float | None]],
    summary: Summary,
    ratios: Mapping[tuple[str, str], Interval],
) -> Iterator[str]:
    """Yield the lines of the result."""
    live = {mode.mode: mode.tokens_per_second for mode in summary.modes}
    plain = live["plain"] / predicted["plain"][0]
    yield "| mode | live, tokens/s | predicted | off, % | beside plain, % | from the log, off, % |"
    yield "|---|---|---|---|---|---|"
    worst = 0.0
    for label, (exact, logged) in predicted.items():
        off = exact / live[label] - 1.0
        beside = exact * plain / live[label] - 1.0
        worst = max(worst, abs(off))
        from_log = "" if logged is None else f"{100 * (logged / live[label] - 1):+.1f}"
        yield (
            f"| {label} | {live[label]:.1f} | {exact:.1f} | {100 * off:+.1f} | "
            f"{100 * beside:+.1f} | {from_log} |"
        )
    found = list(pairs({label: exact for label, (exact, _) in predicted.items()}, summary, ratios))
    sure = [right for _, _, right, is_sure in found if is_sure]
    yield ""
    yield (
        f"The largest error is {100 * worst:.1f} %. The order is right in "
        f"{sum(right for *_, right, _ in found)} of {len(found)} pairs of modes, and in "
        f"{sum(sure)} of the {len(sure)} whose live ratio has an interval that excludes 1."
    )
    wrong = [f"{one} and {other}" for one, other, right, _ in found if not right]
    if wrong:
        yield f"Wrong: {', '.join(wrong)}."


def first_turns(folder: Path) -> Comparison:
    """Return the live answers to first turns, which traces have recorded."""
    comparison = load_comparison(folder)
    records = tuple(
        dataclasses.replace(record, turns=record.turns[:1]) for record in comparison.records
    )
    return dataclasses.replace(comparison, records=records)


def live_ratios(comparison: Comparison, labels: Sequence[str]) -> dict[tuple[str, str], Interval]:
    """Return the live ratio of every pair of modes."""
    ratios: dict[tuple[str, str], Interval] = {}
    for other in labels:
        for mode in summarise(comparison, [other]).modes:
            if mode.mode in labels and mode.mode != other:
                ratios[mode.mode, other] = mode.ratios[other]
    return ratios


def main() -> None:
    """Print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="where everything is kept")
    parser.add_argument("questions", type=Path, nargs="*", help="question files, or folders")
    parser.add_argument("--traces", type=Path, help="decode nothing: folder of `record`")
    parser.add_argument("--cost", type=Path, help="with --traces: table of `calibrate`")
    parser.add_argument("--split", default="test")
    parser.add_argument("--per-file", type=int, help="questions per file; default: all")
    parser.add_argument("--tokens", type=int, default=128, help="longest answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--passes", type=int, default=16, help="of `calibrate`")
    parser.add_argument("--output", type=Path, help="file for the result")
    given = parser.parse_args()
    if given.traces is not None:
        lines = log_beside_replay(list(TraceSet(given.traces)), CostTable.from_json(given.cost))
        _write(lines, given.output)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    measure(given.folder, given)
    before, after = (CostTable.from_json(given.folder / f"{x}.json") for x in ("before", "after"))
    live = first_turns(given.folder / "live")
    summary = summarise(live)
    traces = TraceSet(given.folder / "traces")
    predicted = predict(traces, mean_cost(before, after))
    change = after.verify_base[0] / before.verify_base[0] - 1.0
    lines = [
        f"{len(traces)} questions, {traces.positions:,} positions; {before.machine}. One row cost "
        f"{100 * change:+.1f} % after the live part beside before.",
        *(f"Disturbed: {sentence}." for sentence in summary.disturbed),
        "",
        *tables(predicted, summary, live_ratios(live, list(predicted))),
        "",
        *lengths(summary, predict(traces, cycles_alone(before))),
    ]
    _write(lines, given.output)


def _write(lines: Iterable[str], output: Path | None) -> None:
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
