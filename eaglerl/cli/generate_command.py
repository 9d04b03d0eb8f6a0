"""`eaglerl generate`: stream the answer to one prompt."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.open_policy import find_trained_policy, opened_policy
from eaglerl.cli.shared.options import (
    SAMPLING_PANEL,
    DecoderSettings,
    PlainOption,
    PolicyOption,
    StopAfterOption,
    TreeOption,
    encode,
    load_decoder,
)
from eaglerl.cli.shared.parse_options import parse_tree
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.streaming import statistics_dict, statistics_table, text_streamer
from eaglerl.cli.shared.terminal import notes

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import GenerateOutput, SpeculativeDecoder, TreeParams, TreePolicy


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(DecoderSettings):
    """Options of `eaglerl generate`."""

    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt; read from stdin if left out.", show_default=False),
    ] = None
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Put the prompt into the chat template, or not."),
    ] = True
    max_new_tokens: StopAfterOption = 256
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop at this text; repeatable.", show_default=False),
    ] = None
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and mean acceptance length.")
    ] = False
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print text and statistics as JSON at the end."),
    ] = False
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="X",
            help="0 is greedy; above 0, sample.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 0.0
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Nucleus size; 1 for all tokens; default: the model's generation config.",
            rich_help_panel=SAMPLING_PANEL,
            show_default=False,
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="K",
            help="Sample among the K most likely tokens; 0 for all; default: the model's "
            "generation config.",
            rich_help_panel=SAMPLING_PANEL,
            show_default=False,
        ),
    ] = None
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Seed of the sampling.", rich_help_panel=SAMPLING_PANEL),
    ] = 0
    tree: TreeOption = None
    plain: PlainOption = False
    policy: PolicyOption = None

    def __post_init__(self) -> None:
        if self.policy is not None and (self.tree is not None or self.plain):
            raise typer.BadParameter("give it, or --tree or --plain", param_hint="--policy")


@settings_command
def generate(settings: GenerateSettings) -> None:
    """Generate text from a prompt by lossless speculative decoding.

    The text goes to stdout as it is generated, everything else to stderr.
    """
    constant = parse_tree(settings.tree, plain=settings.plain)
    prompt = _read_prompt(settings.prompt)
    files = find_trained_policy(settings.policy)
    decoder = load_decoder(settings, plain=settings.plain)
    input_ids = encode(decoder, prompt, chat=settings.chat)
    with opened_policy(constant, settings.policy, files, decoder) as policy:
        generated = _generate(settings, decoder, input_ids, policy)
    if settings.as_json:
        _write(json.dumps(_answer(generated, input_ids.shape[1], decoder)) + "\n")
        return
    _write("\n")
    if settings.stats:
        notes().print(statistics_table({"generate": generated}))


def _generate(
    settings: GenerateSettings,
    decoder: SpeculativeDecoder,
    input_ids: torch.Tensor,
    policy: TreeParams | TreePolicy,
) -> GenerateOutput:
    from eaglerl.eagle3.prompt_inputs import all_read

    return decoder.generate(
        all_read(input_ids),
        policy,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
        stop_strings=settings.stop,
        streamer=None if settings.as_json else text_streamer(decoder.tokenizer, _write),
    )


def _answer(
    generated: GenerateOutput, prompt_length: int, decoder: SpeculativeDecoder
) -> dict[str, object]:
    new_ids = generated.sequences[0, prompt_length:].tolist()
    assert decoder.tokenizer is not None, "it is loaded from its folder"
    return {
        "text": decoder.tokenizer.decode(new_ids, skip_special_tokens=True),
        "token_ids": new_ids,
        "finish_reason": generated.finish_reasons[0],
        **statistics_dict(generated),
    }


def _read_prompt(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a prompt, or pipe one to stdin", param_hint="PROMPT")
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    return prompt


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
