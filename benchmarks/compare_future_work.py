"""Extensions that Re-SpS leaves to future work, each compared with PPO without it, on traces.

    python benchmarks/compare_future_work.py --traces FOLDER [--test FOLDER] --cost FILE \
        [--output FILE.md]

The extensions are adaptive caching (a decision is kept while the features are similar), trained
compression of the features, and choosing the trees of several windows at once. Every variant is
trained on the same prompts (half of them without --test) with the same seeds and number of
decisions; a fifth of the training prompts chooses the checkpoint. It then decodes the test prompts
with its best actions, by the cost table. The policy's own time is not counted, but its calls are.
"""

from __future__ import annotations

import os

# One thread per process: the processes already use all cores.
os.environ["OMP_NUM_THREADS"] = "1"

import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from eaglerl.actions import ActionSpace
from eaglerl.cli.shared.trace_options import read_traces
from eaglerl.cost.cost_table import CostTable
from eaglerl.envs.trace_windows import TraceWindows
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.files import atomic_path
from eaglerl.ratio_intervals import ratio_interval
from eaglerl.sb3.greedy_outcome import GreedyOutcomes, greedy_outcomes
from eaglerl.traces.oracle import constant_seconds, known_actions, select_actions, trace_tables
from eaglerl.traces.trace_set import Trace

TEST_SHARE, CHOICE_SHARE = 0.5, 0.2


@dataclass(frozen=True)
class Runner:
    """A variant of PPO.

    Attributes:
        name: row of the table.
        changes: options that differ from the first runner's.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)


#: The first one has none of the three extensions.
RUNNERS = (
    Runner("none: a tree is kept for 10 cycles"),
    Runner("none, kept for 3 cycles", {"cache_steps": 3}),
    Runner("kept while similarity >= 0.5, 10 cycles at most", {"similarity_threshold": 0.5}),
    Runner(
        "kept while similarity >= 0.3, 30 cycles at most",
        {"similarity_threshold": 0.3, "cache_steps": 30},
    ),
    Runner("features compressed to 32", {"compressed_size": 32}),
    Runner("features compressed to 64", {"compressed_size": 64}),
    Runner("features compressed to 128", {"compressed_size": 128}),
    Runner("2 windows of 5 cycles at once", {"horizon": 2, "cache_steps": 5}),
    Runner("4 windows of 10 cycles at once", {"horizon": 4}),
)


@dataclass(frozen=True)
class Data:
    """Traces, actions and cost table of every run."""

    training: list[Trace]
    choice: list[Trace]
    test: list[Trace]
    actions: ActionSpace
    cost: CostTable


@dataclass(frozen=True, eq=False)
class Row:
    """A variant's test result: seconds of each prompt, (seeds, prompts)."""

    runner: Runner
    seconds: np.ndarray
    cycles_per_decision: float


_DATA: list[Data] = []


def read_halves(folders: list[Path], test: list[Path]) -> tuple[list[Trace], list[Trace]]:
    """Read the traces for training and choice of the checkpoint, and those for testing.

    Raises:
        ValueError: they belong to different heads.
    """
    if not test:
        half, others, _ = read_traces(folders, TEST_SHARE)
        return half, others
    half, _, head = read_traces(folders, 0.0)
    others, _, other_head = read_traces(test, 0.0)
    if head != other_head:
        raise ValueError(f"--test must have traces of the head {head}, got {other_head}")
    return half, others


def split(half: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Split into training traces and, by the highest hashes, the fifth that chooses checkpoints."""
    ordered = sorted(half, key=lambda trace: trace.prompt_id[-8:])
    count = len(ordered) - max(1, round(CHOICE_SHARE * len(ordered)))
    return ordered[:count], ordered[count:]


def start_worker(folders: list[Path], test: list[Path], cost: Path, rows: list[list[int]]) -> None:
    """Read the data of all runs of a process."""
    from eaglerl.eagle3.policy import TreeParams

    torch.set_num_threads(1)
    half, others = read_halves(folders, test)
    actions = ActionSpace(TreeParams(*row) for row in rows)
    _DATA[:] = [Data(*split(half), others, actions, CostTable.from_json(cost))]


def run(runner: Runner, seed: int, steps: int, settings: dict[str, Any]) -> GreedyOutcomes:
    """Train once, and decode the test prompts."""
    from eaglerl.sb3.train_policy import TrainPolicyOptions, train_policy

    data = _DATA[0]
    options = TrainPolicyOptions(
        "ppo", steps, seed=seed, checkpoint_steps=max(steps // 4, 1), **settings,
        **runner.changes,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trained = train_policy(
            data.training, data.actions, data.cost, folder, options, held_out=data.choice
        )
    windows = TraceWindows(
        data.test, data.actions, data.cost, cache_steps=options.cache_steps,
        similarity_threshold=options.similarity_threshold,
    )  # fmt: skip
    return greedy_outcomes(trained.policy.weights, windows)


def gain(seconds: np.ndarray, reference: np.ndarray) -> str:
    """Return the gain in tokens per second on the same tokens, with its 95 % interval over prompts.

    Args:
        seconds: (prompts,) time of every prompt.
        reference: (prompts,) time that it is compared with.
    """
    # Both decode the same tokens, which cancel: any positive number will do.
    tokens = np.ones_like(seconds)
    found = ratio_interval(np.column_stack((tokens, seconds, tokens, reference)))
    gain, low, high = (100 * (value - 1) for value in (found.ratio, found.low, found.high))
    return f"{gain:+.1f} % [{low:+.1f}, {high:+.1f}]"


def table(rows: Sequence[Row], constant: np.ndarray) -> str:
    """Return a Markdown table; times are means over the seeds."""
    lines = [
        "| PPO | cycles per call of the policy | over the tuned constant tree | seeds, one by one "
        "| over the first row |",
        "|---|---|---|---|---|",
    ]
    first = rows[0].seconds.mean(axis=0)
    for row in rows:
        mean = row.seconds.mean(axis=0)
        seeds = 100 * (constant.sum() / row.seconds.sum(axis=1) - 1)
        cells = (
            row.runner.name,
            f"{row.cycles_per_decision:.1f}",
            gain(mean, constant),
            ", ".join(f"{value:+.1f}" for value in seeds),
            "" if row is rows[0] else gain(mean, first),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(
    rows: Sequence[Row], data: Data, constant: np.ndarray, tuned: object,
    steps: int, settings: dict[str, Any],
) -> str:  # fmt: skip
    """Return the Markdown page."""
    tokens = sum(len(trace) for trace in data.test)
    seeds = len(rows[0].seconds)
    command = shlex.join(["python", "benchmarks/compare_future_work.py", *sys.argv[1:]])
    trees = ", ".join(str(tuple(tree)) for tree in data.actions.tensor.tolist())
    return f"""# Extensions that Re-SpS leaves to future work

    {command}

PPO on traces: {len(data.training)} training prompts ({sum(map(len, data.training))} positions),
{len(data.choice)} that choose the checkpoint, {len(data.test)} test prompts ({tokens} tokens);
{steps} decisions at a learning rate of {settings["learning_rate"]:g} and a discount of
{settings["gamma"]:g}, {seeds} seeds. Times are those of a cost table of {data.cost.machine},
the draft in {data.cost.draft_dtype}, without the policy's own time. Actions: {trees}.
The constant tree {tuned}, tuned on all but the test prompts, decodes
{tokens / constant.sum():.2f} tokens/s. Gains are in tokens per second, with times averaged over the
seeds and 95 % confidence intervals over the prompts in brackets. Trained on {describe_machine()}.

{table(rows, constant)}
"""


def main(
    traces: Annotated[
        list[Path], typer.Option(help="Folder of `eaglerl record`; may be repeated.")
    ],
    cost: Annotated[Path, typer.Option(help="Table of `eaglerl calibrate`.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Traces to test on; without, half of the others.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Markdown file to write as well.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Decisions to learn from.")] = 40_000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every runner.")] = 3,
    gamma: Annotated[float, typer.Option(help="Discount per window.")] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 3e-4,
    select: Annotated[
        int, typer.Option(min=2, help="Actions, chosen by all traces but the test's.")
    ] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
) -> None:
    """Train all variants with all seeds, and compare them on unseen prompts."""
    torch.set_num_threads(1)
    started = time.monotonic()
    half, others = read_halves(traces, test or [])
    times = CostTable.from_json(cost)
    grid = known_actions(ActionSpace.cpu_grid(), [*half, *others], times)
    totals = sum(constant_seconds(item) for item in trace_tables(half, grid, times))
    tuned = grid[int(totals.argmin())]
    constant = np.array(
        [constant_seconds(item)[0] for item in trace_tables(others, [tuned], times)]
    )
    actions = grid.subset(select_actions(grid, half, times, select))
    data = Data(*split(half), others, actions, times)
    shared = (traces, test or [], cost, actions.tensor.tolist())
    settings = {"gamma": gamma, "learning_rate": learning_rate}
    results: dict[tuple[int, int], GreedyOutcomes] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, shared) as pool:
        jobs = {
            pool.submit(run, runner, seed, steps, settings): (index, seed)
            for seed in range(seeds)
            for index, runner in enumerate(RUNNERS)
        }
        for job in as_completed(jobs):
            index, seed = jobs[job]
            results[index, seed] = job.result()
            passed = time.monotonic() - started
            typer.echo(f"{passed:.0f} s: {RUNNERS[index].name}, seed {seed}", err=True)
    rows = []
    for index, runner in enumerate(RUNNERS):
        runs = [results[index, seed] for seed in range(seeds)]
        decisions = sum(one.decisions.sum() for one in runs)
        kept = sum(one.cycles.sum() for one in runs) / decisions
        rows.append(Row(runner, np.stack([one.seconds for one in runs]), float(kept)))
    text = report(rows, data, constant, tuned, steps, settings)
    typer.echo(text)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
