"""`eaglerl generate`: stream the continuation of one prompt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.open_policy import (
    check_cost_is_used,
    find_chosen_policy,
    open_chosen_policy,
)
from eaglerl.cli.shared.options import (
    SAMPLING_PANEL,
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
from eaglerl.cli.shared.terminal import DebugOption, command, notes
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.eagle3 import GenerateOutput, SpeculativeDecoder


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
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the text and its statistics as JSON when it is done."),
    ] = False,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="X",
            help="0 is greedy; otherwise sample.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 0.0,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Nucleus size, 1 for all; by default that of the model's generation config.",
            rich_help_panel=SAMPLING_PANEL,
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="K",
            help="Sample among the k likeliest, 0 for all; by default as with --top-p.",
            rich_help_panel=SAMPLING_PANEL,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the sampling.", rich_help_panel=SAMPLING_PANEL),
    ] = 0,
    tree: TreeOption = None,
    plain: PlainOption = False,
    policy: PolicyOption = None,
    cost: CostOption = None,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate text from a prompt, speculatively and losslessly.

    The text goes to stdout as it comes, everything else to stderr.
    """
    from eaglerl.eagle3.prompt_inputs import all_read

    constant = parse_tree(tree, plain=plain)
    if policy is not None and constant is not None:
        raise typer.BadParameter("give it, or --tree or --plain", param_hint="--policy")
    check_cost_is_used(cost, policy)
    text = _read_prompt(prompt)
    files = None if policy is None else find_chosen_policy(policy)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads, plain=plain)
    chosen = constant if files is None else open_chosen_policy(files, cost, decoder)
    input_ids = encode(decoder, text, chat=chat)
    generated = decoder.generate(
        all_read(input_ids),
        chosen,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop_strings=stop,
        streamer=None if as_json else text_streamer(decoder.tokenizer, _write),
    )
    if as_json:
        _write(json.dumps(_answer(generated, input_ids.shape[1], decoder)) + "\n")
        return
    _write("\n")
    if stats:
        notes().print(statistics_table({"generate": generated}))


def _answer(
    generated: GenerateOutput, prompt_length: int, decoder: SpeculativeDecoder
) -> dict[str, object]:
    new_ids = generated.sequences[0, prompt_length:].tolist()
    return {
        "text": decoder.tokenizer.decode(new_ids, skip_special_tokens=True),
        "token_ids": new_ids,
        "finish_reason": generated.finish_reasons[0],
        **statistics_dict(generated),
    }


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
