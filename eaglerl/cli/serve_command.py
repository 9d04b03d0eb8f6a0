"""`eaglerl serve`: an OpenAI-compatible API and the live view."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.machine_cost import machine_cost, tell_unmeasured
from eaglerl.cli.shared.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    PlainOption,
    ThreadsOption,
    TreeOption,
    load_decoder,
    parse_tree,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.server import Mode, Modes

_LIMITS_PANEL = "Limits"


@command
def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; default: this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 for a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="EAGLERL_API_KEY",
            metavar="KEY",
            help="Key that clients must send. The variable keeps it out of the list of processes.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Mode for requests that name none; default: the best constant tree, or --tree.",
            show_default=False,
            rich_help_panel="Drafting",
        ),
    ] = None,
    tree: TreeOption = None,
    plain: PlainOption = False,
    policies: Annotated[
        list[Path] | None,
        typer.Option(
            "--policies",
            metavar="FOLDER",
            help="Where to look for trained policies, beside those that are shipped; repeatable.",
            show_default=False,
            rich_help_panel="Drafting",
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of `calibrate`, for policies that weigh what is accepted against it.",
            show_default=False,
            rich_help_panel="Drafting",
        ),
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest prompt; default: what the model's context holds.",
            show_default=False,
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = None,
    max_body_bytes: Annotated[
        int,
        typer.Option(min=1024, metavar="N", help="Largest request.", rich_help_panel=_LIMITS_PANEL),
    ] = 1 << 20,
    queue_size: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Requests that may wait.",
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = 32,
    at_once: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Requests that are decoded in turns, each with caches of its own.",
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = 4,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve an OpenAI-compatible API, and a page that shows the drafts of every cycle.

    It listens on this machine alone, unless --host says otherwise. Ctrl-C ends it.
    """
    chosen = parse_tree(tree, plain=plain)
    if mode is not None and chosen is not None:
        raise typer.BadParameter("give it, or --tree or --plain", param_hint="--mode")
    if chosen is not None:
        mode = f"tree:{chosen}"
    # Before the model is loaded: it may be missing.
    from eaglerl.server import Limits, Service, run_server
    from eaglerl.server.run import is_local, listen

    # Nor is it loaded in vain where the address is in use.
    with closing(listen(host, port)) as listener:
        decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads, plain=plain)
        table = None if decoder.head is None else machine_cost(cost, decoder)
        service = Service(
            decoder,
            _modes(decoder, mode, policies or [], table),
            model_name=served_name(model),
            limits=Limits(
                max_prompt_tokens=max_prompt_tokens,
                max_body_bytes=max_body_bytes,
                queue_size=queue_size,
                at_once=at_once,
            ),
            cost=table,
        )
        console = notes()
        if api_key is None and not is_local(host):
            console.print("warning: everybody who reaches this port may use it; see --api-key")

        def say(address: str) -> None:
            names = [mode.name for mode in service.modes]
            if decoder.head is not None:
                names.append("tree:T/D/K")
            console.print(f"modes: {', '.join(names)}", markup=False, soft_wrap=True)
            console.print(f"API: {address}/v1", markup=False, soft_wrap=True)
            console.print(f"live view: {address}/", markup=False, soft_wrap=True)

        run_server(service, host=host, port=port, api_key=api_key, on_ready=say, listener=listener)
        console.print("stopped")


def served_name(model: str) -> str:
    """What clients call a model: the last part of its path, however that is written."""
    # Not resolved: a link's own name says more than that of the folder behind it.
    return Path(os.path.abspath(Path(model).expanduser())).name


def _modes(
    decoder: SpeculativeDecoder,
    default: str | None,
    folders: list[Path],
    table: CostTable | None,
) -> Modes:
    """The modes that need no training, and the policies that were found."""
    from eaglerl.prepare import default_draft_path
    from eaglerl.server import Modes, find_policies, standard_modes

    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--policies must be a folder, got {str(folder)!r}")
    modes: list[Mode] = standard_modes()
    if decoder.head is None:
        if folders:
            raise ValueError("--policies needs a draft head; with --plain alone there is none")
        return Modes([mode for mode in modes if mode.name == "plain"], "plain", drafts=False)
    # A clone may be without what was trained.
    with suppress(FileNotFoundError):
        folders = [default_draft_path().parent, *folders]
    for folder in folders:
        known = {mode.name for mode in modes}
        for found in find_policies(folder, decoder, cost=table):
            if found.name in known:
                notes().print(
                    f"warning: the policy {found.name} in {folder} is left out: there is a mode of "
                    "that name already",
                    markup=False,
                    soft_wrap=True,
                )
            else:
                modes.append(found)
    if table is None and any(mode.trained for mode in modes):
        tell_unmeasured()
    return Modes(modes, default or modes[0].name)
