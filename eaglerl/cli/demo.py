"""`eaglerl demo`: the same prompt by plain decoding and by speculative decoding, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.rule import Rule

from eaglerl.cli.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    TreeOption,
    encode,
    load_decoder,
    parse_tree,
)
from eaglerl.cli.streaming import statistics_table, text_streamer
from eaglerl.cli.terminal import EXIT_FAILED, DebugOption, busy, command, output
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import GenerateOutput, SpeculativeDecoder, TreeParams

DEMO_PROMPT = "Explain in a few sentences why the sky is blue, then list three primary colors."
WARM_UP_TOKENS = 8


@command
def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = DEMO_PROMPT,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=1, metavar="N", help="Stop after this many tokens."
        ),
    ] = 200,
    tree: TreeOption = None,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate one answer twice, plainly and speculatively, and compare.

    Ends with exit code 1 if the two differ.
    """
    console = output()
    # None stands for the decoder's default tree.
    trees = {"plain": parse_tree(None, plain=True), "speculative": parse_tree(tree)}
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
    input_ids = encode(decoder, prompt, chat=True)
    with busy("warming up"):
        _warm_up(decoder, input_ids, max_new_tokens, trees)
    console.print(prompt, style="bold", markup=False)
    runs = {
        name: _stream(console, decoder, input_ids, name, params, max_new_tokens)
        for name, params in trees.items()
    }
    identical = runs["plain"].sequences.tolist() == runs["speculative"].sequences.tolist()
    table = statistics_table(runs)
    table.add_row("identical", "", "yes" if identical else "no", style=None if identical else "red")
    console.print()
    console.print(table)
    if not identical:
        raise typer.Exit(EXIT_FAILED)


def _warm_up(
    decoder: SpeculativeDecoder,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    trees: dict[str, TreeParams | None],
) -> None:
    from eaglerl.eagle3.verify import make_verifier

    # Caches of the full size first: growing them later would count as time of the first run.
    room = min(input_ids.shape[1] + max_new_tokens, decoder.target.max_positions)
    decoder.new_session(make_verifier(0.0, 1.0, 0, None, "cpu"), room)
    for params in trees.values():
        decoder.generate(input_ids, params, max_new_tokens=WARM_UP_TOKENS)


def _stream(
    console: Console,
    decoder: SpeculativeDecoder,
    input_ids: torch.Tensor,
    name: str,
    params: TreeParams | None,
    max_new_tokens: int,
) -> GenerateOutput:
    style = "yellow" if name == "plain" else "green"
    console.print()
    console.print(Rule(f"{name} decoding", style=style, align="left"))

    def write(text: str) -> None:
        console.out(text, style=style, end="", highlight=False)

    generated = decoder.generate(
        input_ids,
        params,
        max_new_tokens=max_new_tokens,
        streamer=text_streamer(decoder.tokenizer, write),
    )
    console.print()
    return generated
