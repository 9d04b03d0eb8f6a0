"""`eaglerl compare`: the same questions decoded in several ways, side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.comparison_table import comparison_tables
from eaglerl.cli.shared.machine_cost import machine_cost, tell_unmeasured
from eaglerl.cli.shared.options import (
    SAMPLING_PANEL,
    DraftDtypeOption,
    DraftOption,
    ModelOption,
    ThreadsOption,
    TopPOption,
    load_decoder,
    parse_trees,
    question_paths,
    resolve_draft,
    resolve_model,
)
from eaglerl.cli.shared.terminal import DebugOption, command, notes, output, progress_bar
from eaglerl.prepare import DEFAULT_MODEL
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
    from eaglerl.evaluation.modes.mode_names import ModeSpec
    from eaglerl.evaluation.results.records import Comparison

_CONSTANT_PANEL = "Constant trees that are chosen"
_NEEDS_PANEL = "What some modes need"
#: Without --mode.
_DEFAULT_MODES = ("generate", "plain", "tuned")


@command
def compare(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of the comparison; one that is there goes on."
        ),
    ],
    questions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="QUESTIONS",
            help="JSONL files of questions (question_id, category, turns), or folders of them; "
            "without any, the comparison that FOLDER holds is shown.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            "--mode",
            "-M",
            metavar="[LABEL=]MODE",
            help="A way to decode; may be repeated. generate, plain, tree:T/D/K, tuned, hindsight, "
            "policy:FOLDER, unguarded:FOLDER, trees-only:FOLDER, uncached:FOLDER, "
            "shuffled:FOLDER, baseline:NAME, baseline:all. "
            f"Default: {', '.join(_DEFAULT_MODES)}; plain is always there.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Half of the questions to decode, by the hash of the prompt: test, train or all.",
        ),
    ] = "test",
    per_file: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Questions of each file, of this half.", show_default=False
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often everything is decoded.")
    ] = 3,
    max_new_tokens: Annotated[
        int,
        typer.Option("--max-new-tokens", "-n", min=2, metavar="N", help="Longest answer."),
    ] = 128,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Mode that the others' speed is divided by; may be repeated. "
            "Default: tuned and plain.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON instead of tables.")
    ] = False,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, metavar="X", help="0 is greedy.", rich_help_panel=SAMPLING_PANEL),
    ] = 0.0,
    top_p: TopPOption = 1.0,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of all draws.", rich_help_panel=SAMPLING_PANEL)
    ] = 0,
    grid: Annotated[
        str | None,
        typer.Option(
            metavar="T/D/K,...",
            help="Trees that tuned and hindsight choose from; default: small ones for a CPU.",
            show_default=False,
            rich_help_panel=_CONSTANT_PANEL,
        ),
    ] = None,
    validation: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Questions of each file, of the other half, that tuned is chosen on.",
            rich_help_panel=_CONSTANT_PANEL,
        ),
    ] = 8,
    cost: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of `calibrate`, for acceptance policies (default: the one kept for this "
            "machine, or beside the policy) and some baselines.",
            show_default=False,
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Traces of `record`, for the baselines that are tuned on some; those of questions "
            "that are decoded are left out. May be repeated.",
            show_default=False,
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = None,
    actions: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Trees that the bandits and tiers choose from, as in `train-policy`.",
            rich_help_panel=_NEEDS_PANEL,
        ),
    ] = "cpu",
    preset: PresetOption = None,
    preset_steps: PresetStepsOption = 2000,
    preset_context: PresetContextOption = True,
    text_model: TextModelOption = None,
    model: ModelOption = DEFAULT_MODEL,
    draft: DraftOption = None,
    draft_dtype: DraftDtypeOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Decode the same questions in several ways, side by side, and compare their speed.

    All modes decode a question in turn before the next one comes, in an order that rotates and
    reverses; outputs are compared with plain decoding's. Every measurement is kept in FOLDER: an
    interrupted comparison goes on with the same command, and with one more --mode a finished one
    is extended without repeating the rest.
    """
    if not questions:
        _show(folder, against, as_json=as_json)
        return
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.cost.cost_table import CostTable
        from eaglerl.evaluation.modes.mode_names import POLICY_KINDS
        from eaglerl.evaluation.questions.question_files import question_files, read_questions
        from eaglerl.evaluation.running.comparison import compare as run
        from eaglerl.evaluation.running.comparison_options import (
            DEFAULT_GRID,
            CompareOptions,
            Extras,
        )
        from eaglerl.evaluation.statistics.disturbance import busy_now
        from eaglerl.traces.trace_set import TraceSet

        # All that can be checked without a model is, before one is loaded.
        modes = _parse_modes(mode or (PRESET_MODES if preset else _DEFAULT_MODES))
        labels = {one.label for one in modes}
        labels |= preset_labels(preset, labels, context=preset_context, traces=traces, cost=cost)
        options = CompareOptions(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, repeats=repeats,
            split=split, per_file=per_file, validation_per_file=validation,
            grid=DEFAULT_GRID if grid is None else parse_trees(grid, "--grid"),
            draft_dtype=draft_dtype, seed=seed,
        )  # fmt: skip
        files = question_files(question_paths(questions))
        read_questions(files)
        extras = Extras(
            cost=None if cost is None else CostTable.from_json(cost),
            actions=read_actions(actions),
            traces=[TraceSet(one) for one in traces or ()],
        )
        _check_needs(modes, cost=extras.cost, traces=extras.traces)
        plain = needs_no_head(modes, preset, draft, model)
        if not plain:
            resolve_draft(draft, model)
    _check_references(against, folder, labels)
    if (busy := busy_now()) is not None:
        notes().print(f"warning: {busy}", style="bold red", markup=False, soft_wrap=True)
    decoder = load_decoder(model, draft, draft_dtype=draft_dtype, threads=threads, plain=plain)
    if cost is None and any(one.kind in POLICY_KINDS for one in modes):
        table = machine_cost(None, decoder)
        if table is None:
            tell_unmeasured()
        extras = replace(extras, cost=table)
    target = resolve_model(model)
    try:
        with progress_bar() as show:
            if preset is not None:
                modes += learn_preset(
                    preset, decoder, files, folder, options, extras,
                    context=preset_context, steps=preset_steps, text_model=text_model, show=show,
                )  # fmt: skip
            run(decoder, target, files, modes, folder, options, extras, progress=show)
    except KeyboardInterrupt:
        notes().print(
            f"what was decoded is in {folder}; the same command goes on", markup=False,
            soft_wrap=True,
        )  # fmt: skip
        raise
    _show(folder, against, as_json=as_json)


def needs_no_head(
    modes: tuple[ModeSpec, ...], preset: str | None, draft: Path | None, model: str
) -> bool:
    """Tell whether there is no head to load, and none that a mode asks for."""
    from eaglerl.prepare import MODELS

    drafts = preset is not None or any(one.kind not in ("generate", "plain") for one in modes)
    return draft is None and model not in MODELS and not drafts


def _show(folder: Path, against: list[str] | None, *, as_json: bool) -> None:
    from eaglerl.evaluation.results.records import load_comparison
    from eaglerl.evaluation.statistics.summary import summarise

    comparison: Comparison = load_comparison(folder)
    summary = summarise(comparison, against or ())
    if as_json:
        output().print_json(json.dumps(summary.to_dict()))
    else:
        output().print(comparison_tables(comparison.manifest, summary))


def _parse_modes(texts: list[str] | tuple[str, ...]) -> tuple[ModeSpec, ...]:
    from eaglerl.evaluation.modes.mode_names import parse_modes

    try:
        return parse_modes(texts)
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
                f"{label!r} is none of the modes {sorted(labels)}", param_hint="--against"
            )
