"""Writing comparisons as a report: the HTML file, and the figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from eaglerl.cost.cost_table import CostTable
from eaglerl.evaluation.report.blocks import Chapter
from eaglerl.evaluation.report.evidence import POLICY_KINDS, Evidence
from eaglerl.evaluation.report.page import render
from eaglerl.evaluation.report.sections import comparison_chapter
from eaglerl.evaluation.report.trace_sections import bounds_chapter
from eaglerl.evaluation.report.trace_study import Progress, TraceStudy, study_traces
from eaglerl.files import atomic_path, exclusive_file
from eaglerl.traces.trace_set import TraceSet


def write_report(
    comparisons: Sequence[Evidence],
    output: str | Path,
    *,
    traces: Sequence[TraceSet] = (),
    cost: CostTable | None = None,
    question: str | None = None,
    figures: str | Path | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> list[Path]:
    """Write comparisons as one HTML file that holds its figures.

    Args:
        comparisons: at least one, of distinct names.
        output: the HTML file.
        traces: recorded on prompts that no policy was trained on; for headroom, captured share,
            cache intervals, expected acceptance and calibration.
        cost: cost table of the machine; needed with traces.
        question: see `comparison_chapter`.
        figures: folder to write the figures to as PNG files; created if it does not exist.
        progress: called with the current stage and the fraction done.

    Returns:
        All files written, the HTML file first.

    Raises:
        AlreadyLockedError: another process is writing this report.
        ValueError: there is no comparison, two have the same name, traces come without a cost table
            or from different targets or heads, or a file is malformed. Nothing is written then.
    """
    output = Path(output)
    _check_arguments(comparisons, output, traces, cost, question)
    policies = policy_specs(comparisons)
    chapters = []
    for index, evidence in enumerate(comparisons):
        progress(f"figures of {evidence.name}", index / len(comparisons))
        wanted = question if question in _answered(evidence) or len(comparisons) == 1 else None
        chapters.append(comparison_chapter(evidence, f"c{index + 1}", question=wanted))
    study = None
    if cost is not None and traces:
        study = _study(traces, cost, policies, comparisons, progress)
    chapters.append(bounds_chapter(study))
    title = _title([evidence.name for evidence in comparisons])
    with exclusive_file(output):
        return write_page(output, title, chapters, None if figures is None else Path(figures))


def _check_arguments(
    comparisons: Sequence[Evidence],
    output: Path,
    traces: Sequence[TraceSet],
    cost: CostTable | None,
    question: str | None,
) -> None:
    names = [evidence.name for evidence in comparisons]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"comparisons must be at least one, of distinct names, got {names}")
    if traces and cost is None:
        raise ValueError("cost must be given with traces, which hold no times")
    if not output.parent.is_dir():
        raise ValueError(f"output must lie in an existing folder, got {str(output)!r}")
    if question is not None and not any(question in _answered(e) for e in comparisons):
        some = sorted(_answered(comparisons[0]))[:5]
        raise ValueError(f"question must be one that was decoded, as {some}, got {question!r}")


def _study(
    traces: Sequence[TraceSet],
    cost: CostTable,
    policies: Mapping[str, str],
    comparisons: Sequence[Evidence],
    progress: Progress,
) -> TraceStudy:
    """Study the traces with the policies and the tuned trees of the comparisons."""
    first = traces[0]
    for other in traces[1:]:
        other.check_ids(target_id=first.target_id, head_id=first.head_id)
    return study_traces(
        [trace for folder in traces for trace in folder],
        cost,
        policies,
        head_id=first.head_id,
        chosen=next((e.tuned_trees for e in comparisons if e.tuned_trees), None),
        progress=progress,
    )


def policy_specs(comparisons: Sequence[Evidence]) -> dict[str, str]:
    """Return all policies' specs by label; a repeated label gets its comparison's name."""
    specs: dict[str, str] = {}
    for evidence in comparisons:
        for label, mode in evidence.comparison.manifest.modes.items():
            if mode.spec.partition(":")[0] not in POLICY_KINDS or mode.spec in specs.values():
                continue
            specs[label if label not in specs else f"{label} of {evidence.name}"] = mode.spec
    return specs


def _answered(evidence: Evidence) -> set[str]:
    return {record.question for record in evidence.comparison.records}


def _title(names: Sequence[str]) -> str:
    return f"Comparison {names[0]}" if len(names) == 1 else f"{len(names)} comparisons"


def write_page(
    output: Path, title: str, chapters: Sequence[Chapter], figures: Path | None = None
) -> list[Path]:
    """Write chapters as one HTML file; the caller holds its lock.

    Args:
        output: the HTML file.
        title: of the page.
        chapters: in order.
        figures: folder to write the figures to as PNG files; created if it does not exist.

    Returns:
        All files written, the HTML file first.
    """
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
    # The page comes last: if it exists, so do the figures that were asked for with it.
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return written
