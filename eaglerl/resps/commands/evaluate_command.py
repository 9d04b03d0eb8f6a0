"""`eaglerl evaluate`: one bench, with the flags of the evaluation command of Re-SpS."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.options import (
    DecoderSettings,
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    load_decoder,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes, output, progress_bar
from eaglerl.packaged_models import DEFAULT_MODEL

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.resps.bench import EvaluationSummary
    from eaglerl.resps.flags import ReSpSFlags
    from eaglerl.resps.policies.resps_policy import ReSpSPolicy

_TREE_PANEL = "A constant tree, without a policy"
_POLICY_PANEL = "A policy"
_LEARNING_PANEL = "Learning while decoding"


@command
# Typer reads the flags from the parameters: they are those of Re-SpS, and `_read_flags` makes one
# `ReSpSFlags` of them. That is why this list is longer than the limits allow.
def evaluate(
    context: typer.Context,
    bench_name: Annotated[
        str,
        typer.Option(
            "--bench-name",
            "--question-file",
            metavar="NAME|FILE",
            help="Questions: a JSONL file, a folder with a question.jsonl, the name of such a "
            "folder below data/ or eagle/data/, or a shipped sample: code, everyday, facts, math, "
            "summary.",
        ),
    ],
    answer_file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Answers, as they come; a file that is there is gone on with."
        ),
    ],
    question_begin: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="First question, from 0.", show_default=False),
    ] = None,
    question_end: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="The one after the last.", show_default=False),
    ] = None,
    max_new_token: Annotated[int, typer.Option(min=2, metavar="N", help="Longest answer.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, metavar="X", help="0 is greedy.")] = 0.0,
    resume_training: Annotated[
        bool,
        typer.Option(
            "--resume-training/--no-resume",
            help="Go on with what the answers and checkpoints hold; or begin, with new ones.",
        ),
    ] = True,
    model_id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model in the answers; default: made from the flags.",
            show_default=False,
        ),
    ] = None,
    total_token: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Rows verified per cycle.", rich_help_panel=_TREE_PANEL
        ),
    ] = 60,
    depth: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Expansion rounds after the first one.",
            rich_help_panel=_TREE_PANEL,
        ),
    ] = 5,
    top_k: Annotated[
        int, typer.Option(min=1, metavar="N", help="Width.", rich_help_panel=_TREE_PANEL)
    ] = 10,
    use_optimized_sb3_discrete_ppo: Annotated[
        bool, typer.Option(help="PPO chooses the tree.", rich_help_panel=_POLICY_PANEL)
    ] = False,
    use_optimized_dqn: Annotated[
        bool, typer.Option(help="DQN chooses the tree.", rich_help_panel=_POLICY_PANEL)
    ] = False,
    optimized_policy_version: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="PPO's net: standard, ReLU layers of 512, 256 and 128; or ofl, tanh layers of 64 "
            "and 64.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = "standard",
    ppo_net_arch: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="Other widths; with ofl also N,...;N,... for actor and critic.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = "",
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees to choose from, as in `train-policy`; cpu has small ones.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = "published",
    use_eagle3_features: Annotated[
        bool,
        typer.Option(
            help="The state is the target's features; otherwise the context's text, projected to "
            "their width.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = True,
    use_context_only_state: Annotated[
        bool,
        typer.Option(
            help="The state is the embedding of the context's text.", rich_help_panel=_POLICY_PANEL
        ),
    ] = False,
    text_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="What embeds the context's text, saved with the policy: a sentence-transformers "
            "model of width 384; all-MiniLM-L6-v2, which the extra text brings, by default.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None,
    hidden_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Width of the features: that of the head; any other is refused.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None,
    action_cache_steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Cycles that a decision serves.", rich_help_panel=_POLICY_PANEL
        ),
    ] = 10,
    action_cache_enabled: Annotated[
        bool,
        typer.Option(help="Otherwise every cycle is decided.", rich_help_panel=_POLICY_PANEL),
    ] = True,
    max_entropy_inference: Annotated[
        bool,
        typer.Option(
            help="Draw trees where nothing is learned; otherwise take the best one.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = True,
    inference_temperature: Annotated[
        float,
        typer.Option(metavar="X", help="Of these draws.", rich_help_panel=_POLICY_PANEL),
    ] = 1.5,
    online_policy_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A saved policy, in place of a new one.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None,
    online_inference_only: Annotated[
        bool, typer.Option(help="It does not learn.", rich_help_panel=_POLICY_PANEL)
    ] = False,
    enable_max_entropy: Annotated[
        bool,
        typer.Option(
            "--enable-max-entropy/--disable-max-entropy",
            help="Explore for entropy; without, trees are not drawn at inference either.",
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = True,
    training_seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Of the net, its draws and the order of the questions.",
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = 42,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Checkpoints, one per question; default: beside the answers.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None,
    online_policy_save_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Save the policy at the end.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None,
    wandb_project: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Log to this project of Weights & Biases.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None,
    wandb: Annotated[
        bool,
        typer.Option(help="Log there, to the project eaglerl.", rich_help_panel=_LEARNING_PANEL),
    ] = False,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer the questions of one bench, with the flags of the evaluation command of Re-SpS.

    Without a policy, a constant tree drafts. A new policy learns while it decodes, and so does a
    saved one unless --online-inference-only is given. Answers are written as they come, in EAGLE's
    layout; the same command goes on where it was stopped. A flag that has no effect is refused.
    """
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.evaluation.modes.runners import Decoding
        from eaglerl.resps.bench import EvaluationOptions, find_bench
        from eaglerl.resps.bench import evaluate as run
        from eaglerl.resps.bench_policies import version_options

        flags = _read_flags(context)
        options = EvaluationOptions(
            find_bench(bench_name), answer_file, Decoding(max_new_token, temperature),
            question_begin, question_end, resume_training,
        )  # fmt: skip
        # All that can be checked without a model is, before one is loaded.
        options.questions()
        version_options(optimized_policy_version, ppo_net_arch)
        read_actions(actions)
        tree = flags.tree if flags.algorithm is None else None
    decoder = load_decoder(
        DecoderSettings(model=model, draft=draft, draft_dtype=draft_dtype, threads=threads)
    )
    chosen = tree or _policy(flags, decoder, answer_file)
    name = model_id or _model_id(flags, temperature)
    with progress_bar() as show:
        summary = run(decoder, chosen, options, model_id=name, progress=show)
    if online_policy_save_path is not None:
        chosen.save(online_policy_save_path)
    if tree is None:
        chosen.close()
    _show(summary)
    notes().print(f"the answers are in {answer_file}", markup=False, soft_wrap=True)


def _read_flags(context: typer.Context) -> ReSpSFlags:
    """Read the flags, and check that each of them has an effect.

    Raises:
        typer.BadParameter: one has none.
    """
    from eaglerl.resps.flags import FlagError, ReSpSFlags

    names = [field.name for field in fields(ReSpSFlags) if field.name != "given"]
    # By its name: typer may bring a click of its own, with an enumeration of its own.
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in names}
    given = {name for name, source in sources.items() if source in ("COMMANDLINE", "ENVIRONMENT")}
    try:
        return ReSpSFlags(**{name: context.params[name] for name in names}, given=given)
    except FlagError as error:
        raise typer.BadParameter(error.reason, param_hint=error.flag) from error


def _policy(flags: ReSpSFlags, decoder: SpeculativeDecoder, answer_file: Path) -> ReSpSPolicy:
    from eaglerl.resps.bench_policies import new_policy, saved_policy

    default = answer_file.with_name(f"{answer_file.stem}-checkpoints")
    checkpoints = flags.checkpoint_dir or default
    if flags.online_policy_path is None:
        policy = new_policy(flags, decoder, read_actions(flags.actions), checkpoints)
    else:
        policy = saved_policy(flags, decoder, checkpoints)
    policy.training_mode = flags.learns
    return policy


def _model_id(flags: ReSpSFlags, temperature: float) -> str:
    if flags.algorithm is None:
        name = f"tree-{flags.total_token}-{flags.depth}-{flags.top_k}"
    else:
        name = flags.algorithm if flags.learns else f"{flags.algorithm}-inference"
    return f"{name}-temperature-{temperature}"


def _show(summary: EvaluationSummary) -> None:
    lines = [
        f"{summary.questions} questions, {summary.new_tokens} new tokens",
        f"{summary.tokens_per_second:.2f} tokens/s, prefills included",
        f"{summary.acceptance_length:.3f} tokens per cycle",
    ]
    for name, value in summary.policy.items():
        if name == "actions":
            trees = (f"{'/'.join(map(str, tree))} x{count}" for tree, count in value.items())
            lines.append(f"actions: {', '.join(trees)}")
        elif value not in ({}, None):
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"{name.replace('_', ' ')}: {shown}")
    for line in lines:
        output().print(line, markup=False, soft_wrap=True)
