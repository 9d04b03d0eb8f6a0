"""`eaglerl headroom`: what adapting would be worth on an engine, from its log and its costs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eaglerl.cli.shared.headroom_tables import headroom_tables
from eaglerl.cli.shared.parse_options import parse_numbers, parse_trees
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, output, progress_bar, say

if TYPE_CHECKING:
    from eaglerl.eagle3.policy import TreeParams
    from eaglerl.headroom.chain_study import Progress
    from eaglerl.headroom.cost_curve import StepCost
    from eaglerl.headroom.result import Headroom
    from eaglerl.headroom.step_log import Steps

_SPACE_PANEL = "What to choose from"
# Contexts between which the costs of another engine become lines for trees.
_CONTEXTS = (0, 1024)


@dataclass(frozen=True, kw_only=True)
class HeadroomSettings:
    """Options of `eaglerl headroom`."""

    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...",
            help="Folders of `record`, or files of steps that an engine logged as JSON lines.",
            show_default=False,
        ),
    ]
    cost: Annotated[
        Path | None,
        typer.Option(
            "--cost",
            metavar="FILE",
            help="What a step costs: a table of `calibrate`; a table as .csv or .json; SGLang's "
            "dspark_sps.json; or a .log of vLLM with --enable-logging-iteration-details. Default: "
            "the times in the log of steps.",
            show_default=False,
        ),
    ] = None
    batch: Annotated[
        str,
        typer.Option(
            metavar="N,...",
            help="Requests that share a step; several give a study for each. Above 1, traces are "
            "taken as a log of chains.",
        ),
    ] = "1"
    levels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Longest chain; default: the longest in the log. Traces are then taken as a log "
            "of chains.",
            show_default=False,
            rich_help_panel=_SPACE_PANEL,
        ),
    ] = None
    trees: Annotated[
        str | None,
        typer.Option(
            metavar="T/D/K,...",
            help="Trees to choose from, for folders of traces; default: a fine grid.",
            show_default=False,
            rich_help_panel=_SPACE_PANEL,
        ),
    ] = None
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="N",
            help="Parts of the requests: a policy is fitted on all but the one it is scored on.",
        ),
    ] = 5
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the parts.")] = 0
    page: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write a page of HTML; needs the extra `report`.",
            show_default=False,
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON instead of tables.")
    ] = False
    debug: DebugOption = False


@settings_command
def headroom(settings: HeadroomSettings) -> None:
    """Say what adapting the draft would be worth on your engine, before you build it.

    From a log of how far drafts were accepted and from what steps cost, it computes the speed of
    the best constant draft, of the best constant of every request, of a calibrated policy that was
    fitted on other requests, and of an oracle that knows the future. All with 95 % intervals, and
    a verdict.

    docs/engines.md describes the log and the costs.
    """
    batches = parse_numbers(settings.batch, "--batch")
    trees = None if settings.trees is None else parse_trees(settings.trees, "--trees")
    with progress_bar() as show:
        show("reading", 0.0)
        folders = [path.is_dir() for path in settings.logs]
        if any(folders) != all(folders):
            raise typer.BadParameter(
                "give either folders of traces or files of steps", param_hint="LOG"
            )
        if all(folders):
            studies = _of_traces(settings, trees, batches, show)
        else:
            studies = _of_logs(settings, batches, show)
        if settings.page is not None:
            show("page", 0.95)
            _write_page(studies, settings.page)
    if settings.as_json:
        output().print_json(json.dumps({"studies": [study.to_dict() for study in studies]}))
    else:
        output().print(headroom_tables(studies))
    if settings.page is not None:
        say(f"the page is in {settings.page}")


def _of_traces(
    settings: HeadroomSettings,
    trees: tuple[TreeParams, ...] | None,
    batches: tuple[int, ...],
    show: Progress,
) -> list[Headroom]:
    from eaglerl.actions import ActionSpace
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.headroom.cost_curve import CostCurve, TableCost
    from eaglerl.headroom.cost_files import read_cost
    from eaglerl.headroom.trace_steps import steps_of_traces
    from eaglerl.headroom.tree_study import study_trees
    from eaglerl.traces.trace_set import TraceSet

    if settings.cost is None:
        raise typer.BadParameter("traces hold no times: give their costs", param_hint="--cost")
    sets = [TraceSet(folder) for folder in settings.logs]
    for other in sets[1:]:
        other.check_ids(target_id=sets[0].target_id, head_id=sets[0].head_id)
    traces = [trace for one in sets for trace in one]
    cost = read_cost(settings.cost)
    if batches != (1,) or settings.levels is not None:
        return _of_steps(settings, steps_of_traces(traces, settings.levels), cost, batches, show)
    if isinstance(cost, TableCost):
        table: CostTable = cost.table
    else:
        assert isinstance(cost, CostCurve)  # the other kind that is read
        table = cost.table(_CONTEXTS, sets[0].header["top_ks"])
    study = study_trees(
        traces,
        table,
        actions=None if trees is None else ActionSpace(trees),
        folds=settings.folds,
        seed=settings.seed,
        source=", ".join(path.name for path in settings.logs),
        progress=show,
    )
    return [study]


def _of_logs(
    settings: HeadroomSettings, batches: tuple[int, ...], show: Progress
) -> list[Headroom]:
    from eaglerl.headroom.cost_files import read_cost
    from eaglerl.headroom.logged_cost import cost_of_steps
    from eaglerl.headroom.step_log import read_steps

    steps = read_steps(settings.logs)
    cost: StepCost
    cost = cost_of_steps(steps) if settings.cost is None else read_cost(settings.cost)
    return _of_steps(settings, steps, cost, batches, show)


def _of_steps(
    settings: HeadroomSettings,
    steps: Steps,
    cost: StepCost,
    batches: tuple[int, ...],
    show: Progress,
) -> list[Headroom]:
    from eaglerl.headroom.chain_study import ChainOptions, study_steps

    if settings.trees is not None:
        raise typer.BadParameter(
            "it is for traces of one request at a time; chains have --levels", param_hint="--trees"
        )
    return [
        study_steps(
            steps,
            cost,
            ChainOptions(
                batch=batch, levels=settings.levels, folds=settings.folds, seed=settings.seed
            ),
            source=", ".join(path.name for path in settings.logs),
            progress=show,
        )
        for batch in batches
    ]


def _write_page(studies: list[Headroom], path: Path) -> None:
    try:
        from eaglerl.headroom.page import write_headroom
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a page needs {error.name}: install the extra with pip install 'eaglerl[report]'"
        ) from error
    write_headroom(studies, path)
