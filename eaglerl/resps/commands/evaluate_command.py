"""`eaglerl evaluate`: one bench, with the flags of the evaluation command of Re-SpS."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.options import DecoderSettings, load_decoder
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import output, progress_bar, say

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.resps.bench import EvaluationSummary
    from eaglerl.resps.flags import ReSpSFlags
    from eaglerl.resps.policies.resps_policy import ReSpSPolicy

_TREE_PANEL = "A constant tree, without a policy"
_POLICY_PANEL = "A policy"
_LEARNING_PANEL = "Learning while decoding"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(DecoderSettings):
    """Options of `eaglerl evaluate`: the flags of Re-SpS, and those of every command."""

    context: typer.Context
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
    ]
    answer_file: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Answers, written as they come; an existing file is continued."
        ),
    ]
    question_begin: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="First question, counted from 0.", show_default=False
        ),
    ] = None
    question_end: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Question after the last one.", show_default=False),
    ] = None
    max_new_token: Annotated[int, typer.Option(min=2, metavar="N", help="Longest answer.")] = 1024
    temperature: Annotated[float, typer.Option(min=0.0, metavar="X", help="0 is greedy.")] = 0.0
    resume_training: Annotated[
        bool,
        typer.Option(
            "--resume-training/--no-resume",
            help="Continue existing answers and checkpoints; otherwise both must be new.",
        ),
    ] = True
    model_id: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the model in the answers; default: made from the flags.",
            show_default=False,
        ),
    ] = None
    total_token: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Rows verified per cycle.", rich_help_panel=_TREE_PANEL
        ),
    ] = 60
    depth: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Expansion rounds after the first one.",
            rich_help_panel=_TREE_PANEL,
        ),
    ] = 5
    top_k: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Width of the tree.", rich_help_panel=_TREE_PANEL),
    ] = 10
    use_optimized_sb3_discrete_ppo: Annotated[
        bool, typer.Option(help="PPO chooses the tree.", rich_help_panel=_POLICY_PANEL)
    ] = False
    use_optimized_dqn: Annotated[
        bool, typer.Option(help="DQN chooses the tree.", rich_help_panel=_POLICY_PANEL)
    ] = False
    optimized_policy_version: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="PPO's network: standard, ReLU layers of 512, 256 and 128; or ofl, tanh layers of "
            "64 and 64.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = "standard"
    ppo_net_arch: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="Widths of its layers instead; with ofl also N,...;N,... for actor and critic.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = ""
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees to choose from, as in `train-policy`; cpu has small ones.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = "published"
    use_eagle3_features: Annotated[
        bool,
        typer.Option(
            help="Read the target's features; otherwise the context's text, projected to "
            "their width.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = True
    use_context_only_state: Annotated[
        bool,
        typer.Option(
            help="Read the embedding of the context's text.", rich_help_panel=_POLICY_PANEL
        ),
    ] = False
    text_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="What embeds the context's text, saved with the policy: a sentence-transformers "
            "model of width 384; all-MiniLM-L6-v2, which the extra text brings, by default.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None
    hidden_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Width of the features; it must be that of the head.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None
    action_cache_steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Cycles that a decision serves.", rich_help_panel=_POLICY_PANEL
        ),
    ] = 10
    action_cache_enabled: Annotated[
        bool,
        typer.Option(
            help="Keep decisions; otherwise decide in every cycle.", rich_help_panel=_POLICY_PANEL
        ),
    ] = True
    max_entropy_inference: Annotated[
        bool,
        typer.Option(
            help="Draw trees at inference; otherwise take the best one.",
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = True
    inference_temperature: Annotated[
        float,
        typer.Option(
            metavar="X", help="Temperature of these draws.", rich_help_panel=_POLICY_PANEL
        ),
    ] = 1.5
    online_policy_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A saved policy, in place of a new one.",
            show_default=False,
            rich_help_panel=_POLICY_PANEL,
        ),
    ] = None
    online_inference_only: Annotated[
        bool, typer.Option(help="Do not train the policy.", rich_help_panel=_POLICY_PANEL)
    ] = False
    enable_max_entropy: Annotated[
        bool,
        typer.Option(
            "--enable-max-entropy/--disable-max-entropy",
            help="Explore for entropy. If disabled, trees are not drawn at inference either.",
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = True
    training_seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed of the network, its draws and the order of the questions.",
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = 42
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Checkpoints, one per question; default: beside the answers.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None
    online_policy_save_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Save the policy at the end.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None
    wandb_project: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Log to this project of Weights & Biases.",
            show_default=False,
            rich_help_panel=_LEARNING_PANEL,
        ),
    ] = None
    wandb: Annotated[
        bool,
        typer.Option(
            help="Log to Weights & Biases, to the project eaglerl.", rich_help_panel=_LEARNING_PANEL
        ),
    ] = False


@settings_command
def evaluate(settings: EvaluateSettings) -> None:
    """Answer the questions of one bench, with the flags of the evaluation command of Re-SpS.

    Without a policy, a constant tree drafts. A new policy learns while it decodes, and so does a
    saved one unless --online-inference-only is given. Answers are written as they come, in EAGLE's
    layout; the same command continues an interrupted run. A flag that has no effect is refused.
    """
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.eagle3.policy import TreeParams
        from eaglerl.evaluation.modes.runners import Decoding
        from eaglerl.resps.bench import EvaluationOptions, find_bench
        from eaglerl.resps.bench import evaluate as run
        from eaglerl.resps.bench_policies import version_options

        flags = _read_flags(settings)
        options = EvaluationOptions(
            find_bench(settings.bench_name),
            settings.answer_file,
            Decoding(settings.max_new_token, settings.temperature),
            settings.question_begin,
            settings.question_end,
            settings.resume_training,
        )
        # Check whatever needs no model before one is loaded.
        options.questions()
        version_options(settings.optimized_policy_version, settings.ppo_net_arch)
        read_actions(settings.actions)
        tree = flags.tree if flags.algorithm is None else None
    decoder = load_decoder(settings)
    chosen = tree or _policy(flags, decoder, settings.answer_file)
    name = settings.model_id or _model_id(flags, settings.temperature)
    with progress_bar() as show:
        summary = run(decoder, chosen, options, model_id=name, progress=show)
    if not isinstance(chosen, TreeParams):
        if settings.online_policy_save_path is not None:
            chosen.save(settings.online_policy_save_path)
        chosen.close()
    _show(summary)
    say(f"the answers are in {settings.answer_file}")


def _read_flags(settings: EvaluateSettings) -> ReSpSFlags:
    """Read the flags, and check that each of them has an effect.

    Raises:
        typer.BadParameter: a flag has no effect.
    """
    from eaglerl.resps.flags import FlagError, ReSpSFlags

    names = [field.name for field in fields(ReSpSFlags) if field.name != "given"]
    # Compared by name: typer may bring its own click, with its own enumeration.
    source_of = settings.context.get_parameter_source
    sources = {name: getattr(source_of(name), "name", "") for name in names}
    given = {name for name, source in sources.items() if source in ("COMMANDLINE", "ENVIRONMENT")}
    try:
        return ReSpSFlags(**{name: getattr(settings, name) for name in names}, given=given)
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
