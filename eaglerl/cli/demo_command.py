"""`eaglerl demo`: a few prompts decoded plainly, with constant trees, and with the policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from eaglerl.cli.demo_rounds import Measured, gain_over, take_turns, warm_up
from eaglerl.cli.shared.cycle_chart import cycle_chart
from eaglerl.cli.shared.open_policy import find_trained_policy, opened_policy
from eaglerl.cli.shared.options import (
    DecoderSettings,
    PlainOption,
    PolicyOption,
    StopAfterOption,
    TreeOption,
    load_decoder,
)
from eaglerl.cli.shared.parse_options import parse_tree
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import EXIT_FAILED, notes, output

if TYPE_CHECKING:
    from eaglerl.cli.demo_rounds import Modes
    from eaglerl.eagle3 import SpeculativeDecoder

#: A story, a sum and a function: texts of which much, some or little can be guessed. They were
#: fixed before any of the figures below was seen.
DEMO_PROMPTS = (
    "Tell me a story about a lighthouse keeper who finds a message in a bottle.",
    "A shop sells pens at 3 dollars each. Anna buys 14 pens and pays with a 50 dollar note. How "
    "much change does she get?",
    "Add a docstring to this function and return the whole function: def mean(values): return "
    "sum(values) / len(values)",
)
#: The best constant trees on recorded answers, by three kinds of machine and precision.
DEMO_TREES = ("2/0/2", "4/1/2", "5/3/2", "6/2/4")
_PLAIN, _POLICY = "plain decoding", "policy"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(DecoderSettings):
    """Options of `eaglerl demo`."""

    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT ...",
            help="What to ask; default: a story, a sum and a function.",
            show_default=False,
        ),
    ] = None
    max_new_tokens: StopAfterOption = 128
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often each mode answers each prompt.")
    ] = 3
    tree: TreeOption = None
    plain: PlainOption = False
    policy: PolicyOption = None
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the figures as JSON; all else goes to stderr."),
    ] = False

    def __post_init__(self) -> None:
        if self.plain and self.policy is not None:
            raise typer.BadParameter(
                "give either --policy or --plain, which drafts nothing", param_hint="--policy"
            )


@settings_command
def demo(settings: DemoSettings) -> None:
    """Answer a few prompts plainly, with constant trees, and with the policy; compare the speeds.

    The modes take turns, several times over. The policy's first answers are shown, and what it
    chose in every cycle of the last one; then a table. The policy needs no preparation: it learns
    while it decodes. The exit code is 1 if the answers differ. With --plain, only plain answers are
    generated.
    """
    # With --json, stdout holds nothing but the figures.
    console = notes() if settings.as_json else output()
    modes: Modes = {_PLAIN: parse_tree(None, plain=True), **_constant_trees(settings)}
    files = find_trained_policy(settings.policy)
    decoder = load_decoder(settings, plain=settings.plain)
    if settings.plain:
        measured = _measure(settings, console, decoder, modes)
    else:
        with opened_policy(None, settings.policy, files, decoder) as policy:
            measured = _measure(settings, console, decoder, {**modes, _POLICY: policy})
    identical = not any(mode.differs for mode in measured.values())
    _show(console, measured)
    if settings.as_json:
        figures = {name: mode.figures() for name, mode in measured.items()}
        output().print_json(json.dumps({"identical": identical, "modes": figures}))
    if not identical:
        raise typer.Exit(EXIT_FAILED)


def _constant_trees(settings: DemoSettings) -> Modes:
    if settings.plain:
        return {}
    trees = DEMO_TREES if settings.tree is None else (settings.tree,)
    parsed = [parse_tree(tree, plain=False) for tree in trees]
    return {f"tree {tree}": tree for tree in parsed}


def _measure(
    settings: DemoSettings, console: Console, decoder: SpeculativeDecoder, modes: Modes
) -> dict[str, Measured]:
    prompts = settings.prompts or list(DEMO_PROMPTS)
    warm_up(decoder, prompts, modes, settings.max_new_tokens)
    shown = _POLICY if _POLICY in modes else _PLAIN
    return take_turns(
        decoder,
        prompts,
        modes,
        rounds=settings.rounds,
        max_new_tokens=settings.max_new_tokens,
        shown=shown,
        console=console,
    )


def _show(console: Console, measured: dict[str, Measured]) -> None:
    """Print what the policy chose, the table of the modes, and the policy's gain."""
    console.print()
    if _POLICY in measured:
        console.print(Rule("what the policy chose in every cycle of its last answer", align="left"))
        console.print(cycle_chart(measured[_POLICY].last_cycles, console.width))
        console.print()
    table = Table(header_style="bold")
    for column in ("", "tokens/s", "mean acceptance length", "new tokens", "identical"):
        table.add_column(column, justify="right" if column else "left")
    for name, mode in measured.items():
        table.add_row(
            name,
            f"{mode.tokens_per_second:.1f}",
            f"{mode.mean_acceptance_length:.2f}",
            str(sum(mode.tokens)),
            "no" if mode.differs else "yes",
            style="red" if mode.differs else None,
        )
    console.print(table)
    if _POLICY not in measured:
        return
    trees = {name: mode for name, mode in measured.items() if name.startswith("tree ")}
    best = max(trees, key=lambda name: trees[name].tokens_per_second)
    for name in (best, _PLAIN):
        gain = gain_over(measured[_POLICY], measured[name])
        console.print(f"policy / {name}: {gain}", markup=False)
