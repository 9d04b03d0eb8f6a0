"""`eaglerl prepare`: convert the packaged model, or one in a GGUF file, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL, prepare_gguf, prepare_model

_GGUF_PANEL = "A model of your own"


@command
def prepare(
    model: Annotated[
        str | None,
        typer.Argument(help=f"Which packaged model; default: {DEFAULT_MODEL}.", show_default=False),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Convert the model in this GGUF file: llama (Mistral, too), qwen2, qwen3 or "
            "gemma3.",
            show_default=False,
            rich_help_panel=_GGUF_PANEL,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What --model calls it afterwards; default: the file's name without its ending.",
            show_default=False,
            rich_help_panel=_GGUF_PANEL,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder to write instead of one in the cache.",
            show_default=False,
            rich_help_panel=_GGUF_PANEL,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Convert the packaged model, or one in a GGUF file, into the cache folder, once.

    The folder is $EAGLERL_CACHE, else $XDG_CACHE_HOME/eaglerl, else ~/.cache/eaglerl. The other
    commands do this by themselves for the packaged model when it is needed.
    """
    if gguf is None:
        for option, value in (("--name", name), ("--output", output)):
            if value is not None:
                raise typer.BadParameter("it belongs to --gguf", param_hint=option)
    elif model is not None:
        raise typer.BadParameter("give a packaged model or --gguf, not both", param_hint="--gguf")
    with progress_bar() as progress:
        if gguf is None:
            folder = prepare_model(model or DEFAULT_MODEL, progress=progress)
        else:
            folder = prepare_gguf(gguf, name=name, output=output, progress=progress)
    notes().print(f"ready: {folder}", markup=False, soft_wrap=True)
    if gguf is not None:
        given = folder if output is not None else folder.name
        notes().print(f"use it with: --model {given}", markup=False, soft_wrap=True)
