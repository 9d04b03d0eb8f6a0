"""`eaglerl record`: what every draft tree would have yielded, at every position of many answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.ray_cluster import cluster_of
from eaglerl.cli.shared.options import (
    DecoderSettings,
    RayOption,
    TreeWidthsOption,
    load_decoder,
)
from eaglerl.cli.shared.parse_options import parse_numbers
from eaglerl.cli.shared.prompt_files import check_prompt_files, read_prompt_files
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import progress_bar, say

if TYPE_CHECKING:
    from eaglerl.distributed.cluster import Cluster
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.traces.recording import Prompt, RecordProgress
    from eaglerl.traces.trace_set import TraceSet

_SPLITS = ("all", "train", "test")


@dataclass(frozen=True, kw_only=True)
class RecordSettings(DecoderSettings):
    """Options of `eaglerl record`."""

    output: Annotated[
        Path, typer.Argument(help="Folder of the traces; an interrupted run continues with it.")
    ]
    prompts: Annotated[
        list[Path],
        typer.Argument(help="JSONL files from `distill`, or of questions with a field turns."),
    ]
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="From files of `distill`, take only the prompts that no draft head is trained on.",
        ),
    ] = False
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="From files of questions, take one half by a hash of the prompt, as `compare` "
            "does: train, test, or all.",
        ),
    ] = "all"
    per_file: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompts per file; default: all.",
                     show_default=False),
    ] = None  # fmt: skip
    max_positions: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Stop when the folder has this many positions.",
            show_default=False,
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "-n", min=2, metavar="N", help="Longest answer."),
    ] = 128
    top_ks: TreeWidthsOption = "1,2,4,8"
    max_depth: Annotated[
        int, typer.Option(min=0, metavar="D", help="Largest depth of the trees.")
    ] = 7
    slots: Annotated[
        int, typer.Option(min=1, metavar="N", help="Prompts decoded side by side.")
    ] = 16
    ray: RayOption = None

    def __post_init__(self) -> None:
        if self.split not in _SPLITS:
            raise typer.BadParameter(
                f"must be one of {', '.join(_SPLITS)}, got {self.split!r}", param_hint="--split"
            )


@settings_command
def record(settings: RecordSettings) -> None:
    """Record what every draft tree would have yielded, at every position of many answers.

    Every prompt is decoded greedily once; then only the draft is replayed. The traces hold the
    answer for any tree of the recorded widths and depths: policies are trained and compared on
    them.
    """
    widths = parse_numbers(settings.top_ks, "--top-k", "K,...")
    # Before the model is loaded: a missing file is found at once.
    check_prompt_files(settings.prompts)
    with cluster_of(settings.ray, settings.threads) as cluster:
        decoder = load_decoder(settings)
        prompts = _read_prompts(settings, decoder)
        traces = _record(settings, widths, decoder, prompts, cluster)
    say(f"{settings.output} holds {len(traces):,} traces with {traces.positions:,} positions")


def _read_prompts(settings: RecordSettings, decoder: SpeculativeDecoder) -> list[Prompt]:
    prompts = list(
        read_prompt_files(
            decoder,
            settings.prompts,
            held_out=settings.held_out,
            split=settings.split,
            per_file=settings.per_file,
        )
    )
    if not prompts:
        names = ", ".join(str(path) for path in settings.prompts)
        held_out = "--held-out keeps a tenth, " if settings.held_out else ""
        share = "all" if settings.split == "all" else "about half"
        raise ValueError(
            f"prompts must leave something to record, got nothing of {names}: {held_out}--split "
            f"{settings.split} keeps {share}; take more prompts"
        )
    return prompts


def _record(
    settings: RecordSettings,
    widths: tuple[int, ...],
    decoder: SpeculativeDecoder,
    prompts: list[Prompt],
    cluster: Cluster | None,
) -> TraceSet:
    from eaglerl.traces.recording import RecordOptions
    from eaglerl.traces.recording import record as run

    options = RecordOptions(
        top_ks=widths,
        max_depth=settings.max_depth,
        max_new_tokens=settings.max_new_tokens,
        slots=settings.slots,
    )
    elsewhere = None
    if cluster is not None:
        from eaglerl.distributed.record import record_on

        elsewhere = record_on(cluster, settings, options)
    with progress_bar() as show:
        show("decoding", 0.0)
        return run(
            decoder,
            prompts,
            settings.output,
            options=options,
            max_positions=settings.max_positions,
            progress=_report_to(show, len(prompts), settings.max_positions),
            run=elsewhere,
        )


def _report_to(
    show: Callable[[str, float], None], prompts: int, max_positions: int | None
) -> Callable[[RecordProgress], None]:
    started = time.monotonic()
    first: int | None = None

    def report(done: RecordProgress) -> None:
        nonlocal first
        # The first report may include an earlier run's positions.
        first = done.positions if first is None else first
        share = done.prompts / prompts
        if max_positions is not None:
            share = max(share, done.positions / max_positions)
        speed = (done.positions - first) / (time.monotonic() - started)
        show(f"{done.positions:,} positions, {speed:.1f} per second", min(share, 1.0))

    return report
