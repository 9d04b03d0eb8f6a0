"""`eaglerl generate`: stream the continuation of one prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eaglerl.cli.options import (
    SAMPLING_PANEL,
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    PlainOption,
    ThreadsOption,
    TopPOption,
    TreeOption,
    encode,
    load_decoder,
    parse_tree,
)
from eaglerl.cli.streaming import statistics_table, text_streamer
from eaglerl.cli.terminal import DebugOption, command, notes
from eaglerl.prepare import DEFAULT_MODEL


@command
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; read from stdin if it is left out.", show_default=False),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Put the prompt into the chat template, or not."),
    ] = True,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", help="Stop after this many tokens."
        ),
    ] = 256,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop at this text; repeatable.", show_default=False),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and acceptance.")] = False,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="X",
            help="0 is greedy; otherwise sample.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 0.0,
    top_p: TopPOption = 1.0,
    top_k: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="Sample among the k likeliest, 0 for all.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the sampling.", rich_help_panel=SAMPLING_PANEL),
    ] = 0,
    tree: TreeOption = None,
    plain: PlainOption = False,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate text from a prompt, speculatively and losslessly.

    The text goes to stdout as it comes, everything else to stderr.
    """
    policy = parse_tree(tree, plain=plain)
    text = _read_prompt(prompt)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
    generated = decoder.generate(
        encode(decoder, text, chat=chat),
        policy,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop_strings=stop,
        streamer=text_streamer(decoder.tokenizer, _write),
    )
    _write("\n")
    if stats:
        notes().print(statistics_table({"generate": generated}))


def _read_prompt(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give one, or pipe it to stdin", param_hint="PROMPT")
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
