"""Decoding and the fused decision beside processes that keep the cores busy.

    python benchmarks/bench_beside_load.py [--processes 2] [--rounds 4] [--tokens 48]

One process, medians; every round runs all rows of the table in turn, first without load. On one
thread no thread waits for another, so that is what all threads must reach beside load.
"""

from __future__ import annotations

import itertools
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
SETTLE_SECONDS = 5.0


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


def main(processes: int = 2, rounds: int = 4, tokens: int = 48) -> None:
    """Print the table."""
    runners, every = Runners(576), torch.get_num_threads()
    rows = {
        f"{mode}, {precision}, tokens/s": decode(precision, tree, tokens)
        for precision in ("native", "float32")
        for mode, tree in (("plain", TreeParams(1)), ("tree of 6/2/4", TreeParams(6, 2, 4)))
    } | {f"{name}, k = 576, us": decide(runners, name) for name in (FUSED, EAGER)}
    machine, settle = describe_machine(), next(iter(rows.values()))
    results: dict[tuple[str, bool, int], list[float]] = {}
    with busy_processes(processes) as load:
        for _ in range(rounds):
            for on in (False, True):
                load(on)
                torch.set_num_threads(every)
                # More threads are tried every 4 s where they were too many.
                began = time.monotonic()
                while time.monotonic() - began < SETTLE_SECONDS:
                    settle()
                for (name, run), threads in itertools.product(rows.items(), (every, 1)):
                    torch.set_num_threads(threads)
                    results.setdefault((name, on, threads), []).append(run())
    table = Table(title=f"Beside {processes} busy processes ({machine})")
    for column in ("", "idle", "idle, 1 thread", "busy", "busy, 1 thread"):
        table.add_column(column, justify="right")
    for name in rows:
        keys = itertools.product([name], (False, True), (every, 1))
        table.add_row(name, *(f"{statistics.median(results[key]):.1f}" for key in keys))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
