"""`eaglerl demo`: one prompt decoded plainly, with a constant tree, and with a trained policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from eaglerl.cli.shared.terminal import EXIT_FAILED, busy, notes, output

if TYPE_CHECKING:
    import torch

    from eaglerl.eagle3 import GenerateOutput, SpeculativeDecoder, TreeParams, TreePolicy

    # None stands for the decoder's default tree.
    _Modes = dict[str, TreeParams | TreePolicy | None]

DEMO_PROMPT = "Explain in a few sentences why the sky is blue, then list three primary colors."
WARM_UP_TOKENS = 8
_STYLES = ("yellow", "blue", "green")
_PLAIN, _CONSTANT, _POLICY = "plain decoding", "constant tree", "trained policy"
# The figures of --json keep the names that they have had from the start.
_JSON_NAMES = {_POLICY: "learned policy"}


@dataclass(frozen=True, kw_only=True)
class DemoSettings(DecoderSettings):
    """Options of `eaglerl demo`."""

    prompt: Annotated[str, typer.Argument(help="What to ask.")] = DEMO_PROMPT
    max_new_tokens: StopAfterOption = 200
    tree: TreeOption = None
    plain: PlainOption = False
    policy: PolicyOption = None
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the figures as JSON; all else goes to stderr."),
    ] = False
    cost: CostOption = None

    def __post_init__(self) -> None:
        if self.plain and self.policy is not None:
            raise typer.BadParameter(
                "give either --policy or --plain, which drafts nothing", param_hint="--policy"
            )


@settings_command
def demo(settings: DemoSettings) -> None:
    """Answer a prompt by plain decoding, with a constant tree, and with a trained policy.

    Then show what the policy chose in every cycle, and a table of the speeds. The exit code is 1 if
    the answers differ. The first run measures the cost of a cycle on this machine, which the policy
    needs. With --plain, only the plain answer is generated.
    """
    # With --json, stdout holds nothing but the figures.
    console = notes() if settings.as_json else output()
    decoder, modes = _load(settings)
    input_ids = encode(decoder, settings.prompt)
    with busy("warming up"):
        _warm_up(decoder, input_ids, settings.max_new_tokens, modes)
    console.print(settings.prompt, style="bold", markup=False)
    runs = {
        name: _stream(console, decoder, input_ids, name, mode, style, settings.max_new_tokens)
        for (name, mode), style in zip(modes.items(), _STYLES, strict=False)
    }
    console.print()
    if _POLICY in runs:
        console.print(Rule("what the policy chose in every cycle", align="left"))
        console.print(cycle_chart(runs[_POLICY].statistics.cycles, console.width))
        console.print()
    identical = _compare(console, runs)
    if settings.as_json:
        figures = {_JSON_NAMES.get(name, name): statistics_dict(run) for name, run in runs.items()}
        output().print_json(json.dumps({"identical": identical, "modes": figures}))
    if not identical:
        raise typer.Exit(EXIT_FAILED)


def _load(settings: DemoSettings) -> tuple[SpeculativeDecoder, _Modes]:
    """Return the decoder, and the modes under the names that the demo shows."""
    constant = parse_tree(settings.tree, plain=settings.plain)
    policy = (
        None
        if settings.plain
        else settings.policy or default_policy(settings.model, settings.draft)
    )
    check_cost_is_used(settings.cost, policy)
    files = None if policy is None else find_chosen_policy(policy)
    decoder = load_decoder(settings, plain=settings.plain)
    modes: _Modes = {_PLAIN: parse_tree(None, plain=True)}
    if not settings.plain:
        modes[_CONSTANT] = constant
    if files is not None:
        modes[_POLICY] = open_chosen_policy(files, settings.cost, decoder)
    return decoder, modes


def _compare(console: Console, runs: dict[str, GenerateOutput]) -> bool:
    """Print the table of the runs, and return whether all answers equal the first."""
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
    modes: _Modes,
) -> None:
    from eaglerl.eagle3.prompt_inputs import all_read
    from eaglerl.eagle3.sampling import make_verifier

    # Allocate caches of the full size first: growing them later would be timed as part of the
    # first run.
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
