"""`eaglerl calibrate`: what a cycle costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.record_command import parse_widths
from eaglerl.cli.shared.machine_cost import kept_cost_path, measure_cost
from eaglerl.cli.shared.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    load_decoder,
)
from eaglerl.cli.shared.terminal import DebugOption, command
from eaglerl.prepare import DEFAULT_MODEL


@command
def calibrate(
    output: Annotated[
        Path | None,
        typer.Argument(
            help="JSON file for the table; without one it is kept in eaglerl's cache, "
            "where `demo`, `generate`, `serve` and `compare` find it.",
            show_default=False,
        ),
    ] = None,
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
    combine it with this table, so every machine needs its own.
    """
    widths = parse_widths(top_ks)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
    measure_cost(
        decoder,
        kept_cost_path(decoder) if output is None else output,
        top_ks=widths,
        passes=passes,
        longest_context=longest_context,
        seed=seed,
    )
