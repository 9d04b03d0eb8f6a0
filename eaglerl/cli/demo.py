"""`eaglerl demo`: the same prompt by plain decoding and by speculative decoding, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.rule import Rule

from eaglerl.cli.options import (
    DEFAULT_TREE,
    DraftDtypeOption,
    DraftOption,
    LoadedModel,
    ModelOption,
    ThreadsOption,
    TreeOption,
    load_model,
    parse_tree,
)
from eaglerl.cli.streaming import statistics_table, text_streamer
from eaglerl.cli.terminal import EXIT_FAILED, DebugOption, busy, command, output
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import GenerateOutput, TreeParams

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
    tree: TreeOption = DEFAULT_TREE,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate one answer twice, plainly and speculatively, and compare.

    Ends with exit code 1 if the two differ.
    """
    trees = {"plain": parse_tree("1,0,1"), "speculative": parse_tree(tree)}
    console = output()
    loaded = load_model(model, draft, draft_dtype=draft_dtype, threads=threads)
    input_ids = loaded.encode(prompt, chat=True)
    with busy("warming up"):
        for policy in trees.values():
            loaded.decoder.generate(input_ids, policy=policy, max_new_tokens=WARM_UP_TOKENS)
    console.print(prompt, style="bold", markup=False)
    runs = {
        name: _stream(console, loaded, input_ids, name, policy, max_new_tokens)
        for name, policy in trees.items()
    }
    identical = runs["plain"].sequences.tolist() == runs["speculative"].sequences.tolist()
    table = statistics_table(runs)
    table.add_row("identical", "", "yes" if identical else "no", style=None if identical else "red")
    console.print()
    console.print(table)
    if not identical:
        raise typer.Exit(EXIT_FAILED)


def _stream(
    console: Console,
    loaded: LoadedModel,
    input_ids: torch.Tensor,
    name: str,
    policy: TreeParams,
    max_new_tokens: int,
) -> GenerateOutput:
    title = "plain decoding" if name == "plain" else f"speculative decoding, {_describe(policy)}"
    style = "yellow" if name == "plain" else "green"
    console.print()
    console.print(Rule(title, style=style, align="left"))

    def write(text: str) -> None:
        console.out(text, style=style, end="", highlight=False)

    generated = loaded.decoder.generate(
        input_ids,
        policy=policy,
        max_new_tokens=max_new_tokens,
        streamer=text_streamer(loaded.tokenizer, write),
    )
    console.print()
    return generated


def _describe(tree: TreeParams) -> str:
    return f"tree of {tree.total_tokens} (depth {tree.depth}, top-k {tree.top_k})"
