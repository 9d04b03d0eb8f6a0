"""`eaglerl calibrate`: what a cycle costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    encode,
    load_decoder,
)
from eaglerl.cli.record import parse_widths
from eaglerl.cli.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL

_PROMPT = "Write a long story about a lighthouse keeper and the sea."


@command
def calibrate(
    output: Annotated[Path, typer.Argument(help="JSON file for the table.")],
    top_ks: Annotated[
        str, typer.Option("--top-k", metavar="K,...", help="Widths of the trees, ascending.")
    ] = "1,2,4,8",
    passes: Annotated[
        int, typer.Option(min=3, metavar="N", help="How often every kind of cycle is measured.")
    ] = 8,
    longest_context: Annotated[
        int, typer.Option(min=64, metavar="N", help="Longest context to measure at, in tokens.")
    ] = 512,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the order of the cycles.")] = 0,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure what drafting and verifying cost on this machine.

    Takes about a minute, in which nothing else should run. Policies that predict what is accepted
    combine it with this table: to move to another machine, measure it again.
    """
    widths = parse_widths(top_ks)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
    from eaglerl.evaluation.machine import describe_machine
    from eaglerl.rl.calibrate import calibrate as run

    chat = decoder.tokenizer.chat_template is not None
    prompt = encode(decoder, _PROMPT, chat=chat)[0].tolist()
    with progress_bar() as show:
        table = run(
            decoder,
            prompt,
            machine=describe_machine(),
            top_ks=widths,
            passes=passes,
            longest_context=longest_context,
            seed=seed,
            progress=lambda done: show("measuring", done),
        )
    table.to_json(output)
    error = table.error
    notes().print(
        f"{output}: {table.samples} cycles; half of the kinds within {100 * error.median:.1f} %, "
        f"all within {100 * error.worst:.1f} %; total time {100 * error.total:+.1f} %",
        markup=False,
        soft_wrap=True,
    )
