"""eaglerl beside llama.cpp and OpenVINO GenAI: the same weights, questions and threads, in turn.

    python benchmarks/peers/compare_peers.py FOLDER [--only 'eaglerl int8 *'] [--per-file 3]

FOLDER gets the peers in environments of their own, with a build of llama.cpp for this processor
(half an hour on two cores), the model in their formats, and a folder for every run. An interrupted
run goes on where it was, and one of the same name adds runners, repeats or questions to it.

Each runner is asked every question, the order rotates from question to question, and one process
works at a time. Times are those of the prompt and of decoding, apart; figures are medians over the
repeats of totals over the questions.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from peer_engines import Eaglerl, Engine, start_engines
from peer_passes import measure_passes
from peer_records import Answer, RunRecords, code_digest
from peer_report import report
from peer_runners import Runner, choose_runners, in_turn
from rich.console import Console
from rich.progress import track
from transformers import AutoConfig, AutoTokenizer

from eaglerl.evaluation.questions.question_files import (
    chat_ids,
    choose_split,
    prepare_questions,
    question_files,
    read_questions,
)
from eaglerl.evaluation.running.processor import processor_name
from eaglerl.files import exclusive_folder
from eaglerl.prepare import default_draft_path, prepare_model

HERE = Path(__file__).resolve().parent
# Of no question, so that a peer that remembers answers has no use of it.
WARM_UP = "Name five things that one finds on a beach, and say a sentence about each."
WARM_UP_TOKENS = 24


def read_prompts(
    paths: list[Path], split: str, per_file: int | None, model: Path, count: int
) -> dict[str, list[int]]:
    """Return the chat prompts of the questions' first turns, by id."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    positions = AutoConfig.from_pretrained(model).max_position_embeddings
    every = prepare_questions(
        read_questions(question_files(paths)),
        tokenizer,
        max_new_tokens=count,
        max_positions=positions,
    )
    return {
        question.id: chat_ids(tokenizer, question.turns[:1], ())
        for question in choose_split(every, split, per_file)
    }


def settings_of(model: Path, count: int, threads: int) -> dict[str, Any]:
    """Return what all measurements of a run have in common."""
    return {
        "processor": processor_name(),
        "threads": threads,
        "max_new_tokens": count,
        "eaglerl": code_digest(),
        **{
            name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for name, path in (
                ("model", model / "model.gguf"),
                ("head", default_draft_path() / "model.safetensors"),
            )
        },
    }


def measure_answers(
    engines: list[Engine],
    prompts: dict[str, list[int]],
    records: RunRecords,
    *,
    count: int,
    repeats: int,
    warm_up: list[int],
) -> None:
    """Ask every runner every question in every repeat, but for what is there already."""
    by_runner = {runner: engine for engine in engines for runner in engine.runners}
    for repeat in range(repeats):
        missing = [
            [r for r in by_runner if (r.name, question, repeat) not in records.answers]
            for question in prompts
        ]
        if not any(missing):
            continue
        needed = {runner for runners in missing for runner in runners}
        for engine in {id(by_runner[r]): by_runner[r] for r in needed}.values():
            engine.renew()
        for runner in needed:
            by_runner[runner].decode(runner, warm_up, min(count, WARM_UP_TOKENS))
        steps = track(
            zip(prompts.items(), missing, strict=True),
            total=len(prompts),
            description=f"repeat {repeat + 1} of {repeats}",
        )
        for turn, ((question, prompt), runners) in enumerate(steps, repeat * len(prompts)):
            for runner in in_turn(runners, turn):
                answer = by_runner[runner].decode(runner, prompt, count)
                records.add_answer(_record(answer, runner, question, repeat, records.session))


def _record(
    answer: dict[str, Any], runner: Runner, question: str, repeat: int, session: int
) -> Answer:
    return Answer(
        runner=runner.name,
        question=question,
        repeat=repeat,
        session=session,
        **{"generated": len(answer["tokens"]), **answer, "tokens": tuple(answer["tokens"])},
    )


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the peers and the runs.")],
    questions: Annotated[
        list[Path] | None, typer.Option(help="Question files or folders; the samples by default.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, test or all questions.")] = "all",
    per_file: Annotated[int | None, typer.Option(min=1, help="First questions of a file.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Glob of runners' names, such as '*int8*'.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 128,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    run: Annotated[str, typer.Option(help="Name of the run; one that exists is resumed.")] = "run",
    passes: Annotated[int, typer.Option(min=0, help="Turns of the passes; 0 for none.")] = 3,
) -> None:
    """Measure the runners and print the tables."""
    console = Console(width=140)
    try:
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
    prompts = read_prompts(paths, split, per_file, model, max_new_tokens)
    warm_up = chat_ids(AutoTokenizer.from_pretrained(model), [WARM_UP], ())
    with (
        exclusive_folder(folder / run),
        RunRecords(folder / run, settings_of(model, max_new_tokens, threads)) as records,
    ):
        engines = start_engines(folder, model, runners, threads)
        try:
            for engine in engines:
                for precision, reason in getattr(engine, "refused", {}).items():
                    console.print(f"left out: eaglerl {precision}: {reason}", style="yellow")
            measure_answers(
                engines,
                prompts,
                records,
                count=max_new_tokens,
                repeats=repeats,
                warm_up=warm_up,
            )
            ours = [engine for engine in engines if isinstance(engine, Eaglerl)]
            for engine in engines:
                if engine not in ours:
                    engine.close()
            bandwidth = None
            if passes and ours:
                bandwidth = measure_passes(ours[0], folder, model, records, passes, threads)
        finally:
            for engine in engines:
                engine.close()
        report(console, list(prompts), records, model, folder / run, bandwidth)


if __name__ == "__main__":
    typer.run(main)
