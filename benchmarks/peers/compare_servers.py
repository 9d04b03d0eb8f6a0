"""eaglerl's server beside those of vLLM and llama.cpp: many requests at once, over HTTP.

    python benchmarks/peers/compare_servers.py FOLDER [--only 'eaglerl *'] [--concurrency 1,4,16]

FOLDER gets the peers in environments of their own, with a build of llama.cpp for this processor
(half an hour on two cores), the model in their formats, and a folder for every run. An interrupted
run goes on where it was, and one of the same name adds servers, repeats or numbers of requests.

All servers are started once, and one works at a time: the others' processes are stopped. For every
number of requests at once the servers take turns, in an order that rotates. That many clients send
the same chat prompts, as token ids, to ``/v1/completions`` and read the streamed answers: greedy,
up to an end token. Before every turn the server answers as many other, short requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from compare_peers import WARM_UP, WARM_UP_TOKENS, read_prompts
from peer_records import code_digest
from peer_runners import in_turn
from rich.console import Console
from rich.progress import track
from server_load import run_load
from server_processes import (
    CONTEXT,
    Runner,
    Server,
    choose_runners,
    make_servers,
    request_body,
)
from server_records import Load, LoadRecords, StreamedAnswer
from server_tables import markdown
from transformers import AutoTokenizer

from eaglerl.evaluation.questions.question_files import chat_ids
from eaglerl.evaluation.running.processor import processor_name
from eaglerl.files import exclusive_folder
from eaglerl.prepare import prepare_model

HERE = Path(__file__).resolve().parent
#: The runner whose texts the others are compared with.
REFERENCE = "eaglerl native plain"
#: Servers have room for as many requests at once, or for more.
LEAST_SLOTS = 16
_ANSWER_SECONDS = 600.0


def questions_at(
    prompts: dict[str, list[int]], concurrency: int, fewest: int, rounds: int
) -> dict[str, list[int]]:
    """Return the questions of one concurrency, of all files alike.

    Args:
        prompts: all of them, file by file.
        concurrency: requests at once.
        fewest: fewest questions.
        rounds: questions for every client.

    Raises:
        ValueError: there are too few.
    """
    count = max(fewest, rounds * concurrency)
    if count > len(prompts):
        raise ValueError(
            f"{concurrency} requests at once need {count} questions, got {len(prompts)}: add "
            "questions, or lower --rounds or --concurrency"
        )
    # One file after another, first questions first.
    by_file: dict[str, list[str]] = {}
    for name in prompts:
        by_file.setdefault(name.partition("/")[0], []).append(name)
    longest = max(map(len, by_file.values()))
    order = [
        each[index] for index in range(longest) for each in by_file.values() if index < len(each)
    ]
    return {name: prompts[name] for name in order[:count]}


def warm_up_prompts(model: Path, count: int) -> list[list[int]]:
    """Return different prompts that are no questions."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [f"{WARM_UP} Begin with number {index}." for index in range(count)]
    return [chat_ids(tokenizer, [text], ()) for text in texts]


def measure(
    runner: Runner,
    server: Server,
    asked: dict[str, list[int]],
    concurrency: int,
    *,
    count: int,
    warm_up: Sequence[list[int]],
) -> tuple[list[StreamedAnswer], float]:
    """Let a server answer questions; return the answers and the seconds for all of them.

    Raises:
        RuntimeError: it failed; the message has the end of what it printed.
    """
    server.resume()
    try:
        short = {
            str(index): request_body(runner, prompt, min(count, WARM_UP_TOKENS))
            for index, prompt in enumerate(warm_up[:concurrency])
        }
        run_load(server.port, short, concurrency, timeout=_ANSWER_SECONDS)
        bodies = {name: request_body(runner, ids, count) for name, ids in asked.items()}
        answers, seconds = run_load(server.port, bodies, concurrency, timeout=_ANSWER_SECONDS)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"{runner.name}: {error}\n{server.ended()}") from error
    finally:
        server.pause()
    return [
        StreamedAnswer(question=name, **vars(answer)) for name, answer in answers.items()
    ], seconds


@dataclass(frozen=True)
class Task:
    """A load that is still to be measured."""

    runner: Runner
    concurrency: int
    repeat: int


def missing_tasks(
    runners: Sequence[Runner], numbers: Sequence[int], repeats: int, records: LoadRecords
) -> list[Task]:
    """Return what is still to be measured, in order: runners take turns at every concurrency."""
    return [
        Task(runner, number, repeat)
        for repeat in range(repeats)
        for place, number in enumerate(numbers)
        for runner in in_turn(runners, place + repeat)
        if (runner.name, number, repeat) not in records.loads
    ]


def measure_all(
    servers: dict[tuple[str, str], Server],
    tasks: Sequence[Task],
    prompts: dict[int, dict[str, list[int]]],
    records: LoadRecords,
    *,
    count: int,
    warm_up: Sequence[list[int]],
) -> None:
    """Measure loads, and keep each as soon as it has ended.

    Args:
        servers: started, and paused.
        tasks: the loads.
        prompts: questions by concurrency.
        records: gets the loads.
        count: most tokens of an answer.
        warm_up: prompts that are no questions.
    """
    for task in track(tasks, description="loads"):
        number = task.concurrency
        server = servers[task.runner.server]
        answers, seconds = measure(
            task.runner, server, prompts[number], number, count=count, warm_up=warm_up
        )
        records.add(
            Load(
                runner=task.runner.name,
                concurrency=number,
                repeat=task.repeat,
                session=records.session,
                seconds=seconds,
                answers=tuple(answers),
            )
        )


@contextmanager
def started(servers: Iterable[Server], console: Console) -> Iterator[None]:
    """Start servers, one after another, and stop their processes; end them behind the block."""
    servers = list(servers)
    try:
        for server in servers:
            console.print(f"starting {server.name}")
            server.start()
            server.pause()
        yield
    finally:
        for server in servers:
            server.close()


def settings_of(model: Path, prompts: dict[str, list[int]], **more: int) -> dict[str, Any]:
    """Return what all measurements of a run have in common.

    Args:
        model: folder of the packaged model.
        prompts: all prompts, of which every concurrency takes some.
        more: further settings.
    """
    return {
        "processor": processor_name(),
        "eaglerl": code_digest(),
        "model": hashlib.sha256((model / "model.gguf").read_bytes()).hexdigest()[:16],
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        **more,
    }


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the peers and the runs.")],
    questions: Annotated[
        list[Path] | None, typer.Option(help="Question files or folders; the samples by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, test or all questions.")] = "all",
    per_file: Annotated[int | None, typer.Option(min=1, help="First questions of a file.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Glob of runners' names, such as 'eaglerl *'.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests at once.")] = "1,2,4,8,16",
    fewest: Annotated[int, typer.Option(min=1, help="Fewest questions.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Questions for every client.")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    repeats: Annotated[int, typer.Option(min=1)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    run: Annotated[
        str, typer.Option(help="Name of the run; one that exists is resumed.")
    ] = "servers",
) -> None:
    """Measure the servers and print the tables."""
    console = Console()
    try:
        numbers = sorted({int(part) for part in concurrency.split(",")})
        runners = choose_runners(only or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    # Ended from outside, it still ends its own processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # For every process: the libraries' own defaults differ, and a user's variables change them.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    folder = folder.resolve()
    model = prepare_model()
    paths = questions or [HERE.parents[1] / "questions"]
    every = read_prompts(paths, split, per_file, model, max_new_tokens)
    every = {name: ids for name, ids in every.items() if len(ids) + max_new_tokens <= CONTEXT}
    prompts = {number: questions_at(every, number, fewest, rounds) for number in numbers}
    lengths = {"max_new_tokens": max_new_tokens, "threads": threads}
    settings = settings_of(model, every, **lengths, fewest=fewest, rounds=rounds)
    with (
        exclusive_folder(folder / run),
        LoadRecords(folder / run, settings) as records,
    ):
        tasks = missing_tasks(runners, numbers, repeats, records)
        needed = [task.runner for task in tasks]
        servers = make_servers(folder, model, needed, threads, max(numbers[-1], LEAST_SLOTS))
        with started(servers.values(), console):
            warm_up = warm_up_prompts(model, numbers[-1])
            measure_all(servers, tasks, prompts, records, count=max_new_tokens, warm_up=warm_up)
        text = markdown(records.loads, [runner.name for runner in runners], REFERENCE)
        (folder / run / "tables.md").write_text(text, encoding="utf-8")
        # Not through the console, which would break lines.
        sys.stdout.write(text)


if __name__ == "__main__":
    typer.run(main)
