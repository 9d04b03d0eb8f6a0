"""`eaglerl report`: comparisons as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.options import question_paths
from eaglerl.cli.shared.terminal import DebugOption, command, notes, progress_bar

_TRACES_PANEL = "Bounds and policies on traces"


@command
def report(
    comparisons: Annotated[
        list[Path],
        typer.Argument(
            metavar="COMPARISON...",
            help="Folders that `compare` wrote, finished or not.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="HTML file to write.",
        ),
    ] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="FOLDER",
            help="Write the figures there as PNG files, too.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            "--questions",
            metavar="FILE|FOLDER",
            help="The question files, so that prompts are shown as text; may be repeated.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="FILE/ID",
            help="The one over whose answer the policies' choices are shown; default: one with the "
            "median gain.",
            show_default=False,
        ),
    ] = None,
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            "--traces",
            metavar="FOLDER",
            help="Traces of `record`, of prompts that the policies were not trained on: adds "
            "headroom, captured share, cache intervals, acceptance expected and found. May be "
            "repeated.",
            show_default=False,
            rich_help_panel=_TRACES_PANEL,
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            "--cost",
            metavar="FILE",
            help="Table of `calibrate`; needed with --traces.",
            show_default=False,
            rich_help_panel=_TRACES_PANEL,
        ),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="A calibration.json, besides those in the folders of the policies' runs; may "
            "be repeated.",
            show_default=False,
            rich_help_panel=_TRACES_PANEL,
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write what comparisons say as one HTML file that needs nothing beside it.

    It says in words whether the policies beat the tuned constant tree, and shows: speeds with
    intervals, with and without prompts that loop; gains by set of questions; acceptance length
    against cycle time; where the time goes; what the policies decide. What was not measured is
    named. Modes whose output differs from plain decoding are shown as failed.

    Needs the extra `report`.
    """
    if bool(traces) != bool(cost):
        raise typer.BadParameter(
            "--traces and --cost go together: traces tell no time", param_hint="--traces"
        )
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.cost.cost_table import CostTable
        from eaglerl.evaluation.report import Evidence, write_report
        from eaglerl.traces.trace_set import TraceSet

        evidence = []
        for index, folder in enumerate(comparisons):
            show(f"reading {folder}", index / len(comparisons))
            evidence.append(
                Evidence.read(
                    folder,
                    questions=question_paths(questions or ()),
                    name=_name(folder, comparisons),
                )
            )
        files = write_report(
            evidence,
            output,
            traces=[TraceSet(folder) for folder in traces or ()],
            cost=CostTable.from_json(cost) if cost else None,
            calibration=calibration or (),
            question=question,
            figures=figures,
            progress=show,
        )
    beside = f", {len(files) - 1} figures are in {figures}" if figures else ""
    notes().print(f"the report is in {files[0]}{beside}", markup=False, soft_wrap=True)


def _name(folder: Path, folders: list[Path]) -> str:
    """The folder's own name, or its path where that is not enough to tell it from the others."""
    name = folder.resolve().name
    alike = [other for other in folders if other.resolve().name == name]
    return name if len(alike) == 1 else str(folder)
