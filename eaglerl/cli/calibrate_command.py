"""`eaglerl calibrate`: measure what a cycle costs on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.machine_cost import kept_cost_path, measure_cost
from eaglerl.cli.shared.options import DecoderSettings, TreeWidthsOption, load_decoder
from eaglerl.cli.shared.parse_options import parse_numbers
from eaglerl.cli.shared.settings import settings_command


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings(DecoderSettings):
    """Options of `eaglerl calibrate`."""

    output: Annotated[
        Path | None,
        typer.Argument(
            help="JSON file for the table. Without it the table goes into eaglerl's cache, where "
            "`serve` finds it for its metrics.",
            show_default=False,
        ),
    ] = None
    top_ks: TreeWidthsOption = "1,2,4,8"
    passes: Annotated[
        int, typer.Option(min=3, metavar="N", help="Measurements of every kind of cycle.")
    ] = 8
    longest_context: Annotated[
        int, typer.Option(min=64, metavar="N", help="Longest context to measure at, in tokens.")
    ] = 512
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the order of the cycles.")] = 0


@settings_command
def calibrate(settings: CalibrateSettings) -> None:
    """Measure what drafting and verifying cost on this machine.

    Takes about a minute, during which nothing else should run. `train-policy`, `report` and some
    baselines of `compare` count time by this cost table. The policy auto needs none: it learns the
    costs while decoding.
    """
    widths = parse_numbers(settings.top_ks, "--top-k", "K,...")
    decoder = load_decoder(settings)
    measure_cost(
        decoder,
        kept_cost_path(decoder) if settings.output is None else settings.output,
        top_ks=widths,
        passes=settings.passes,
        longest_context=settings.longest_context,
        seed=settings.seed,
    )
