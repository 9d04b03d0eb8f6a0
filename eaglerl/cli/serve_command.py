"""`eaglerl serve`: an OpenAI-compatible API and the live view."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.auto_policy import (
    can_keep_auto_policy,
    keeping_auto_policy,
    keeping_batch_policy,
)
from eaglerl.cli.shared.machine_cost import machine_cost
from eaglerl.cli.shared.options import (
    DRAFTING_PANEL,
    DecoderSettings,
    PlainOption,
    TreeOption,
    load_decoder,
)
from eaglerl.cli.shared.parse_options import parse_tree
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import say

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder, TreePolicy
    from eaglerl.server import Mode, Modes, Service

_LIMITS_PANEL = "Limits"


@dataclass(frozen=True, kw_only=True)
class ServeSettings(DecoderSettings):
    """Options of `eaglerl serve`."""

    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; the default can be reached only from this machine.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 for a free one.")
    ] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="EAGLERL_API_KEY",
            metavar="KEY",
            help="Key that clients must send. Prefer the variable: other users can see a process's "
            "arguments.",
            show_default=False,
        ),
    ] = None
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Mode for requests that name none; default: auto, which learns while decoding, or "
            "--tree.",
            show_default=False,
            rich_help_panel=DRAFTING_PANEL,
        ),
    ] = None
    tree: TreeOption = None
    plain: PlainOption = False
    policies: Annotated[
        list[Path] | None,
        typer.Option(
            "--policies",
            metavar="FOLDER",
            help="Folder with trained policies, in addition to those of eaglerl; repeatable.",
            show_default=False,
            rich_help_panel=DRAFTING_PANEL,
        ),
    ] = None
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cost table from `calibrate`, which /metrics compares the cycles' times with; "
            "default: the one measured on this machine.",
            show_default=False,
        ),
    ] = None
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest prompt; default: the model's context length.",
            show_default=False,
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = None
    max_body_bytes: Annotated[
        int,
        typer.Option(
            min=1024,
            metavar="N",
            help="Largest request, in bytes.",
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = 1 << 20
    queue_size: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Most requests that wait; further ones are refused.",
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = 32
    max_batch: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Most answers decoded together; further ones wait in the queue.",
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = 16
    max_tokens_in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Most tokens of the answers that are decoded, prompts and max_tokens together: it "
            "bounds the memory of their KV caches. Default: 4 GiB of it, or the model's context.",
            show_default=False,
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = None

    prefix_cache_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Most tokens of earlier prompts and answers that are kept for prompts that begin "
            "with them; 0 for none. Default: 1 GiB of KV cache.",
            show_default=False,
            rich_help_panel=_LIMITS_PANEL,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.mode is not None and (self.tree is not None or self.plain):
            raise typer.BadParameter("give it, or --tree or --plain", param_hint="--mode")


@settings_command
def serve(settings: ServeSettings) -> None:
    """Serve an OpenAI-compatible API, and a page that shows the drafts of every cycle.

    The server listens on this machine only, unless --host says otherwise. Ctrl-C stops it.
    """
    mode = default_mode(settings)
    # Before the model is loaded: the extra may be missing, or the address in use.
    from eaglerl.server import run_server
    from eaglerl.server.run import is_local, listen

    with closing(listen(settings.host, settings.port)) as listener, ExitStack() as stack:
        service = make_service(settings, mode, stack)
        if settings.api_key is None and not is_local(settings.host):
            say("warning: anyone who can reach this port can use it; see --api-key")
        run_server(
            service,
            host=settings.host,
            port=settings.port,
            api_key=settings.api_key,
            on_ready=lambda address: _announce(service, address),
            listener=listener,
        )
        say("stopped")


def default_mode(settings: ServeSettings) -> str | None:
    """Return the mode of requests that name none; None for the server's own default."""
    tree = parse_tree(settings.tree, plain=settings.plain)
    return settings.mode if tree is None else f"tree:{tree}"


def make_service(settings: ServeSettings, mode: str | None, stack: ExitStack) -> Service:
    """Load the model and return the service, which begins to work when the server starts.

    Args:
        settings: options of `eaglerl serve`.
        mode: from `default_mode`.
        stack: keeps what the automatic policies have learned when it is closed.
    """
    from eaglerl.server import Limits, Service

    decoder = load_decoder(settings, plain=settings.plain)
    table = None if decoder.draft_head is None else machine_cost(settings.cost, decoder)
    auto = joint = None
    if can_keep_auto_policy(decoder):
        auto = stack.enter_context(keeping_auto_policy(decoder))
        joint = stack.enter_context(keeping_batch_policy(decoder, settings.max_batch))
    return Service(
        decoder,
        _modes(decoder, mode, settings.policies or [], auto),
        model_name=served_name(settings.model),
        limits=Limits(
            max_prompt_tokens=settings.max_prompt_tokens,
            max_body_bytes=settings.max_body_bytes,
            queue_size=settings.queue_size,
            max_batch=settings.max_batch,
            max_tokens_in_flight=settings.max_tokens_in_flight,
            prefix_cache_tokens=settings.prefix_cache_tokens,
        ),
        cost=table,
        new_joint_policy=joint,
    )


def _announce(service: Service, address: str) -> None:
    names = [mode.name for mode in service.modes]
    if service.decoder.draft_head is not None:
        names.append("tree:T/D/K")
    say(f"modes: {', '.join(names)}")
    say(f"API: {address}/v1")
    say(f"live view: {address}/")


def served_name(model: str) -> str:
    """Return the model's name in the API: the last part of its path, however that is written."""
    # Links are not resolved: a link's own name is the one that the user chose.
    return Path(os.path.abspath(Path(model).expanduser())).name


def _modes(
    decoder: SpeculativeDecoder,
    default: str | None,
    folders: list[Path],
    auto: TreePolicy | None = None,
) -> Modes:
    """Return the modes that need no training, and those of the policies found in `folders`."""
    from eaglerl.prepare import default_draft_path
    from eaglerl.server import Modes, auto_mode, find_policies, standard_modes

    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"--policies must be a folder, got {str(folder)!r}")
    modes: list[Mode] = standard_modes()
    if decoder.draft_head is None:
        if folders:
            raise ValueError(
                "--policies needs a draft head, and --plain without --draft loads none"
            )
        return Modes([mode for mode in modes if mode.name == "plain"], "plain", drafts=False)
    if auto is not None:
        modes.insert(0, auto_mode(auto))
    # A source tree may lack the shipped models.
    with suppress(FileNotFoundError):
        folders = [default_draft_path().parent, *folders]
    for folder in folders:
        _add_policies(modes, folder, find_policies(folder, decoder))
    return Modes(modes, default or modes[0].name)


def _add_policies(modes: list[Mode], folder: Path, found: Iterable[Mode]) -> None:
    """Add the modes that were found in a folder; warn of those whose name is taken."""
    known = {mode.name for mode in modes}
    for mode in found:
        if mode.name in known:
            say(
                f"warning: the policy {mode.name} in {folder} is left out: another mode already "
                "has this name"
            )
        else:
            modes.append(mode)
