"""`eaglerl report`: comparisons as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from eaglerl.cli.shared.options import question_paths
from eaglerl.cli.shared.settings import settings_command
from eaglerl.cli.shared.terminal import DebugOption, progress_bar, say

_TRACES_PANEL = "Bounds and policies on traces"


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Options of `eaglerl report`."""

    comparisons: Annotated[
        list[Path],
        typer.Argument(
            metavar="COMPARISON...",
            help="Folders that `compare` wrote, complete or not.",
            show_default=False,
        ),
    ]
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write.")
    ] = Path("report.html")
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="FOLDER",
            help="Also write the figures there as PNG files.",
            show_default=False,
        ),
    ] = None
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            "--questions",
            metavar="FILE|FOLDER",
            help="The question files, to show prompts as text; repeatable.",
            show_default=False,
        ),
    ] = None
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="FILE/ID",
            help="Question for which the policies' choices are shown, cycle by cycle; default: one "
            "with the median gain.",
            show_default=False,
        ),
    ] = None
    traces: Annotated[
        list[Path] | None,
        typer.Option(
            "--traces",
            metavar="FOLDER",
            help="Traces from `record`, of prompts that the policies were not trained on. Adds the "
            "headroom and the share captured, action cache intervals, and predicted against "
            "actual acceptance. Repeatable.",
            show_default=False,
            rich_help_panel=_TRACES_PANEL,
        ),
    ] = None
    cost: Annotated[
        Path | None,
        typer.Option(
            "--cost",
            metavar="FILE",
            help="Cost table from `calibrate`; required with --traces.",
            show_default=False,
            rich_help_panel=_TRACES_PANEL,
        ),
    ] = None
    debug: DebugOption = False

    def __post_init__(self) -> None:
        if bool(self.traces) != bool(self.cost):
            raise typer.BadParameter(
                "--traces and --cost go together: traces hold no times", param_hint="--traces"
            )


@settings_command
def report(settings: ReportSettings) -> None:
    """Write comparisons as one self-contained HTML file.

    The report says whether the policies beat the tuned constant tree. It shows speeds with
    confidence intervals, with and without prompts whose answer loops; gains by set of questions;
    mean acceptance length against cycle time; where the time goes; and what the policies choose.
    It lists what was not measured. Modes whose output differs from plain decoding are shown as
    failed.

    Needs the extra `report`.
    """
    with progress_bar() as show:
        show("loading libraries", 0.0)
        from eaglerl.cost.cost_table import CostTable
        from eaglerl.evaluation.report import Evidence, write_report
        from eaglerl.traces.trace_set import TraceSet

        evidence = []
        for index, folder in enumerate(settings.comparisons):
            show(f"reading {folder}", index / len(settings.comparisons))
            evidence.append(
                Evidence.read(
                    folder,
                    questions=question_paths(settings.questions or ()),
                    name=_name(folder, settings.comparisons),
                )
            )
        files = write_report(
            evidence,
            settings.output,
            traces=[TraceSet(folder) for folder in settings.traces or ()],
            cost=CostTable.from_json(settings.cost) if settings.cost else None,
            question=settings.question,
            figures=settings.figures,
            progress=show,
        )
    figures = f", {len(files) - 1} figures are in {settings.figures}" if settings.figures else ""
    say(f"the report is in {files[0]}{figures}")


def _name(folder: Path, folders: list[Path]) -> str:
    """Return the folder's own name, or its path if others have the same name."""
    name = folder.resolve().name
    alike = [other for other in folders if other.resolve().name == name]
    return name if len(alike) == 1 else str(folder)
