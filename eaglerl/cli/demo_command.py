"""`eaglerl demo`: one prompt decoded plainly, with a constant tree, and with the learned policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.rule import Rule

from eaglerl.cli.shared.cycle_chart import cycle_chart
from eaglerl.cli.shared.open_policy import (
    check_cost_is_used,
    default_policy,
    find_chosen_policy,
    open_chosen_policy,
)
from eaglerl.cli.shared.options import (
    CostOption,
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    PlainOption,
    PolicyOption,
    ThreadsOption,
    TreeOption,
    encode,
    load_decoder,
    parse_tree,
)
from eaglerl.cli.shared.streaming import statistics_dict, statistics_table, text_streamer
from eaglerl.cli.shared.terminal import EXIT_FAILED, DebugOption, busy, command, notes, output
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import GenerateOutput, SpeculativeDecoder, TreeParams, TreePolicy

DEMO_PROMPT = "Explain in a few sentences why the sky is blue, then list three primary colors."
WARM_UP_TOKENS = 8
_STYLES = ("yellow", "blue", "green")


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
    plain: PlainOption = False,
    policy: PolicyOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; the rest goes to stderr.")
    ] = False,
    cost: CostOption = None,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate one answer plainly, with a constant tree, and with the learned policy.

    Ends with a bar for every cycle that the policy decided, and a table. The exit code is 1 if the
    three answers differ. The first run measures what a cycle costs on this machine, for the policy
    to decide by. With --plain there is the first answer alone.
    """
    # With --json, stdout is for the figures alone.
    console = notes() if as_json else output()
    constant = parse_tree(tree, plain=plain)
    if plain and policy is not None:
        raise typer.BadParameter(
            "--plain drafts nothing; give one of the two", param_hint="--policy"
        )
    chosen = None if plain else policy or default_policy(model, draft)
    check_cost_is_used(cost, chosen)
    files = None if chosen is None else find_chosen_policy(chosen)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads, plain=plain)
    # None stands for the decoder's default tree.
    modes: dict[str, TreeParams | TreePolicy | None] = {
        "plain decoding": parse_tree(None, plain=True),
    }
    if not plain:
        modes["constant tree"] = constant
    if files is not None:
        modes["learned policy"] = open_chosen_policy(files, cost, decoder)
    input_ids = encode(decoder, prompt)
    with busy("warming up"):
        _warm_up(decoder, input_ids, max_new_tokens, modes)
    console.print(prompt, style="bold", markup=False)
    runs = {
        name: _stream(console, decoder, input_ids, name, mode, style, max_new_tokens)
        for (name, mode), style in zip(modes.items(), _STYLES, strict=False)
    }
    console.print()
    if "learned policy" in runs:
        console.print(Rule("how the policy moved T and D along the text", align="left"))
        console.print(cycle_chart(runs["learned policy"].statistics.cycles, console.width))
        console.print()
    identical = _compare(console, runs)
    if as_json:
        figures = {name: statistics_dict(run) for name, run in runs.items()}
        output().print_json(json.dumps({"identical": identical, "modes": figures}))
    if not identical:
        raise typer.Exit(EXIT_FAILED)


def _compare(console: Console, runs: dict[str, GenerateOutput]) -> bool:
    """Print the table; whether all answers are the first one's."""
    first, *others = (run.sequences.tolist() for run in runs.values())
    identical = [other == first for other in others]
    table = statistics_table(runs)
    cells = ["yes" if same else "no" for same in identical]
    table.add_row("identical", "", *cells, style=None if all(identical) else "red")
    console.print(table)
    return all(identical)


def _warm_up(
    decoder: SpeculativeDecoder,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    modes: dict[str, TreeParams | TreePolicy | None],
) -> None:
    from eaglerl.eagle3.prompt_inputs import all_read
    from eaglerl.eagle3.sampling import make_verifier

    # Caches of the full size first: growing them later would count as time of the first run.
    room = min(input_ids.shape[1] + max_new_tokens, decoder.target.max_positions)
    decoder.new_session(make_verifier(0.0, 1.0, 0, None, "cpu"), room).close()
    for mode in modes.values():
        decoder.generate(all_read(input_ids), mode, max_new_tokens=WARM_UP_TOKENS)


def _stream(
    console: Console,
    decoder: SpeculativeDecoder,
    input_ids: torch.Tensor,
    name: str,
    mode: TreeParams | TreePolicy | None,
    style: str,
    max_new_tokens: int,
) -> GenerateOutput:
    from eaglerl.eagle3.prompt_inputs import all_read

    console.print()
    console.print(Rule(name, style=style, align="left"))

    def write(text: str) -> None:
        console.out(text, style=style, end="", highlight=False)

    generated = decoder.generate(
        all_read(input_ids),
        mode,
        max_new_tokens=max_new_tokens,
        streamer=text_streamer(decoder.tokenizer, write),
    )
    console.print()
    return generated
