"""Compare policies and baselines on recorded traces by a cost table, in seconds instead of hours.

    python benchmarks/compare_on_traces.py --traces FOLDER --test FOLDER --cost FILE \
        [--policy LABEL=FOLDER] [--output FILE.md]

The constant tree, the lookup rule and the other baselines are tuned on --traces; everything then
decodes --test. The automatic policy begins with nothing. The time of the policies themselves is not
counted. The oracle chooses among trees alone, so it does not bound policies with prompt lookup.
"""

from __future__ import annotations

import os

# The products are small: threads would spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eaglerl.actions import ActionSpace
from eaglerl.cli.shared.trace_options import read_traces
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import ConstantPolicy, TreeParams, TreePolicy
from eaglerl.evaluation.modes.baseline_modes import BASELINES, BaselineInputs, make_baseline
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.evaluation.statistics.summary import loops
from eaglerl.files import atomic_path
from eaglerl.policies.auto_policy import AutoPolicy
from eaglerl.policies.baselines import DraftConfidencePolicy, ShuffledStates, best_constant
from eaglerl.policies.policy_folder import find_policy
from eaglerl.ratio_intervals import ratio_interval
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.traces.oracle import (
    bounds,
    known_actions,
    oracle_actions,
    select_actions,
    trace_tables,
)
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_set import Trace

TITLE = "# Policies and baselines on recorded traces"
#: The best fixed rule: thresholds on the match length choose between lookup, tree and both.
RULE = "lookup-rule"


def main(
    traces: Annotated[list[Path], typer.Option(help="Traces to tune on; may be repeated.")],
    test: Annotated[Path, typer.Option(help="Traces to decode.")],
    cost: Annotated[Path, typer.Option(help="Table of `eaglerl calibrate`.")],
    policy: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=FOLDER", help="May be repeated.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write, too.")] = None,
) -> None:
    """Decode traces with everything, and print one table."""
    training, _, head = read_traces(traces, 0.0)
    tested, _, tested_head = read_traces([test], 0.0)
    if {t.prompt_id for t in training} & {t.prompt_id for t in tested}:
        raise typer.BadParameter("--test must share no prompt with --traces")
    if tested_head != head:
        raise typer.BadParameter(f"--test is of the head {tested_head}, --traces of {head}")
    table = CostTable.from_json(cost)
    grid = known_actions(ActionSpace.cpu_grid(), [*training, *tested], table)
    tuned = best_constant(training, grid, table)
    inputs = few_trees(grid, table, training)
    rule = make_baseline(RULE, inputs)
    study = Study(tested, table, tuned, rule, grid)
    lines = list(study.header())
    rows = [*policies(policy or []), *baselines(grid, inputs), (f"baseline: {RULE}", rule)]
    for label, runner in rows:
        lines.append(study.row(label, runner))
        typer.echo(lines[-1], err=True)
    command = shlex.join(["python", "benchmarks/compare_on_traces.py", *sys.argv[1:]])
    source = f"`{command}`, cost table of {table.machine}; computed on {describe_machine()}."
    page = "\n".join([TITLE, "", *lines, "", *study.captured(), "", source])
    typer.echo(page)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(page + "\n", encoding="utf-8")


def few_trees(grid: ActionSpace, table: CostTable, training: Sequence[Trace]) -> BaselineInputs:
    """Return what the baselines are tuned with: few trees, because the rule tries all of them."""
    eight, four = (
        grid.subset(select_actions(grid, training[:200], table, count)) for count in (8, 4)
    )
    return BaselineInputs(eight, list(four), table, training)


def policies(folders: Sequence[str]) -> Iterator[tuple[str, TreePolicy]]:
    """Yield the automatic policy, and trained policies and their controls, by label."""
    yield "auto", AutoPolicy()
    yield "auto, without prompt lookup", AutoPolicy(lookup_tokens=0)
    for text in folders:
        label, sign, path = text.partition("=")
        if not sign:
            raise typer.BadParameter(f"--policy must be LABEL=FOLDER, got {text!r}")
        files = find_policy(path)
        yield label, load_resps_policy(files.path)
        yield f"{label}, shuffled states", ShuffledStates(load_resps_policy(files.path))


def baselines(grid: ActionSpace, inputs: BaselineInputs) -> Iterator[tuple[str, TreePolicy]]:
    """Yield the baselines other than the lookup rule, by label."""
    deepest = max(tree.depth for tree in grid)
    widest = max(tree.top_k for tree in grid)
    most = max(tree.total_tokens for tree in grid)
    limit = TreeParams(min(most, 1 + widest + deepest * widest**2), deepest, widest)
    yield "baseline: confidence", DraftConfidencePolicy(inputs.cost, limit=limit)
    for name in BASELINES:
        if name not in ("best-constant", "confidence", RULE):
            yield f"baseline: {name}", make_baseline(name, inputs)


class Study:
    """The traces to decode, and the times of the constant tree, the lookup rule and the oracle."""

    def __init__(
        self,
        traces: Sequence[Trace],
        table: CostTable,
        tuned: ConstantPolicy,
        rule: TreePolicy,
        grid: ActionSpace,
    ) -> None:
        self._traces, self._table, self._tuned, self._grid = traces, table, tuned, grid
        self._domains = np.array([trace.domain for trace in traces])
        self._straight = np.array([not loops(decoded(trace)) for trace in traces])
        self._reference, self._rule = self._decode(tuned), self._decode(rule)
        tables = trace_tables(traces, grid, table)
        self._oracle = np.array([oracle_actions(outcomes)[0][0] for outcomes in tables])
        self._seconds: dict[str, np.ndarray] = {}

    def header(self) -> Iterator[str]:
        """Yield a description of the data, and the head of the table."""
        limits = bounds(self._traces, self._grid, self._table)
        tree = self._tuned.params
        speed = self._reference[:, 0].sum() / self._reference[:, 1].sum()
        yield (
            f"{len(self._traces)} prompts, {limits.tokens:,} positions, {(~self._straight).sum()} "
            f"prompts loop. The tuned constant tree, {tree}, decodes {speed:.1f} tokens/s, plain "
            f"decoding {limits.tokens / limits.plain:.1f}. Over the best constant tree in "
            f"hindsight, the best tree of every cycle gains {100 * limits.headroom:.1f} %, and the "
            f"best tree of every prompt {100 * (limits.constant / limits.per_prompt - 1):.1f} %."
        )
        yield ""
        names = ["gain over the tuned constant tree, %", "all", "not looping"]
        names += [*sorted(set(self._domains)), "all, over the lookup rule"]
        yield f"| {' | '.join(names)} |"
        yield "|---" * len(names) + "|"

    def row(self, label: str, policy: TreePolicy) -> str:
        """Return a row with a policy's gains."""
        own = self._decode(policy)
        self._seconds[label] = own[:, 1]
        sums = np.hstack((own, self._reference))
        cells = [with_interval(sums), with_interval(sums[self._straight])]
        for name in sorted(set(self._domains)):
            cells.append(f"{100 * (ratio_interval(sums[self._domains == name]).ratio - 1):+.1f}")
        cells.append(with_interval(np.hstack((own, self._rule))))
        return f"| {' | '.join([label, *cells])} |"

    def captured(self) -> Iterator[str]:
        """Yield a table of the oracle's gain, each policy's share of it, and its regret."""
        groups = {"all": np.ones(len(self._traces), dtype=bool)}
        groups |= {name: self._domains == name for name in sorted(set(self._domains))}
        tuned, tokens = self._reference[:, 1], self._reference[:, 0]
        gains, rows = [], {label: [] for label in self._seconds}
        for group in groups.values():
            constant, oracle = tuned[group].sum(), self._oracle[group].sum()
            gains.append(f"{100 * (constant / oracle - 1):+.1f}")
            for label, seconds in self._seconds.items():
                own = seconds[group].sum()
                share = (1 / own - 1 / constant) / (1 / oracle - 1 / constant)
                regret = 1000 * (own - oracle) / tokens[group].sum()
                rows[label].append(f"{100 * share:.0f} ({regret:.1f})")
        yield (
            "Share of the oracle's gain over the tuned constant tree, %, and in brackets the "
            "regret against the oracle in ms per token. The oracle knows the best tree of every "
            "cycle, but does not use prompt lookup."
        )
        yield ""
        yield f"| | {' | '.join(groups)} |"
        yield "|---" * (1 + len(groups)) + "|"
        yield f"| the oracle's gain, % | {' | '.join(gains)} |"
        for label, cells in rows.items():
            yield f"| {label} | {' | '.join(cells)} |"

    def _decode(self, policy: Any) -> np.ndarray:
        """Return tokens and seconds, (prompts, 2)."""
        outcomes = simulate(policy, self._traces, self._table)
        return np.array([(outcome.tokens, outcome.seconds) for outcome in outcomes])


def decoded(trace: Trace) -> list[int]:
    """Return the tokens of a trace's answer, without those past its end."""
    return trace.continuation_ids[: len(trace) + 1].tolist()


def with_interval(sums: np.ndarray) -> str:
    """Return a gain in percent, with its interval."""
    found = ratio_interval(sums)
    low, middle, high = (100 * (x - 1) for x in (found.low, found.ratio, found.high))
    return f"{middle:+.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    typer.run(main)
