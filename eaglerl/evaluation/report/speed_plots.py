"""Figures of the modes' speeds and of where their time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eaglerl.evaluation.report.blocks import Picture
from eaglerl.evaluation.report.figures import COLORS, HATCHES, INK, MARKERS, PAPER, draw
from eaglerl.evaluation.report.words import percent, verdict, with_interval
from eaglerl.evaluation.statistics.summary import FEWEST_QUESTIONS
from eaglerl.ratio_intervals import Interval

_OUTCOME_MARKERS = {"won": (">", COLORS[2]), "lost": ("<", COLORS[4]), "even": ("o", COLORS[6])}


@dataclass(frozen=True)
class Point:
    """A mode as a point of cycle time and acceptance length.

    Attributes:
        label: its name.
        milliseconds: mean duration of a cycle.
        acceptance: mean acceptance length, the bonus token included.
        kind: modes of one kind share a marker.
    """

    label: str
    milliseconds: float
    acceptance: float
    kind: str

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second: the slope of the line from the origin."""
        return 1e3 * self.acceptance / self.milliseconds


@dataclass(frozen=True)
class Components:
    """Mean milliseconds of a cycle by component; the policy's are None if not known."""

    label: str
    draft: float
    verify: float
    policy: float | None
    rest: float


def gains(name: str, rows: Mapping[str, Interval], reference: str) -> Picture:
    """Draw the gains of modes over the reference with their intervals, the largest on top."""
    order = sorted(rows, key=lambda label: rows[label].ratio)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, label in enumerate(order):
            _interval(axes, rows[label], place)
        _gain_axis(axes, reference, [rows[label] for label in order])
        axes.set_yticks(range(len(order)), [shorten(label) for label in order])
        axes.set_ylim(-0.6, len(order) - 0.4)

    told = "; ".join(f"{label} {with_interval(rows[label])}" for label in reversed(order))
    return draw(
        name,
        (8.2, 0.9 + 0.31 * len(order)),
        paint,
        alt=f"Gain in tokens per second over {reference}: {told}.",
        caption=(
            f"Gain in decoding tokens per second over {reference}, with 95 % intervals "
            "over questions. A triangle to the right won, one to the left lost, a circle shows no "
            "difference."
        ),
    )


def domain_gains(
    name: str, rows: Mapping[str, Mapping[str, Interval]], domains: Sequence[str], reference: str
) -> Picture:
    """Draw the gains of some modes per set of questions."""
    labels = list(rows)
    height = 0.8 / max(1, len(labels))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, label in enumerate(labels):
            offset = 0.4 - height * (index + 0.5)
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            known = [(d, rows[label][d]) for d in domains if d in rows[label]]
            places = [len(domains) - 1 - domains.index(d) + offset for d, _ in known]
            axes.errorbar(
                [100 * (interval.ratio - 1) for _, interval in known],
                places,
                xerr=_errors([interval for _, interval in known]),
                fmt=style["marker"],
                color=style["color"],
                markersize=6,
                elinewidth=1.4,
                capsize=2.5,
                label=shorten(label),
            )
        _gain_axis(axes, reference, [i for modes in rows.values() for i in modes.values()])
        axes.set_yticks(range(len(domains)), [shorten(d) for d in reversed(domains)])
        axes.set_ylim(-0.6, len(domains) - 0.4)
        for border in range(1, len(domains)):
            axes.axhline(border - 0.5, color=INK, alpha=0.15, linewidth=0.8)
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{d} {percent(i.ratio)}" for d, i in modes.items())
        for label, modes in rows.items()
    )
    return draw(
        name,
        (8.2, 1.3 + len(domains) * max(0.42, 0.2 * len(labels))),
        paint,
        alt=f"Gain in tokens per second over {reference} by set of questions. {told}.",
        caption=f"Gain over {reference} by set of questions, with 95 % intervals.",
    )


def pareto(name: str, points: Sequence[Point]) -> Picture:
    """Draw acceptance length against cycle time, with lines of equal speed."""
    front = pareto_front(points)
    kinds = list(dict.fromkeys(point.kind for point in points))
    styles = {k: (MARKERS[i % len(MARKERS)], COLORS[i % len(COLORS)]) for i, k in enumerate(kinds)}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        times, lengths = ([getattr(p, n) for p in points] for n in ("milliseconds", "acceptance"))
        room = 0.1 * max(max(times) - min(times), 0.1 * max(times))
        x_range = (min(times) - room, max(times) + room)
        y_range = (0.8 * min(lengths), 1.1 * max(lengths))
        axes.set(xlim=x_range, ylim=y_range)
        _speed_lines(axes, points)
        steps = sorted(front, key=lambda point: point.milliseconds)
        axes.plot(
            [point.milliseconds for point in steps],
            [point.acceptance for point in steps],
            color=INK,
            linewidth=1.1,
            drawstyle="steps-post",
            alpha=0.6,
        )
        for number, point in enumerate(points, start=1):
            marker, color = styles[point.kind]
            axes.plot(
                point.milliseconds,
                point.acceptance,
                marker,
                color=color,
                markersize=8,
                markeredgecolor=INK,
                markeredgewidth=1.5 if point in front else 0.4,
                linestyle="none",
                label=f"{number}  {shorten(point.label, 30)}, {point.tokens_per_second:.1f}/s",
            )
        _number_points(axes, points, x_range, y_range)
        axes.set(
            xlabel="mean cycle, milliseconds (draft, verification, policy and loop)",
            ylabel="acceptance length, tokens per cycle",
        )
        figure.legend(loc="outside right upper", fontsize=8.5)

    told = "; ".join(
        f"{p.label} {p.acceptance:.2f} tokens in {p.milliseconds:.1f} ms" for p in points
    )
    return draw(
        name,
        (9.4, 4.9),
        paint,
        alt=f"Acceptance length against mean cycle time: {told}.",
        caption=(
            "Acceptance length against the time of a cycle. Points on one dotted line are equally "
            "fast; up and to the left is faster. The stepped line joins the modes that no other "
            "beats in both; their markers have a bold outline. The legend gives tokens per second."
        ),
    )


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point dominates."""
    return [
        point
        for point in points
        if not any(
            other.milliseconds <= point.milliseconds
            and other.acceptance >= point.acceptance
            and (other.milliseconds, other.acceptance) != (point.milliseconds, point.acceptance)
            for other in points
        )
    ]


def components(name: str, rows: Sequence[Components]) -> Picture:
    """Draw the components of a mean cycle."""
    parts = (
        ("draft", [row.draft for row in rows]),
        ("verification", [row.verify for row in rows]),
        ("policy", [row.policy or 0.0 for row in rows]),
        ("rest of the loop", [row.rest for row in rows]),
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(rows))[::-1]
        left = np.zeros(len(rows))
        for index, (part, values) in enumerate(parts):
            axes.barh(
                places,
                values,
                left=left,
                height=0.62,
                color=COLORS[index],
                hatch=HATCHES[index],
                edgecolor=PAPER,
                linewidth=0.6,
                label=part,
            )
            left += values
        for place, row, end in zip(places, rows, left, strict=True):
            told = "policy not known" if row.policy is None else _small(row.policy)
            axes.annotate(
                f"{end:.1f} ms; {told}",
                (end, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(places, [shorten(row.label) for row in rows])
        axes.set_xlim(0, 1.3 * left.max())
        axes.set_xlabel("milliseconds of a mean cycle")
        axes.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=4, fontsize=9)

    told = "; ".join(
        f"{row.label}: draft {row.draft:.2f}, verification {row.verify:.2f}, policy "
        f"{'not known' if row.policy is None else f'{row.policy:.3f}'}, rest {row.rest:.2f}"
        for row in rows
    )
    return draw(
        name,
        (8.2, 1.25 + 0.34 * len(rows)),
        paint,
        alt=f"Milliseconds of a mean cycle. {told}.",
        caption="A mean cycle by what it was spent on.",
    )


def shorten(label: str, length: int = 34) -> str:
    """Shorten a label to fit beside an axis, cutting its middle."""
    if len(label) <= length:
        return label
    half = (length - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


def _interval(axes: Axes, interval: Interval, place: float) -> None:
    marker, color = _OUTCOME_MARKERS[verdict(interval)]
    axes.errorbar(
        100 * (interval.ratio - 1),
        place,
        xerr=_errors([interval]),
        fmt=marker,
        color=color,
        markersize=7,
        elinewidth=1.6,
        capsize=3,
    )


def _errors(intervals: Sequence[Interval]) -> np.ndarray:
    """Return the lengths of the whiskers in percent, (2, n)."""
    ends = [_ends(interval) for interval in intervals]
    low = [max(0.0, one.ratio - end) for one, (end, _) in zip(intervals, ends, strict=True)]
    high = [max(0.0, end - one.ratio) for one, (_, end) in zip(intervals, ends, strict=True)]
    return 100 * np.array([low, high])


def _ends(interval: Interval) -> tuple[float, float]:
    """Return the ends of an interval, or the ratio twice for too few questions to show one."""
    if interval.questions < FEWEST_QUESTIONS:
        return interval.ratio, interval.ratio
    return interval.low, interval.high


def _gain_axis(axes: Axes, reference: str, intervals: Sequence[Interval]) -> None:
    axes.axvline(0, color=INK, linewidth=1.1)
    axes.set_xlabel(f"tokens per second over {reference}, %")
    axes.grid(axis="x")
    low = 100 * (min(_ends(interval)[0] for interval in intervals) - 1)
    high = 100 * (max(_ends(interval)[1] for interval in intervals) - 1)
    margin = 0.06 * max(high - low, 1.0)
    axes.set_xlim(min(low, 0) - margin, max(high, 0) + margin)


def _speed_lines(axes: Axes, points: Sequence[Point]) -> None:
    """Draw dotted lines of equal tokens per second within the axes' limits."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    speeds = [point.tokens_per_second for point in points]
    step = _round_step(min(speeds), max(speeds))
    for speed in np.arange(step * np.ceil(min(speeds) / step), max(speeds) + step, step):
        begin, end = max(left, 1e3 * bottom / speed), min(right, 1e3 * top / speed)
        if end <= begin:
            continue
        axes.plot([begin, end], [speed * begin / 1e3, speed * end / 1e3], ":", color=INK, alpha=0.4)
        # Above the axes or beside them, where no point can be.
        above = end < right
        axes.annotate(
            f"{speed:g}/s",
            (end, speed * end / 1e3),
            xytext=(0, 3) if above else (3, 0),
            textcoords="offset points",
            fontsize=7.5,
            alpha=0.8,
            ha="center" if above else "left",
            va="bottom" if above else "center",
            annotation_clip=False,
        )


def _round_step(low: float, high: float) -> float:
    """Return a round step that fits about four times between the two numbers."""
    rough = max(high - low, 0.05 * high) / 4
    power = 10 ** np.floor(np.log10(rough))
    return float(next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough))


def _number_points(
    axes: Axes,
    points: Sequence[Point],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    """Number the points, on the first side where there is no other number or point."""
    places = [
        (
            (point.milliseconds - x_range[0]) / (x_range[1] - x_range[0]),
            (point.acceptance - y_range[0]) / (y_range[1] - y_range[0]),
        )
        for point in points
    ]
    taken = list(places)
    sides = (
        (0.026, 0.0),
        (-0.026, 0.0),
        (0.0, 0.048),
        (0.0, -0.048),
        (0.03, 0.045),
        (-0.03, 0.045),
    )
    for number, (x, y) in enumerate(places, start=1):
        candidates = [(x + dx, y + dy) for dx, dy in sides]
        free = [
            place
            for place in candidates
            if all(abs(place[0] - a) > 0.02 or abs(place[1] - b) > 0.034 for a, b in taken)
        ]
        place = (free or candidates)[0]
        taken.append(place)
        axes.annotate(
            str(number), place, xycoords="axes fraction", fontsize=8.5, ha="center", va="center"
        )


def _small(milliseconds: float) -> str:
    if not milliseconds:
        return "no policy"
    return f"policy {1e3 * milliseconds:.0f} µs"
