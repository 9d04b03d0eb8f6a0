"""`eaglerl prepare`: convert the packaged model, or the model in a GGUF file, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, progress_bar, say
from eaglerl.packaged_models import DEFAULT_MODEL

_GGUF_PANEL = "A model of your own"


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Options of `eaglerl prepare`."""

    model: Annotated[
        str | None,
        typer.Argument(
            help=f"Name of a packaged model; default: {DEFAULT_MODEL}.", show_default=False
        ),
    ] = None
    gguf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Convert the model in this GGUF file: llama (also Mistral), qwen2, qwen3 or "
            "gemma3.",
            show_default=False,
            rich_help_panel=_GGUF_PANEL,
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name to give the model, for --model; default: the file's name without its "
            "ending.",
            show_default=False,
            rich_help_panel=_GGUF_PANEL,
        ),
    ] = None
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
    ] = None
    float32: Annotated[
        bool,
        typer.Option(
            "--float32",
            help="Write the weights in float32, too, for transformers' from_pretrained and other "
            "programs; eaglerl does not need them.",
        ),
    ] = False
    debug: DebugOption = False

    def __post_init__(self) -> None:
        if self.gguf is None:
            for option, value in (("--name", self.name), ("--output", self.output)):
                if value is not None:
                    raise typer.BadParameter("only valid with --gguf", param_hint=option)
        elif self.model is not None:
            raise typer.BadParameter(
                "give a packaged model or --gguf, not both", param_hint="--gguf"
            )


@settings_command
def prepare(settings: PrepareSettings) -> None:
    """Convert the packaged model, or the model in a GGUF file, into the cache, once.

    The folder holds config, tokenizer and the GGUF file: a hard link to it where the file system
    allows that, otherwise a copy.

    The cache folder is $EAGLERL_CACHE, else $XDG_CACHE_HOME/eaglerl, else ~/.cache/eaglerl. The
    other commands prepare the packaged model by themselves when they need it.
    """
    from eaglerl.prepare import prepare_gguf, prepare_model

    with progress_bar() as progress:
        if settings.gguf is None:
            folder = prepare_model(
                settings.model or DEFAULT_MODEL, float32=settings.float32, progress=progress
            )
        else:
            folder = prepare_gguf(
                settings.gguf,
                name=settings.name,
                output=settings.output,
                float32=settings.float32,
                progress=progress,
            )
    say(f"ready: {folder}")
    if settings.gguf is not None:
        say(f"use it with: --model {folder.name if settings.output is None else folder}")
