"""From comparisons to the report's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from eaglerl.cost.cost_table import CostTable
from eaglerl.evaluation.report.blocks import Chapter
from eaglerl.evaluation.report.calibration import (
    Calibration,
    find_calibration,
    read_calibration,
)
from eaglerl.evaluation.report.evidence import POLICY_KINDS, Evidence
from eaglerl.evaluation.report.page import render
from eaglerl.evaluation.report.sections import comparison_chapter
from eaglerl.evaluation.report.trace_sections import bounds_chapter
from eaglerl.evaluation.report.trace_study import Progress, study_traces
from eaglerl.files import atomic_path, exclusive_file
from eaglerl.traces.trace_set import TraceSet


def write_report(
    comparisons: Sequence[Evidence],
    output: str | Path,
    *,
    traces: Sequence[TraceSet] = (),
    cost: CostTable | None = None,
    calibration: Sequence[str | Path] = (),
    question: str | None = None,
    figures: str | Path | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> list[Path]:
    """Write comparisons as one HTML file that holds its figures.

    Args:
        comparisons: at least one, of distinct names.
        output: the HTML file.
        traces: for headroom, captured share, cache intervals and expectations; of prompts that no
            policy was trained on.
        cost: needed with traces.
        calibration: files besides those that lie in the folders of the policies' runs.
        question: see `comparison_chapter`.
        figures: folder for the figures as PNG files, too; it is made.
        progress: told what is being done and the fraction done.

    Returns:
        All files, the HTML file first.

    Raises:
        AlreadyLockedError: another process is writing this report.
        ValueError: no comparison, two of one name, traces without a cost table or of different
            targets and heads, or a file that is malformed. Nothing was written then.
    """
    output = Path(output)
    names = [evidence.name for evidence in comparisons]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"comparisons must be at least one, of distinct names, got {names}")
    if traces and cost is None:
        raise ValueError("cost must be given with traces, which tell no time")
    if not output.parent.is_dir():
        raise ValueError(f"output must lie in an existing folder, got {str(output)!r}")
    if question is not None and not any(question in _answered(e) for e in comparisons):
        some = sorted(_answered(comparisons[0]))[:5]
        raise ValueError(f"question must be one that was decoded, as {some}, got {question!r}")
    policies = policy_specs(comparisons)
    calibrations = _calibrations(policies, calibration)
    chapters = []
    for index, evidence in enumerate(comparisons):
        progress(f"figures of {evidence.name}", index / len(comparisons))
        wanted = question if question in _answered(evidence) or len(names) == 1 else None
        chapters.append(comparison_chapter(evidence, f"c{index + 1}", question=wanted))
    study = None
    if traces:
        for other in traces[1:]:
            other.check_ids(target_id=traces[0].target_id, head_id=traces[0].head_id)
        study = study_traces(
            [trace for folder in traces for trace in folder],
            cost,
            policies,
            target_id=traces[0].target_id,
            head_id=traces[0].head_id,
            chosen=next((e.tuned_trees for e in comparisons if e.tuned_trees), None),
            progress=progress,
        )
    chapters.append(bounds_chapter(study, calibrations))
    with exclusive_file(output):
        return _write(output, _title(names), chapters, None if figures is None else Path(figures))


def policy_specs(comparisons: Sequence[Evidence]) -> dict[str, str]:
    """Specs of all learned policies by label; a label that comes twice for others gets a name."""
    specs: dict[str, str] = {}
    for evidence in comparisons:
        for label, mode in evidence.comparison.manifest.modes.items():
            if mode.spec.partition(":")[0] not in POLICY_KINDS or mode.spec in specs.values():
                continue
            specs[label if label not in specs else f"{label} of {evidence.name}"] = mode.spec
    return specs


def _calibrations(
    policies: Mapping[str, str], files: Sequence[str | Path]
) -> dict[str, Calibration]:
    found = {str(file): read_calibration(file) for file in files}
    for label, spec in policies.items():
        file = find_calibration(spec.partition(":")[2])
        if file is not None:
            found[label] = read_calibration(file)
    return found


def _answered(evidence: Evidence) -> set[str]:
    return {record.question for record in evidence.comparison.records}


def _title(names: Sequence[str]) -> str:
    return f"Comparison {names[0]}" if len(names) == 1 else f"{len(names)} comparisons"


def _write(
    output: Path, title: str, chapters: Sequence[Chapter], figures: Path | None
) -> list[Path]:
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    made = f"Made by eaglerl {version('eaglerl')} on {moment}. This file needs nothing beside it."
    page = render(title, chapters, made)
    written = [output]
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in (picture for chapter in chapters for picture in chapter.pictures):
            path = figures / f"{picture.name}.png"
            with atomic_path(path) as temporary:
                temporary.write_bytes(picture.png)
            written.append(path)
    # Last: where there is a page, there are the figures that were asked for with it.
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return written
