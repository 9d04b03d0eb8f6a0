"""Time that the acceptance policy takes per decoding cycle.

    python benchmarks/bench_acceptance_policy.py [--top-k 4] [--passes 3] [--rounds N]

One row for each call of the loop, and their sum: microseconds per cycle, median and best tenth of
the rounds, without and with a lookup. The nets have random weights and the sizes of a fitted model;
the policy's input is made from the tree's bookkeeping, as in the loop. The last row is the time of
the same decisions by `AcceptanceModel`, the batched form that training uses.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from eaglerl._ext import build_info
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import CycleState, StepResult, TreeParams
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.eagle3.tree.tree_drafter import DraftContext, TreeDrafter
from eaglerl.policies.acceptance_model import (
    LOOKUP_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
)
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.candidates import Candidates
from eaglerl.policies.small_net import SmallNet

VOCAB, HIDDEN, MAX_DEPTH, MAX_ROWS, LOOKUP_TOKENS = 1000, 24, 5, 32, 12
CONTEXT = 400
CALLS = ("choose", "show", "should_continue", "select", "observe")


def make_net(draw: np.random.Generator, inputs: int) -> SmallNet:
    shapes = ((inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1))
    return SmallNet(
        tuple((draw.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for s in shapes),
        tuple(np.zeros(s[1], dtype=np.float32) for s in shapes),
    )


def make_model(top_k: int) -> AcceptanceModel:
    draw = np.random.default_rng(0)
    return AcceptanceModel(
        top_k=top_k,
        max_depth=MAX_DEPTH,
        max_rows=MAX_ROWS,
        lookup_tokens=LOOKUP_TOKENS,
        pool_net=make_net(draw, POOL_INPUTS),
        lookup_net=make_net(draw, LOOKUP_INPUTS),
        stop_weights=draw.standard_normal((MAX_DEPTH, STOP_INPUTS)).astype(np.float32),
        rate=70.0,
    )


def make_drafters(top_k: int, passes: int) -> tuple[list[TreeDrafter], tuple[int, ...]]:
    """Make the tree's bookkeeping after each pass, and looked-up tokens after the best child."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(passes, top_k, VOCAB)
    drafters = []
    for depth in range(passes):
        drafter = TreeDrafter(None)
        drafter._builder.begin(1, top_k)
        drafter._builder.first(logits[0, 0])
        for index in range(depth):
            drafter._builder.expand(logits[index + 1])
        drafters.append(drafter)
    best = drafters[0]._builder.finish(2).token_ids[1]
    return drafters, (int(best), *range(LOOKUP_TOKENS - 1))


class Cycle:
    """The calls of one cycle, and the same decisions by the model."""

    def __init__(self, top_k: int, passes: int, *, with_lookup: bool) -> None:
        base = (0.016, 0.019, 0.024, 0.032)
        self.cost = CostTable(
            "made up", "float32", (1, 8, 16, 32), base, (1e-6,) * 4, (top_k,), (2e-3,), (2e-3,)
        )
        self.model = make_model(top_k)
        self.policy = AcceptancePolicy(self.model, self.cost)
        self.drafters, looked_up = make_drafters(top_k, passes)
        self.lookup = Lookup(5, looked_up) if with_lookup else NO_LOOKUP
        self.context = DraftContext(CONTEXT, self.lookup, TotalTime())
        self.state = CycleState(torch.zeros(1), CONTEXT, None)
        emitted = (looked_up[0], 7)
        self.result = StepResult(
            emitted, TreeParams(9, 2, 2), 1, 0.01, 0.02, torch.zeros(1), CONTEXT, self.lookup
        )

    def timed_calls(self) -> Iterator[tuple[str, float]]:
        """Make the calls, and yield the name and the seconds of each."""
        policy, top_k, clock = self.policy, self.model.top_k, time.perf_counter
        started = clock()
        policy.choose(self.state)
        yield "choose", clock() - started
        for depth, drafter in enumerate(self.drafters):
            started = clock()
            progress = drafter._progress(top_k, depth, self.context)
            yield "show", clock() - started
            started = clock()
            policy.should_continue(progress)
            yield "should_continue", clock() - started
        started = clock()
        policy.select(progress)
        yield "select", clock() - started
        started = clock()
        policy.observe(self.result)
        yield "observe", clock() - started

    def by_the_model(self) -> Callable[[], None]:
        """Return a function that makes the same cycle's decisions with `AcceptanceModel`."""
        top_k, match = self.model.top_k, self.lookup.match_length
        shown = []
        for depth, drafter in enumerate(self.drafters):
            progress = drafter._progress(top_k, depth, self.context)
            nodes = progress.lookup_nodes
            nodes = np.full(depth + 1, -1) if nodes is None else nodes
            shown.append(
                Candidates(
                    top_k,
                    depth,
                    progress.scores[None],
                    np.array([CONTEXT]),
                    np.array([match]),
                    nodes[None],
                    np.array([0.5]),
                    np.array([3]),
                )
            )

        def decide() -> None:
            for candidates in shown:
                survival = self.model.survival(candidates)
                plan = self.model.plan(candidates, survival, self.cost, self.policy.rate)
                self.model.should_continue(candidates, survival, plan)

        return decide


def measure(cycle: Cycle, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of every round, by call."""
    names = (*CALLS, "together", "by `AcceptanceModel`")
    times: dict[str, list[float]] = {name: [] for name in names}
    decide = cycle.by_the_model()
    for index in range(rounds):
        spent = dict.fromkeys(CALLS, 0.0)
        for name, seconds in cycle.timed_calls():
            spent[name] += seconds
        for name in CALLS:
            times[name].append(spent[name] * 1e6)
        times["together"].append(sum(spent.values()) * 1e6)
        if index % 10 == 0:
            started = time.perf_counter()
            decide()
            times["by `AcceptanceModel`"].append((time.perf_counter() - started) * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3000)
    arguments = parser.parse_args()
    if not 1 <= arguments.passes <= MAX_DEPTH + 1:
        parser.error(f"--passes must be from 1 to {MAX_DEPTH + 1}, got {arguments.passes}")
    torch.set_num_threads(1)
    results = [
        measure(Cycle(arguments.top_k, arguments.passes, with_lookup=with_lookup), arguments.rounds)
        for with_lookup in (False, True)
    ]
    sys.stdout.write(
        f"K = {arguments.top_k}, {arguments.passes} passes, {build_info()['isa']}, one thread\n\n"
        "| µs per cycle | no lookup, median | best tenth | lookup, median | best tenth |\n"
        "|---|---|---|---|---|\n"
    )
    for name in results[0]:
        cells = [
            f"{value:.1f}"
            for times in results
            for value in (
                statistics.median(times[name]),
                statistics.quantiles(times[name], n=10)[0],
            )
        ]
        sys.stdout.write(f"| {name} | " + " | ".join(cells) + " |\n")


if __name__ == "__main__":
    main()
