"""`eaglerl prepare`: convert the packaged model once."""

from __future__ import annotations

from typing import Annotated

import typer

from eaglerl.cli.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL, prepare_model


@command
def prepare(
    model: Annotated[str, typer.Argument(help="Which model.")] = DEFAULT_MODEL,
    debug: DebugOption = False,
) -> None:
    """Convert the packaged model into the cache folder, once.

    The folder is $EAGLERL_CACHE, else $XDG_CACHE_HOME/eaglerl, else ~/.cache/eaglerl. The other
    commands do this by themselves when it is needed.
    """
    with progress_bar() as progress:
        folder = prepare_model(model, progress=progress)
    notes().print(f"ready: {folder}", markup=False, soft_wrap=True)
