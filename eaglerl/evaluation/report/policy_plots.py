"""Figures of what a policy decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from eaglerl.evaluation.report.blocks import Picture
from eaglerl.evaluation.report.figures import COLORS, INK, PAPER, draw
from eaglerl.evaluation.report.speed_plots import shorten
from eaglerl.evaluation.results.records import Cycles, Turn

Action = tuple[int, int, int, int]

#: Most columns of a heat map; further actions share one.
MOST_COLUMNS = 12

# Characters of labels that fit side by side below an axis.
_ROOM_FOR_LABELS = 80


def over_text(name: str, turn: Turn, label: str, question: str) -> Picture:
    """Draw T, D, K, looked-up tokens and accepted tokens of one answer, cycle by cycle."""
    cycles = turn.cycles
    edges = 1 + np.concatenate(([0], np.cumsum(cycles.tokens)))

    def paint(figure: Figure) -> None:
        rows, shape, accepted = figure.subplots(
            3, 1, sharex=True, gridspec_kw={"height_ratios": (1.1, 1.1, 1)}
        )
        _stairs(rows, edges, cycles.rows, COLORS[6], "rows verified", fill=True, hatch="...")
        _stairs(rows, edges, cycles.total_tokens, COLORS[0], "T of the head's tree")
        rows.set_ylabel("rows")
        _stairs(shape, edges, cycles.depth, COLORS[1], "D, rounds after the first")
        _stairs(shape, edges, cycles.top_k, COLORS[3], "K, width", style="--")
        if any(cycles.lookup_tokens):
            _stairs(shape, edges, cycles.lookup_tokens, COLORS[5], "looked-up tokens", style=":")
        shape.set_ylabel("D, K, looked up")
        _stairs(accepted, edges, cycles.tokens, COLORS[2], "tokens emitted", fill=True)
        if any(cycles.lookup_accepted):
            _stairs(
                accepted, edges, cycles.lookup_accepted, COLORS[5], "of them looked up",
                fill=True, hatch="///",
            )  # fmt: skip
        accepted.set_ylabel("tokens")
        accepted.set_xlabel("tokens of the answer")
        for axes in (rows, shape, accepted):
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, edges[-1])
            axes.grid(axis="y")
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)

    return draw(
        name,
        (8.2, 5.2),
        paint,
        alt=(
            f"Choices of {label} over the answer to {question}: {len(cycles)} cycles, T from "
            f"{min(cycles.total_tokens)} to {max(cycles.total_tokens)}, D from {min(cycles.depth)} "
            f"to {max(cycles.depth)}, K from {min(cycles.top_k)} to {max(cycles.top_k)}, "
            f"{sum(1 for n in cycles.lookup_tokens if n)} cycles with looked-up tokens, "
            f"{np.mean(cycles.tokens):.2f} tokens per cycle."
        ),
        caption=(
            f"The choices of {label} over one answer ({question}). A step is a cycle, as wide as "
            "its number of tokens."
        ),
    )


def heat_map(
    name: str, counts: Mapping[str, Counter[Action]], label: str, actions: Sequence[Action]
) -> Picture:
    """Draw the shares of a policy's actions in the cycles of each set of questions.

    Args:
        name: name of the figure.
        counts: number of cycles by action, for each set.
        label: the policy.
        actions: columns; all other actions share a last column.
    """
    columns = [action_text(action) for action in actions]
    table = np.array([[counts[d][a] for a in actions] for d in counts], dtype=float)
    totals = np.array([[sum(counts[d].values())] for d in counts], dtype=float)
    others = totals - table.sum(axis=1, keepdims=True)
    if others.any():
        table, columns = np.hstack((table, others)), [*columns, "all others"]
    shares = 100 * table / totals

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _heat(axes, shares, columns, [shorten(domain) for domain in counts])
        axes.set_xlabel("T / D / K, + number of looked-up tokens")

    told = "; ".join(
        f"{domain}: mostly {columns[int(row.argmax())]}, {row.max():.0f} %"
        for domain, row in zip(counts, shares, strict=True)
    )
    return draw(
        name,
        (_heat_width(len(columns)), 1.5 + 0.38 * len(counts)),
        paint,
        alt=f"Share of the actions of {label} by set of questions. {told}.",
        caption=f"How often {label} chose each action, in % of a set's cycles.",
    )


def rows_and_depth(name: str, cycles: Sequence[Cycles], label: str) -> Picture:
    """Draw how often the policy drafted trees of each size and depth."""
    sizes = np.concatenate([np.asarray(one.rows) for one in cycles])
    depths = np.concatenate(
        [np.where(np.asarray(c.total_tokens) > 1, np.asarray(c.depth), -1) for c in cycles]
    )
    borders = size_bins(sizes)
    names = [str(a) if a == b else f"{a}\N{EN DASH}{b}" for a, b in borders]
    levels = sorted(set(depths.tolist()), reverse=True)
    shares = np.array(
        [
            [100 * np.mean((depths == d) & (sizes >= a) & (sizes <= b)) for a, b in borders]
            for d in levels
        ]
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _heat(axes, shares, names, ["no tree" if d < 0 else f"D = {d}" for d in levels])
        axes.set_xlabel("rows verified, the root and looked-up tokens included")

    row, column = np.unravel_index(shares.argmax(), shares.shape)
    return draw(
        name,
        (_heat_width(len(borders)), 1.3 + 0.34 * len(levels)),
        paint,
        alt=(
            f"Share of the cycles of {label} by rows verified and depth; the most frequent are "
            f"{names[column]} rows at {'no tree' if levels[row] < 0 else f'depth {levels[row]}'}, "
            f"{shares.max():.0f} %."
        ),
        caption=f"Rows verified and depth drafted by {label}, in % of all cycles.",
    )


def expected_and_found(name: str, expected: np.ndarray, found: np.ndarray, label: str) -> Picture:
    """Draw the acceptance lengths that a policy expected against those that it got."""
    groups = [part for part in np.array_split(np.argsort(expected, kind="stable"), 10) if len(part)]
    means = np.array([[expected[g].mean(), found[g].mean()] for g in groups])
    errors = [1.96 * found[g].std() / np.sqrt(len(g)) for g in groups]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        end = 1.05 * max(means.max(), 1.0)
        axes.plot([1, end], [1, end], "--", color=INK, alpha=0.6, label="as expected")
        axes.errorbar(
            means[:, 0], means[:, 1], yerr=errors, fmt="o-", color=COLORS[0], capsize=3,
            label=shorten(label),
        )  # fmt: skip
        axes.set(xlabel="acceptance length expected", ylabel="acceptance length found")
        axes.grid()
        axes.legend(loc="upper left")

    told = "; ".join(f"expected {a:.2f}, found {b:.2f}" for a, b in means)
    return draw(
        name,
        (5.6, 4.2),
        paint,
        alt=f"Acceptance length expected and found by {label}, tenths of the cycles: {told}.",
        caption=(
            f"The acceptance length that {label} expected of what it verified, and the one that it "
            "got, in tenths of the cycles with 95 % intervals."
        ),
    )


def action_text(action: Action) -> str:
    """Format an action as ``T/D/K``, with the number of looked-up tokens if there are any."""
    total, depth, top_k, looked_up = action
    tree = f"{total}/{depth}/{top_k}" if total > 1 else "no tree"
    return f"{tree} +{looked_up}" if looked_up else tree


def size_bins(sizes: np.ndarray, most: int = MOST_COLUMNS) -> list[tuple[int, int]]:
    """Group sizes into ranges (first, last), of one size each or of about equally many."""
    values = np.unique(sizes)
    if len(values) <= most:
        return [(int(value), int(value)) for value in values]
    cuts = np.unique(np.quantile(sizes, np.linspace(0, 1, most + 1), method="nearest"))
    # The last range ends with the largest size, all others before the next one begins.
    return [
        (int(a), int(b if last else values[values < b][-1]))
        for a, b, last in zip(cuts, cuts[1:], [False] * (len(cuts) - 2) + [True], strict=False)
    ]


def _stairs(
    axes: Axes,
    edges: np.ndarray,
    values: Sequence[int],
    color: str,
    label: str,
    *,
    style: str = "-",
    fill: bool = False,
    hatch: str = "",
) -> None:
    if fill:
        axes.stairs(
            values, edges, fill=True, facecolor=color, alpha=0.55, hatch=hatch, edgecolor=PAPER,
            linewidth=0, label=label,
        )  # fmt: skip
    else:
        axes.stairs(
            values, edges, baseline=None, color=color, linewidth=1.8, linestyle=style, label=label
        )


def _heat(axes: Axes, shares: np.ndarray, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Draw cells with their numbers; a stronger colour means a larger share."""
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    largest = max(shares.max(), 1e-9)
    for (row, column), value in np.ndenumerate(shares):
        if value <= 0:
            continue
        axes.add_patch(_cell(column, row, float(value / largest)))
        text = f"{value:.0f}" if value >= 0.5 else "<1"
        axes.annotate(text, (column, row), ha="center", va="center", fontsize=8.5)
    axes.set_xticks(range(len(columns)), columns)
    if len(columns) * max(map(len, columns)) > _ROOM_FOR_LABELS:
        axes.tick_params(axis="x", rotation=40)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_alpha(0.3)


def _heat_width(columns: int) -> float:
    return min(8.2, 2.6 + 0.75 * columns)


def _cell(column: int, row: int, strength: float) -> Rectangle:
    width = 0.96
    return Rectangle(
        (column - width / 2, row - 0.46), width, 0.92,
        facecolor=COLORS[0], alpha=0.06 + 0.62 * strength, linewidth=0,
    )  # fmt: skip
