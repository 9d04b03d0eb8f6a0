"""Time of the policy's decision on the CPU, beside other ways to make it.

    python benchmarks/bench_fused_encode.py [--k 576 2048 4096] [--threads N] [--rounds N]

Prints one Markdown table: microseconds per decision in float32, one sequence, 177 actions, hidden
layers of 64 (k = 576) or 128; medians over rounds. Runners alternate within a round. "Hot" calls
follow each other; before a "cold" call 256 MB are read, so that no weights are left in the caches.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from encode_runners import FOLDED_FLOOR, FUSED_FLOOR, NAMES, Runners

from eaglerl._ext import build_info

FLUSH_BYTES = 256 << 20
BURST_SECONDS = 2e-3


def time_burst(runner: Callable[[], object], calls: int, reports_itself: bool) -> float:
    """Return the seconds of a call among many in a row."""
    if reports_itself:
        return sum(runner() for _ in range(calls)) / calls
    started = time.perf_counter()
    for _ in range(calls):
        runner()
    return (time.perf_counter() - started) / calls


@torch.inference_mode()
def measure(k: int, rounds: int, names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Return the median microseconds of each runner, hot and cold."""
    runners = Runners(k)
    runners.check()
    flush = torch.ones(FLUSH_BYTES // 4)
    ready, calls = {}, {}
    for name in names:
        ready[name] = runners.make(name)
        taken = min(time_burst(ready[name], 1, False) for _ in range(3))
        calls[name] = max(1, int(BURST_SECONDS / taken))
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for _ in range(rounds):
        for name, runner in ready.items():
            reports_itself = name in (FUSED_FLOOR, FOLDED_FLOOR)
            runner()
            times[name][0].append(time_burst(runner, calls[name], reports_itself))
            flush.sum()
            times[name][1].append(time_burst(runner, 1, reports_itself))
    return {
        name: (statistics.median(hot) * 1e6, statistics.median(cold) * 1e6)
        for name, (hot, cold) in times.items()
    }


def format_time(microseconds: float) -> str:
    digits = 2 if microseconds < 10 else 1 if microseconds < 100 else 0
    return f"{microseconds:,.{digits}f}"


def print_table(results: dict[int, dict[str, tuple[float, float]]]) -> None:
    """Write the table to standard output."""
    heads = [f"k = {k}, {state}" for k in results for state in ("hot", "cold")]
    lines = ["| microseconds | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in next(iter(results.values())):
        cells = [format_time(value) for result in results.values() for value in result[name]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, nargs="+", default=[576, 2048, 4096])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument(
        "--without", nargs="*", default=[], help="runners to leave out, by a part of the name"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = tuple(n for n in NAMES if not any(part in n for part in arguments.without))
    info = build_info()
    sys.stdout.write(f"torch {torch.__version__}, {arguments.threads} threads, {info['isa']}\n\n")
    print_table({k: measure(k, arguments.rounds, names) for k in arguments.k})


if __name__ == "__main__":
    main()
