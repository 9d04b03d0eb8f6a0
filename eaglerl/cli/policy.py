"""`eaglerl train-policy`: a policy that chooses the draft tree, learned from traces or live."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    load_decoder,
)
from eaglerl.cli.record import read_prompt_files
from eaglerl.cli.terminal import DebugOption, command, notes, progress_bar
from eaglerl.prepare import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.rl.actions import ActionSpace
    from eaglerl.rl.cost import CostTable
    from eaglerl.rl.traces import Trace
    from eaglerl.rl.train_policy import TrainedPolicy, TrainPolicyOptions

_LIVE_PANEL = "Live, instead of on traces"
#: Named action spaces, by the methods that make them.
_ACTION_SPACES = {
    "cpu": "cpu",
    "cpu-grid": "cpu_grid",
    "published": "published",
    "published-bins": "published_bins",
}


@command
def train_policy(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder of the run; one with checkpoints goes on. The policy ends in its policy/.",
        ),
    ],
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="Traces of `record`; may be repeated.", show_default=False
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of `calibrate`; on traces it is needed, live it takes the clock's place.",
            show_default=False,
        ),
    ] = None,
    algorithm: Annotated[
        str, typer.Option("--algorithm", "-a", metavar="NAME", help="ppo or dqn.")
    ] = "ppo",
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees to choose from: cpu, cpu-grid, published, published-bins, or a JSON file.",
        ),
    ] = "cpu-grid",
    select: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep the N trees that together cover most of what choosing can gain.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=0.9,
            metavar="X",
            help="Share of the prompts, by their hash, that the policy is chosen by.",
        ),
    ] = 0.2,
    steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cache windows to learn from.")
    ] = 200_000,
    cache_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cycles that a decision serves.")
    ] = 10,
    extras: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Shown besides the features: acceptance, position; on traces also confidence.",
            show_default=False,
        ),
    ] = "",
    reward: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tokens, less lambda times the seconds; or throughput, their ratio.",
        ),
    ] = "tokens",
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Of Adam.")] = 1e-3,
    gamma: Annotated[
        float, typer.Option(metavar="X", help="Discount per window; 0 is a contextual bandit.")
    ] = 0.9,
    net_arch: Annotated[
        str, typer.Option(metavar="N,...", help="Widths of the hidden layers.")
    ] = "64,64",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of all draws.")] = 0,
    checkpoint_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Windows between two checkpoints.")
    ] = 10_000,
    wandb_project: Annotated[
        str | None,
        typer.Option(
            "--wandb",
            metavar="PROJECT",
            help="Log to Weights & Biases too; WANDB_MODE=offline keeps it on this machine.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="JSONL files of prompts to decode; may be repeated.",
            show_default=False,
            rich_help_panel=_LIVE_PANEL,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            "-n",
            min=2,
            metavar="N",
            help="Longest continuation.",
            rich_help_panel=_LIVE_PANEL,
        ),
    ] = 128,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a policy that chooses the draft tree, by trial: PPO or DQN.

    On traces, thousands of windows a second; or live, while a model decodes. An interrupted run
    goes on with the same command; on traces it ends with the very policy of an unbroken one.
    """
    if bool(traces) == bool(prompts):
        raise typer.BadParameter(
            "give either --traces, with --cost, or --prompts", param_hint="--traces"
        )
    if traces and cost is None:
        raise typer.BadParameter(
            "traces tell no time: give the table that `eaglerl calibrate` wrote",
            param_hint="--cost",
        )
    widths = parse_numbers(net_arch, "--net-arch")
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.rl.cost import CostTable

        try:
            from eaglerl.rl.train_policy import TrainPolicyOptions, train_policy_live
        except ModuleNotFoundError as error:
            if error.name not in ("gymnasium", "stable_baselines3"):
                raise
            raise ImportError(
                f"training needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
            ) from error

        options = TrainPolicyOptions(
            algorithm=algorithm,
            total_steps=steps,
            cache_steps=cache_steps,
            extras=tuple(name for name in extras.split(",") if name),
            reward=reward,
            learning_rate=learning_rate,
            gamma=gamma,
            net_arch=widths,
            seed=seed,
            checkpoint_steps=checkpoint_steps,
            wandb_project=wandb_project,
        )
        space = read_actions(actions)
        table = None if cost is None else CostTable.from_json(cost)
        if traces:
            result = _on_traces(traces, space, table, output, options, select, held_out, show)
        else:
            if select is not None:
                raise typer.BadParameter("--select needs traces", param_hint="--select")
            show("loading the model", 0.0)
            decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
            wanted = list(read_prompt_files(decoder, prompts))
            result = train_policy_live(
                decoder, wanted, space, output, options,
                max_new_tokens=max_new_tokens, cost=table, progress=show,
            )  # fmt: skip
    notes().print(_summary(result), markup=False, soft_wrap=True)


def _on_traces(
    folders: Sequence[Path],
    actions: ActionSpace,
    cost: CostTable,
    output: Path,
    options: TrainPolicyOptions,
    select: int | None,
    held_out: float,
    show,
) -> TrainedPolicy:
    from eaglerl.rl.traces import TraceSet
    from eaglerl.rl.train_policy import train_policy as run

    sets = [TraceSet(folder) for folder in folders]
    for other in sets[1:]:
        other.check_ids(target_id=sets[0].target_id, head_id=sets[0].head_id)
    learned, checked = split_traces([trace for traces in sets for trace in traces], held_out)
    if not learned:
        raise ValueError("--traces must leave a trace to learn from, got none that is not held out")
    if select is not None:
        show("choosing actions", 0.0)
        actions = actions.select(learned, cost, select)
    return run(
        learned, actions, cost, output, options,
        held_out=checked, head=sets[0].head_id, progress=show,
    )  # fmt: skip


def split_traces(traces: Sequence[Trace], share: float) -> tuple[list[Trace], list[Trace]]:
    """Traces to learn from and traces held out: about `share`, by the hash of the prompt."""
    learned, held_out = [], []
    for trace in traces:
        # The hash's lower digits: its upper ones may have split the prompts before.
        out = int(trace.prompt_id[-8:], 16) < share * 16**8
        (held_out if out else learned).append(trace)
    return learned, held_out


def read_actions(name: str) -> ActionSpace:
    """A named action space, or that of a file.

    Raises:
        typer.BadParameter: neither.
    """
    from eaglerl.rl.actions import ActionSpace

    if name in _ACTION_SPACES:
        return getattr(ActionSpace, _ACTION_SPACES[name])()
    if Path(name).is_file():
        return ActionSpace.from_json(name)
    raise typer.BadParameter(
        f"{name!r} is neither a file nor one of {', '.join(_ACTION_SPACES)}",
        param_hint="--actions",
    )


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """Read `N,...`.

    Raises:
        typer.BadParameter: not whole numbers of at least 1.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(
            f"{text!r} is not of the form N,..., whole numbers such as 64,64", param_hint=option
        )
    return numbers


def _summary(result: TrainedPolicy) -> str:
    text = f"the policy is in {result.path}"
    if result.validation is not None and result.constant is not None:
        gain = 100 * (result.validation / result.constant - 1)
        text += (
            f"; held out: {result.validation:.2f} tokens/s, {gain:+.1f} % against the best "
            "constant tree"
        )
    return text
