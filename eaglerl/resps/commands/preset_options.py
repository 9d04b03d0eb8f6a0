"""`eaglerl compare --preset`: the grids of policies of Re-SpS, trained and then compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.action_options import leave_out_unknown

if TYPE_CHECKING:
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.evaluation.modes.mode_names import ModeSpec
    from eaglerl.evaluation.running.comparison_options import CompareOptions, Extras

_PANEL = "Grids of Re-SpS"
#: The scripts of Re-SpS compare with plain decoding and EAGLE's own tree, which is not tuned.
PRESET_MODES = ("plain", "tuned", "eagle=tree:60/5/10")

PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Train a grid of policies of Re-SpS on --traces and --cost first, below FOLDER: "
        "ppo-modes (8: standard or ofl, features or context only, max-entropy or not) or dqn-modes "
        "(4: no versions). Their modes join those of --mode.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
PresetStepsOption = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Cache windows that each policy learns from.",
        rich_help_panel=_PANEL,
    ),
]
PresetContextOption = Annotated[
    bool,
    typer.Option(
        "--preset-context/--no-preset-context",
        help="Include the context-only half, which needs sentence-transformers.",
        rich_help_panel=_PANEL,
    ),
]

TextModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER",
        help="What embeds the text for the context-only half, saved with the policies; "
        "all-MiniLM-L6-v2, which the extra text brings, by default.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


def preset_labels(
    preset: str | None,
    others: set[str],
    *,
    context: bool,
    traces: Sequence[Path] | None,
    cost: Path | None,
) -> set[str]:
    """Return the labels of a grid's modes; none without a grid.

    Raises:
        typer.BadParameter: the grid is unknown, there is nothing to train it on, or another mode
            has one of the labels.
    """
    if preset is None:
        return set()
    from eaglerl.resps.presets import preset_policies

    try:
        policies = preset_policies(preset, context=context)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--preset") from error
    for option, value in (("--traces", traces), ("--cost", cost)):
        if not value:
            raise typer.BadParameter("--preset trains on it", param_hint=option)
    labels = {policy.label for policy in policies}
    if taken := sorted(labels & others):
        raise typer.BadParameter(f"{taken} are modes of --preset", param_hint="--mode")
    return labels


def learn_preset(
    preset: str,
    decoder: SpeculativeDecoder,
    files: Sequence[Path],
    folder: Path,
    options: CompareOptions,
    extras: Extras,
    *,
    context: bool,
    steps: int,
    text_model: str | None,
    show: Callable[[str, float], None],
) -> tuple[ModeSpec, ...]:
    """Train a grid on traces of questions that are not decoded.

    Raises:
        ValueError: see `train_preset`; or traces of another target or head.
    """
    from eaglerl.envs.observations import draft_head_of
    from eaglerl.evaluation.questions.question_files import (
        choose_split,
        prepare_questions,
        read_questions,
    )
    from eaglerl.fingerprints import head_id, target_id
    from eaglerl.resps.bench_policies import text_model_of
    from eaglerl.resps.presets import PresetInputs, left_over, preset_policies, train_preset

    # `preset_labels` has checked that there are traces and a cost table.
    assert extras.cost is not None
    own = head_id(draft_head_of(decoder))
    for recorded in extras.traces:
        recorded.check_ids(target_id=target_id(decoder.target), head_id=own)
    every = prepare_questions(
        read_questions(files),
        decoder.tokenizer,
        max_new_tokens=options.max_new_tokens,
        max_positions=decoder.target.max_positions,
    )
    decoded = choose_split(every, options.split, options.per_file)
    traces = left_over(
        [trace for recorded in extras.traces for trace in recorded],
        [question.prompt_id for question in decoded],
    )
    # Without traces, `train_preset` reports that they are missing.
    known = leave_out_unknown(extras.actions, traces, extras.cost) if traces else extras.actions
    inputs = PresetInputs(
        traces=traces,
        actions=known,
        cost=extras.cost,
        tokenizer=decoder.tokenizer,
        head_id=own,
        steps=steps,
        seed=options.seed,
        text_model=text_model_of(text_model),
    )
    return train_preset(preset_policies(preset, context=context), inputs, folder, progress=show)
