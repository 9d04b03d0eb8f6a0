"""Figures of bounds, cache intervals and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from eaglerl.evaluation.report.blocks import Picture
from eaglerl.evaluation.report.calibration import Bin
from eaglerl.evaluation.report.figures import COLORS, HATCHES, INK, MARKERS, PAPER, draw
from eaglerl.evaluation.report.speed_plots import shorten
from eaglerl.evaluation.report.trace_study import CachedRun


def speeds(name: str, rows: Sequence[tuple[str, float, str]]) -> Picture:
    """Draw bars of tokens per second from (name, speed, "bound", "constant" or "policy")."""
    kinds = ("constant", "policy", "bound")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        for place, (_, speed, kind) in zip(places, rows, strict=True):
            index = kinds.index(kind)
            axes.barh(
                place, speed, height=0.64, color=COLORS[(6, 0, 2)[index]],
                hatch=HATCHES[(0, 1, 2)[index]], edgecolor=PAPER, linewidth=0.6,
            )  # fmt: skip
            axes.annotate(
                f"{speed:.1f}", (speed, place), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8.5,
            )  # fmt: skip
        axes.set_yticks(places, [shorten(label, 44) for label, _, _ in rows])
        axes.set_xlim(0, 1.1 * max(speed for _, speed, _ in rows))
        axes.set_xlabel("tokens per second by the cost table")
        axes.grid(axis="x")

    told = "; ".join(f"{label} {speed:.1f}" for label, speed, _ in rows)
    return draw(
        name,
        (8.2, 0.8 + 0.33 * len(rows)),
        paint,
        alt=f"Tokens per second by the cost table: {told}.",
        caption=(
            "Tokens per second by the cost table. Plain bars: constants. Striped bars: policies, "
            "without their own time. Dotted bars: bounds, which know the future."
        ),
    )


def interval_sweep(name: str, sweeps: Mapping[str, Sequence[CachedRun]]) -> Picture:
    """Draw speed and share of decisions against the number of cycles that a decision serves."""

    def paint(figure: Figure) -> None:
        speed, asked = figure.subplots(1, 2)
        for index, (label, runs) in enumerate(sweeps.items()):
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            fixed = [run for run in runs if run.name != "adaptive"]
            adaptive = [run for run in runs if run.name == "adaptive"]
            places = range(len(fixed))
            for axes, values in (
                (speed, lambda run: run.tokens_per_second),
                (asked, lambda run: 100 * run.decisions),
            ):
                axes.plot(places, [values(run) for run in fixed], label=shorten(label), **style)
                axes.plot(
                    [len(fixed)] * len(adaptive), [values(run) for run in adaptive], **style,
                    linestyle="none", markerfacecolor="none",
                )  # fmt: skip
            names = [run.name for run in runs]
            for axes in (speed, asked):
                axes.set_xticks(range(len(names)), names)
        speed.set(xlabel="cycles that a decision serves", ylabel="tokens per second")
        asked.set(xlabel="cycles that a decision serves", ylabel="decisions per 100 cycles")
        asked.set_ylim(bottom=0)
        for axes in (speed, asked):
            axes.grid(axis="y")
        figure.legend(*speed.get_legend_handles_labels(), loc="outside upper left", ncols=3)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{run.name} {run.tokens_per_second:.2f}" for run in runs)
        for label, runs in sweeps.items()
    )
    return draw(
        name,
        (8.2, 3.4),
        paint,
        alt=f"Tokens per second by the cycles that a decision serves. {told}.",
        caption=(
            "What it costs to decide less often, on the traces, without the policy's own time; "
            "open markers: the adaptive cache."
        ),
    )


def reliability(name: str, tables: Mapping[str, Sequence[Bin]], label: str) -> Picture:
    """Draw predicted probabilities against observed frequencies."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=INK, alpha=0.6, label="perfectly calibrated")
        for index, (source, bins) in enumerate(tables.items()):
            known = [one for one in bins if one.count]
            axes.plot(
                [one.predicted for one in known],
                [one.found for one in known],
                marker=MARKERS[index % len(MARKERS)],
                color=COLORS[index % len(COLORS)],
                linestyle=("-", "-.", ":")[index % 3],
                label=shorten(source, 40),
            )
        axes.set(xlabel="probability predicted", ylabel="share that came true")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.grid()
        axes.legend(loc="upper left", fontsize=8.5)

    told = "; ".join(
        f"{source}: "
        + ", ".join(f"{one.predicted:.2f} → {one.found:.2f}" for one in bins if one.count)
        for source, bins in tables.items()
    )
    return draw(
        name,
        (5.6, 4.4),
        paint,
        alt=f"Predicted probabilities and the shares that came true for {label}. {told}.",
        caption=f"Calibration of {label}. On the dashed line, predictions are exactly calibrated.",
    )
