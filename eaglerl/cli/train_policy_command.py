"""`eaglerl train-policy`: a policy that chooses the draft tree, learned from traces or live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.record_command import read_prompt_files
from eaglerl.cli.shared.acceptance_training import (
    ChainLengthOption,
    FoldsOption,
    HiddenOption,
    MaxDepthOption,
    MaxRowsOption,
    TopKOption,
    learn_acceptance,
)
from eaglerl.cli.shared.action_options import leave_out_unknown, read_actions
from eaglerl.cli.shared.options import (
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    load_decoder,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes, progress_bar
from eaglerl.cli.shared.trace_options import read_traces
from eaglerl.prepare import DEFAULT_MODEL
from eaglerl.traces.oracle import select_actions

if TYPE_CHECKING:
    from eaglerl.actions import ActionSpace
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.sb3.train_policy import TrainPolicyOptions
    from eaglerl.traces.trace_set import Trace

_ALGORITHMS = ("ppo", "dqn", "acceptance")
_STEPS = 200_000
_LIVE_PANEL = "Live, instead of on traces"


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
        str, typer.Option("--algorithm", "-a", metavar="NAME", help="ppo, dqn or acceptance.")
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
            help="Share of the prompts, by their hash, that the policy is chosen by; acceptance "
            "has --folds in its place.",
        ),
    ] = 0.2,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Cache windows to learn from, 200,000 if not given; with acceptance the steps of "
            "a net's fit, 1,200.",
            show_default=False,
        ),
    ] = None,
    cache_steps: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cycles that a decision serves.")
    ] = 10,
    extras: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Shown besides the features: acceptance, position, confidence (the last draft's).",
            show_default=False,
        ),
    ] = "",
    similarity_threshold: Annotated[
        float | None,
        typer.Option(
            min=-1.0,
            max=1.0,
            metavar="X",
            help="Decide anew before --cache-steps are over where the cosine similarity of the "
            "features to those of the decision falls below X.",
            show_default=False,
        ),
    ] = None,
    horizon: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Windows that PPO decides for at once, each with its tree."
        ),
    ] = 1,
    compressed_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Learn N linear combinations of the features, such as 32, 64 or 128, with the "
            "policy, which reads no others.",
            show_default=False,
        ),
    ] = None,
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
    reference: Annotated[
        bool,
        typer.Option(
            "--reference",
            help="On traces: as published, faults included, for comparison; with the published "
            "settings in place of reward, learning rate, gamma and widths.",
        ),
    ] = False,
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
    top_k: TopKOption = 4,
    max_depth: MaxDepthOption = 5,
    max_rows: MaxRowsOption = 32,
    chain_length: ChainLengthOption = 12,
    hidden: HiddenOption = 24,
    folds: FoldsOption = 4,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a policy that chooses the draft tree.

    PPO and DQN learn by trial: on traces, thousands of windows a second; or live, while a model
    decodes. Acceptance learns from traces what is accepted, and weighs it by the cost table. An
    interrupted run goes on with the same command; on traces with the policy of an unbroken one.
    """
    if algorithm not in _ALGORITHMS:
        raise typer.BadParameter(
            f"algorithm must be one of {', '.join(_ALGORITHMS)}, got {algorithm!r}",
            param_hint="--algorithm",
        )
    supervised = algorithm == "acceptance"
    _check_sources(traces, prompts, cost)
    _check_kind(supervised, {"--select": select is not None, "--reference": reference}, prompts)
    if reference and (similarity_threshold is not None or horizon > 1 or compressed_size):
        raise typer.BadParameter(
            "the publication has no --similarity-threshold, --horizon or --compressed-size",
            param_hint="--reference",
        )
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.cost.cost_table import CostTable

        if supervised:
            message = learn_acceptance(
                traces, read_actions(actions), CostTable.from_json(cost), output, show,
                steps=steps, seed=seed, top_k=top_k, max_depth=max_depth, max_rows=max_rows,
                lookup_tokens=chain_length, hidden=hidden, folds=folds,
            )  # fmt: skip
            notes().print(message, markup=False, soft_wrap=True)
            return
        options = _trainer().TrainPolicyOptions(
            algorithm=algorithm,
            total_steps=steps or _STEPS,
            cache_steps=cache_steps,
            extras=tuple(name for name in extras.split(",") if name),
            similarity_threshold=similarity_threshold,
            horizon=horizon,
            compressed_size=compressed_size,
            reward=reward,
            learning_rate=learning_rate,
            gamma=gamma,
            net_arch=parse_numbers(net_arch, "--net-arch"),
            seed=seed,
            checkpoint_steps=checkpoint_steps,
            wandb_project=wandb_project,
        )
        space = read_actions(actions)
        table = None if cost is None else CostTable.from_json(cost)
        if traces:
            learned, checked, head = read_traces(traces, held_out)
            space = leave_out_unknown(space, [*learned, *checked], table)
            if select is not None:
                show("choosing actions", 0.0)
                space = space.subset(select_actions(space, learned, table, select))
            learn = _learn_as_published if reference else _learn_from_traces
            message = learn(learned, checked, space, table, output, options, head, show)
        else:
            show("loading the model", 0.0)
            decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads)
            wanted = list(read_prompt_files(decoder, prompts))
            result = _trainer().train_policy_live(
                decoder, wanted, space, output, options,
                max_new_tokens=max_new_tokens, cost=table, progress=show,
            )  # fmt: skip
            message = f"the policy is in {result.path}"
    notes().print(message, markup=False, soft_wrap=True)


def _check_sources(
    traces: list[Path] | None, prompts: list[Path] | None, cost: Path | None
) -> None:
    if bool(traces) == bool(prompts):
        raise typer.BadParameter(
            "give either --traces, with --cost, or --prompts", param_hint="--traces"
        )
    if traces and cost is None:
        raise typer.BadParameter(
            "traces tell no time: give the table that `eaglerl calibrate` wrote",
            param_hint="--cost",
        )


def _check_kind(supervised: bool, by_trial: dict[str, bool], prompts: list[Path] | None) -> None:
    for option, given in (by_trial | {"--algorithm": supervised}).items():
        if prompts and given:
            raise typer.BadParameter("it needs --traces", param_hint=option)
        if supervised and by_trial.get(option):
            raise typer.BadParameter("it is for ppo and dqn", param_hint=option)


def _trainer() -> ModuleType:
    try:
        from eaglerl.sb3 import train_policy as trainer
    except ModuleNotFoundError as error:
        if error.name not in ("gymnasium", "stable_baselines3"):
            raise
        raise ImportError(
            f"training needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
        ) from error
    return trainer


def _learn_from_traces(
    learned: Sequence[Trace],
    checked: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    output: Path,
    options: TrainPolicyOptions,
    head: str,
    show: Callable[[str, float], None],
) -> str:
    result = _trainer().train_policy(
        learned, actions, cost, output, options, held_out=checked, head=head, progress=show
    )
    message = f"the policy is in {result.path}"
    if result.validation is None:
        return message
    gain = 100 * (result.validation / result.constant - 1)
    return (
        f"{message}; held out: {result.validation:.2f} tokens/s, {gain:+.1f} % against the best "
        "constant tree"
    )


def _learn_as_published(
    learned: Sequence[Trace],
    checked: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    output: Path,
    options: TrainPolicyOptions,
    head: str,
    show: Callable[[str, float], None],
) -> str:
    from eaglerl.resps.train_reference import train_reference
    from eaglerl.traces.simulation import simulate, total

    policy = train_reference(
        options.algorithm, learned, actions, cost, output, total_steps=options.total_steps,
        seed=options.seed, head=head, progress=show, action_cache_steps=options.cache_steps,
    )  # fmt: skip
    message = f"the policy is in {output / 'policy'}"
    if not checked:
        return message
    speed = total(simulate(policy, checked, cost)).tokens_per_second
    return f"{message}; held out: {speed:.2f} tokens/s"


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
