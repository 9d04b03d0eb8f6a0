"""`eaglerl compare`: the same questions decoded by several modes, side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.ray_cluster import cluster_of
from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.options import (
    SAMPLING_PANEL,
    DecoderSettings,
    RayOption,
    SplitOption,
    TopPOption,
    load_decoder,
    question_paths,
    resolve_draft,
    resolve_model,
)
from eaglerl.cli.shared.parse_options import parse_numbers, parse_trees
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.show_comparison import show_comparison
from eaglerl.cli.shared.terminal import notes, progress_bar, say
from eaglerl.resps.commands.preset_options import (
    PRESET_MODES,
    PresetContextOption,
    PresetOption,
    PresetStepsOption,
    TextModelOption,
    learn_preset,
    preset_labels,
)

if TYPE_CHECKING:
    from eaglerl.distributed.cluster import Cluster
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.evaluation.modes.mode_names import ModeSpec
    from eaglerl.evaluation.running.comparison_options import CompareOptions, Extras

_CONSTANT_PANEL = "Choice of the constant tree"
_NEEDS_PANEL = "For some modes only"
_DEFAULT_MODES = ("generate", "plain", "tuned")


@dataclass(frozen=True, kw_only=True)
class CompareSettings(DecoderSettings):
    """Options of `eaglerl compare`."""

    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of the comparison; an existing one is continued."
        ),
    ]
    questions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="QUESTIONS",
            help="JSONL files of questions (question_id, category, turns), or folders of them. "
            "Without any, show the comparison that is in FOLDER.",
            show_default=False,
        ),
    ] = None
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            "-M",
            metavar="[LABEL=]MODE",
            help="Mode of decoding; repeatable: generate, plain, auto, auto-trees, tree:T/D/K, "
            "tuned, hindsight, policy:FOLDER, uncached:FOLDER, shuffled:FOLDER, baseline:NAME, "
            "baseline:all. "
            f"Default: {', '.join(_DEFAULT_MODES)}. plain is always included.",
            show_default=False,
        ),
    ] = None
    split: SplitOption = "test"
    per_file: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Questions per file; default: all.", show_default=False
        ),
    ] = None
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of times that each question is decoded.")
    ] = 3
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N,...",
            help="Questions that every mode decodes at once, in one batch. 1 is always included, "
            "as reference.",
        ),
    ] = "1"
    group: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --concurrency: modes take turns with groups of at least N questions; "
            "default: twice the largest concurrency.",
            show_default=False,
        ),
    ] = None
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "-n", min=2, metavar="N", help="Longest answer."),
    ] = 128
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Mode to divide the speeds by; repeatable. Default: tuned and plain.",
            show_default=False,
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON instead of tables.")
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
    top_p: TopPOption = 1.0
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Seed of the sampling, and of all other random choices.",
            rich_help_panel=SAMPLING_PANEL,
        ),
    ] = 0
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="T/D/K,...",
            help="Trees that tuned and hindsight choose from; default: small trees for a CPU.",
            show_default=False,
            rich_help_panel=_CONSTANT_PANEL,
        ),
    ] = None
    validation: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Questions per file, from the other half, on which the tree of tuned is chosen.",
            rich_help_panel=_CONSTANT_PANEL,
        ),
    ] = 8
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Cost table from `calibrate`, for some baselines.",
            show_default=False,
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = None
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Traces from `record`, for the baselines that are tuned on traces; traces of "
            "questions that are decoded are not used. Repeatable.",
            show_default=False,
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = None
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees that the bandits and tiers choose from, as in `train-policy`.",
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = "cpu"
    preset: PresetOption = None
    preset_steps: PresetStepsOption = 2000
    preset_context: PresetContextOption = True
    text_model: TextModelOption = None
    ray: RayOption = None

    def __post_init__(self) -> None:
        if self.ray is not None and self.preset is not None:
            message = "the policies of --preset learn on this machine, not on a cluster"
            raise typer.BadParameter(message, param_hint="--ray")


@dataclass(frozen=True)
class _Plan:
    """What a comparison decodes, checked as far as that is possible without a model."""

    modes: tuple[ModeSpec, ...]
    options: CompareOptions
    files: list[Path]
    extras: Extras
    plain: bool


@settings_command
def compare(settings: CompareSettings) -> None:
    """Decode the same questions by several modes, side by side, and compare their speed.

    All modes decode a question before the next one is started, in an order that rotates and
    reverses. Outputs are compared with those of plain decoding. Every measurement is kept in
    FOLDER: the same command continues an interrupted comparison, and with one more --mode it
    extends a complete one without repeating the rest.

    With --concurrency 1,4,16 every mode also decodes 4 and 16 questions at once, a new one joining
    as soon as one ends. Modes then take turns with groups of questions.
    """
    if settings.questions:
        plan = _make_plan(settings)
        with cluster_of(settings.ray, settings.threads) as cluster:
            if cluster is not None:
                # The driver decodes nothing: its number of threads is that of the workers.
                settings = replace(settings, threads=cluster.threads)
            elif (busy := _busy_now()) is not None:
                notes().print(f"warning: {busy}", style="bold red", markup=False, soft_wrap=True)
            decoder = load_decoder(settings, plain=plan.plain)
            _decode(settings, plan, decoder, cluster)
    show_comparison(settings.folder, settings.against, as_json=settings.as_json)


def _make_plan(settings: CompareSettings) -> _Plan:
    """Check everything that needs no model, so that a mistake is reported at once."""
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.evaluation.questions.question_files import question_files, read_questions

        at_once = parse_numbers(settings.concurrency, "--concurrency")
        modes = _parse_modes(
            settings.mode or (PRESET_MODES if settings.preset else _DEFAULT_MODES), at_once
        )
        labels = {one.label for one in modes}
        labels |= preset_labels(
            settings.preset,
            labels,
            context=settings.preset_context,
            traces=settings.traces,
            cost=settings.cost,
        )
        options = _compare_options(settings)
        files = question_files(question_paths(settings.questions or ()))
        read_questions(files)
        extras = _read_extras(settings)
        _check_needs(modes, cost=extras.cost, traces=extras.traces)
        plain = _needs_no_head(modes, settings)
        if not plain:
            resolve_draft(settings.draft, settings.model)
    _check_references(settings.against, settings.folder, labels)
    return _Plan(modes, options, files, extras, plain)


def _compare_options(settings: CompareSettings) -> CompareOptions:
    from eaglerl.evaluation.running.comparison_options import DEFAULT_GRID, CompareOptions

    most = max(parse_numbers(settings.concurrency, "--concurrency"))
    return CompareOptions(
        group=settings.group or (2 * most if most > 1 else None),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        repeats=settings.repeats,
        split=settings.split,
        per_file=settings.per_file,
        validation_per_file=settings.validation,
        grid=DEFAULT_GRID if settings.grid is None else parse_trees(settings.grid, "--grid"),
        draft_dtype=settings.draft_dtype,
        seed=settings.seed,
    )


def _read_extras(settings: CompareSettings) -> Extras:
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.evaluation.running.comparison_options import Extras
    from eaglerl.traces.trace_set import TraceSet

    return Extras(
        cost=None if settings.cost is None else CostTable.from_json(settings.cost),
        actions=read_actions(settings.actions),
        traces=[TraceSet(folder) for folder in settings.traces or ()],
    )


def _needs_no_head(modes: tuple[ModeSpec, ...], settings: CompareSettings) -> bool:
    """Tell whether no mode drafts and no head is given, so that none is loaded."""
    from eaglerl.prepare import MODELS

    drafts = settings.preset is not None or any(
        one.kind not in ("generate", "plain") for one in modes
    )
    return settings.draft is None and settings.model not in MODELS and not drafts


def _busy_now() -> str | None:
    from eaglerl.evaluation.statistics.disturbance import busy_now

    return busy_now()


def _decode(
    settings: CompareSettings,
    plan: _Plan,
    decoder: SpeculativeDecoder,
    cluster: Cluster | None,
) -> None:
    from eaglerl.evaluation.modes.mode_names import at_concurrencies
    from eaglerl.evaluation.running.comparison import compare as run

    elsewhere = None
    if cluster is not None:
        from eaglerl.distributed.compare import ClusterRun

        elsewhere = ClusterRun(cluster, settings)
    target = resolve_model(settings.model)
    modes = plan.modes
    try:
        with progress_bar() as show:
            if settings.preset is not None:
                learned = learn_preset(
                    settings.preset,
                    decoder,
                    plan.files,
                    settings.folder,
                    plan.options,
                    plan.extras,
                    context=settings.preset_context,
                    steps=settings.preset_steps,
                    text_model=settings.text_model,
                    show=show,
                )
                at_once = parse_numbers(settings.concurrency, "--concurrency")
                modes += at_concurrencies(learned, at_once)
            run(
                decoder,
                target,
                plan.files,
                modes,
                settings.folder,
                plan.options,
                plan.extras,
                progress=show,
                elsewhere=elsewhere,
            )
    except KeyboardInterrupt:
        say(f"the measurements so far are in {settings.folder}; the same command continues")
        raise


def _parse_modes(
    texts: list[str] | tuple[str, ...], at_once: tuple[int, ...]
) -> tuple[ModeSpec, ...]:
    from eaglerl.evaluation.modes.mode_names import at_concurrencies, parse_modes

    try:
        return at_concurrencies(parse_modes(texts), at_once)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mode") from error


def _check_needs(modes: tuple[ModeSpec, ...], **given: object) -> None:
    for one in modes:
        for need in one.needs:
            if not given[need]:
                raise typer.BadParameter(f"the mode {one.label!r} needs it", param_hint=f"--{need}")


def _check_references(against: list[str] | None, folder: Path, labels: set[str]) -> None:
    from eaglerl.evaluation.results.records import MANIFEST_NAME, Manifest

    if (folder / MANIFEST_NAME).exists():
        labels = labels | Manifest.from_json(folder).modes.keys()
    for label in against or ():
        if label not in labels:
            raise typer.BadParameter(
                f"{label!r} is not one of the modes {sorted(labels)}", param_hint="--against"
            )
