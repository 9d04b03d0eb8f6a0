"""Results in sentences, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eaglerl.evaluation.report.blocks import Cell, Headline, Tone
from eaglerl.evaluation.report.evidence import Evidence
from eaglerl.evaluation.report.multiple_tests import PairedTest
from eaglerl.evaluation.statistics.summary import FEWEST_QUESTIONS
from eaglerl.ratio_intervals import Interval

#: Shown where there is no number.
NOTHING = "\N{EN DASH}"

#: The rule for recommending a policy, fixed before anything was measured.
WORST_DOMAIN = 0.99
FEWEST_DOMAINS_WON = 2

_OUTCOMES: dict[Tone, str] = {"won": "won", "lost": "lost", "even": "no difference"}


def verdict(interval: Interval | None) -> Tone:
    """Return won or lost if the interval excludes 1, otherwise even."""
    if interval is None or interval.questions < FEWEST_QUESTIONS:
        return "even"
    if interval.low > 1:
        return "won"
    return "lost" if interval.high < 1 else "even"


def percent(ratio: float, digits: int = 1) -> str:
    """Format a ratio as a gain in percent, with its sign."""
    return f"{100 * (ratio - 1):+.{digits}f} %".replace("-", "\N{MINUS SIGN}")


def share(value: float | None, digits: int = 0) -> str:
    """Format a share of 1 in percent."""
    return "not measured" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 1) -> str:
    """Format a number, or a dash if there is none."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def with_interval(interval: Interval | None) -> str:
    """Format a gain with its 95 % interval."""
    if interval is None:
        return NOTHING
    if interval.questions < FEWEST_QUESTIONS:
        return percent(interval.ratio)
    return f"{percent(interval.ratio)} [{_bound(interval.low)}, {_bound(interval.high)}]"


def outcome(interval: Interval | None) -> Cell:
    """Make a cell that says won, lost or no difference."""
    if interval is not None and interval.questions < FEWEST_QUESTIONS:
        return Cell("too few questions", "even")
    return Cell(_OUTCOMES[verdict(interval)], verdict(interval))


def probability(p_value: float) -> str:
    """Format a p-value."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def listing(names: Sequence[str]) -> str:
    """Join names with commas, and "and" before the last."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headlines(evidence: Evidence, tests: dict[str, PairedTest]) -> list[Headline]:
    """Write the results of a comparison: one headline per policy and per failed mode.

    Reasons not to trust the speeds come first.
    """
    summary = evidence.summary
    found = [
        Headline(f"Worthless as a measurement of speed: {sentence}.", "failed")
        for sentence in summary.disturbed
    ]
    if summary.progress:
        found.append(Headline(f"Preliminary: {summary.progress}.", "failed"))
    found += [_of_policy(evidence, label, tests.get(label)) for label in evidence.policies]
    if not evidence.policies:
        found.append(_without_policy(evidence))
    for mode in evidence.failed:
        differ = mode.compared - mode.identical
        found.append(
            Headline(
                f"{mode.mode} failed: {differ} of {mode.compared} outputs differ from plain "
                "decoding. It is not ranked.",
                "failed",
            )
        )
    return found


def worth_using(evidence: Evidence, label: str) -> tuple[bool, str]:
    """Return whether a policy meets the rule fixed beforehand, and the reason."""
    domains = evidence.by_domain(label)
    won = [name for name, interval in domains.items() if verdict(interval) == "won"]
    worst = min(domains, key=lambda name: domains[name].ratio)
    parts = [
        verdict(evidence.gain(label)) == "won",
        len(won) >= FEWEST_DOMAINS_WON,
        domains[worst].ratio >= WORST_DOMAIN,
    ]
    why = (
        f"overall {with_interval(evidence.gain(label))}; won on {len(won)} of {len(domains)} sets; "
        f"worst set {worst}, {percent(domains[worst].ratio)}"
    )
    return all(parts), why


def _bound(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}".replace("-", "\N{MINUS SIGN}")


def _of_policy(evidence: Evidence, label: str, test: PairedTest | None) -> Headline:
    interval = evidence.gain(label)
    if interval is None:
        return Headline(f"{label} has no question in common with the reference.", "even")
    tone, reference = verdict(interval), evidence.reference_words
    figures = f"{with_interval(interval)} tokens per second"
    if interval.questions < FEWEST_QUESTIONS:
        sentence = (
            f"{label}: {figures} over {reference}, on only {interval.questions} questions, too few "
            "to decide"
        )
    elif tone == "even":
        sentence = f"No difference between {label} and {reference} was shown: {figures}"
    else:
        sentence = f"{label} {'beat' if tone == 'won' else 'lost to'} {reference}: {figures}"
    sentence += f", {interval.questions} questions"
    if interval.questions >= FEWEST_QUESTIONS:
        sentence += ", 95 % interval in brackets"
    parts = [sentence, *_looping(evidence, label), *_domains(evidence, label)]
    if tone != "even" and test is not None and not test.stands:
        parts.append(
            f"The paired test does not confirm it after the correction for many modes (p = "
            f"{probability(test.corrected)})"
        )
    return Headline(". ".join(parts) + ".", tone)


def _looping(evidence: Evidence, label: str) -> list[str]:
    looping = len(evidence.summary.looping)
    if not looping:
        return []
    rest = evidence.gain_without_looping(label)
    if rest is None:
        return ["All answers end in a loop"]
    return [f"Without the {looping} questions that loop {with_interval(rest)}"]


def _domains(evidence: Evidence, label: str) -> list[str]:
    domains = evidence.by_domain(label)
    lost = [name for name, interval in domains.items() if verdict(interval) == "lost"]
    if lost:
        named = [f"{name} ({with_interval(domains[name])})" for name in lost]
        return [f"It lost on {listing(named)}"]
    if len(domains) < 2:
        return []
    lowest = min(domains, key=lambda name: domains[name].ratio)
    return [f"No set lost; the lowest is {lowest}, {with_interval(domains[lowest])}"]


def _without_policy(evidence: Evidence) -> Headline:
    if not evidence.ranked:
        return Headline("No valid mode is left to rank.", "failed")
    best = evidence.ranked[0]
    text = f"No policy was compared. The fastest mode is {best.mode}"
    if best.mode == evidence.reference:
        return Headline(f"{text}, the reference itself.", "even")
    interval = evidence.gain(best.mode)
    return Headline(
        f"{text}, {with_interval(interval)} tokens per second over {evidence.reference_words}.",
        verdict(interval),
    )
