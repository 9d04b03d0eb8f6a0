"""Decoding and the fused decision beside processes that keep the cores busy.

    python benchmarks/bench_beside_load.py [--processes 2] [--rounds 8] [--tokens 48]

One process, medians; every round runs all rows of the table in turn. On one thread no thread waits
for another, so that is what all threads must reach beside load. The processes are stopped where a
row is without load.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import typer
from encode_runners import EAGER, FUSED, Runners
from rich.console import Console
from rich.table import Table

from eaglerl import SpeculativeDecoder, TreeParams
from eaglerl.evaluation.running.processor import describe_machine
from eaglerl.prepare import default_draft_path, prepare_model

PROMPT = "Explain why the sky is blue."
DECISIONS = 100


@contextmanager
def busy_processes(count: int) -> Iterator[Callable[[bool], None]]:
    """Start processes that never rest; yield a function that lets them run or stops them."""
    loop = ["sh", "-c", "while :; do :; done"]
    processes = [subprocess.Popen(loop) for _ in range(count)]

    def run(on: bool) -> None:
        for process in processes:
            process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    try:
        run(False)
        yield run
    finally:
        for process in processes:
            process.kill()
            process.wait()


def decode(precision: str, tree: TreeParams, tokens: int) -> Callable[[], float]:
    """Return a function that decodes and returns tokens per second."""
    decoder = SpeculativeDecoder.from_pretrained(
        prepare_model(), default_draft_path(), precision=precision
    )
    prompt = decoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True
    )["input_ids"]

    def run() -> float:
        statistics_ = decoder.generate(prompt, tree, max_new_tokens=tokens).statistics
        return statistics_.new_tokens / statistics_.decode_seconds

    return run


def decide(runners: Runners, name: str) -> Callable[[], float]:
    """Return a function that makes decisions and returns their median in microseconds."""

    @torch.inference_mode()
    def run() -> float:
        decision, times = runners.make(name), []
        for _ in range(DECISIONS):
            started = time.perf_counter()
            decision()
            times.append(time.perf_counter() - started)
        return statistics.median(times) * 1e6

    return run


def main(processes: int = 2, rounds: int = 8, tokens: int = 48) -> None:
    """Print the table."""
    runners, every = Runners(576), torch.get_num_threads()
    rows = {
        f"{mode}, {precision}, tokens/s": decode(precision, tree, tokens)
        for precision in ("native", "float32")
        for mode, tree in (("plain", TreeParams(1)), ("tree of 6/2/4", TreeParams(6, 2, 4)))
    } | {f"{name}, k = 576, us": decide(runners, name) for name in (FUSED, EAGER)}
    results: dict[tuple[str, bool, int], list[float]] = {}
    with busy_processes(processes) as load:
        for repeat in range(rounds + 1):
            for name, run in rows.items():
                for on in (False, True):
                    load(on)
                    for threads in (every, 1):
                        torch.set_num_threads(threads)
                        value = run()
                        if repeat:
                            results.setdefault((name, on, threads), []).append(value)
    table = Table(title=f"Beside {processes} busy processes ({describe_machine()})")
    for column in ("", "idle", "idle, 1 thread", "beside load", "beside load, 1 thread"):
        table.add_column(column, justify="right")
    for name in rows:
        values = [
            statistics.median(results[name, on, threads])
            for on in (False, True)
            for threads in (every, 1)
        ]
        table.add_row(name, *(f"{value:.1f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
