"""The chapter of one comparison."""

from __future__ import annotations

from collections.abc import Sequence

from eaglerl.evaluation.report.blocks import (
    Block,
    Cell,
    Chapter,
    Paragraph,
    Section,
    Table,
    not_measured,
)
from eaglerl.evaluation.report.evidence import CONSTANT_KINDS, PLAIN, TUNED, Evidence
from eaglerl.evaluation.report.many_at_once_section import many_at_once_sections
from eaglerl.evaluation.report.multiple_tests import PairedTest, paired_tests
from eaglerl.evaluation.report.policy_sections import policy_sections
from eaglerl.evaluation.report.speed_plots import (
    Components,
    Point,
    components,
    domain_gains,
    gains,
    pareto,
)
from eaglerl.evaluation.report.words import (
    FEWEST_DOMAINS_WON,
    NOTHING,
    WORST_DOMAIN,
    headlines,
    number,
    outcome,
    percent,
    probability,
    share,
    verdict,
    with_interval,
    worth_using,
)
from eaglerl.evaluation.statistics.summary import LOOP_PERIOD, LOOP_TOKENS, ModeSummary, known

# More markers could not be told apart.
_MOST_IN_A_FIGURE = 6


def comparison_chapter(evidence: Evidence, anchor: str, *, question: str | None = None) -> Chapter:
    """Make the chapter of one comparison.

    Args:
        evidence: the comparison.
        anchor: distinct within the report.
        question: question whose answer is shown in detail; a typical one by default.

    Raises:
        ValueError: no policy has answered the question.
    """
    labels = [mode.mode for mode in evidence.ranked]
    tests = paired_tests(evidence.by_mode, evidence.reference, labels)
    sections = [
        _speed(evidence, anchor, tests),
        _domains(evidence, anchor),
        *many_at_once_sections(evidence, anchor),
        _pareto(evidence, anchor),
        _components(evidence, anchor),
        *policy_sections(evidence, anchor, question),
        _method(evidence, anchor),
    ]
    return Chapter(anchor, evidence.name, _facts(evidence), headlines(evidence, tests), sections)


def _facts(evidence: Evidence) -> list[tuple[str, str]]:
    manifest = evidence.comparison.manifest
    settings = manifest.configuration
    temperature = settings["temperature"]
    return [
        ("Questions", f"{len(manifest.questions)}, split {settings.get('split', 'unknown')}"),
        ("Repeats", str(settings["repeats"])),
        ("Decoding", f"temperature {temperature:g}" if temperature else "greedy"),
        ("New tokens", f"up to {settings['max_new_tokens']} per answer"),
        ("Gains are over", evidence.reference_words),
        ("Machine", manifest.machine),
    ]


def _speed(evidence: Evidence, anchor: str, tests: dict[str, PairedTest]) -> Section:
    blocks: list[Block] = []
    looping = len(evidence.summary.looping)
    if evidence.reference != TUNED:
        blocks.append(
            not_measured(
                "The tuned constant tree", f"Gains are over {evidence.reference_words} instead."
            )
        )
    rows = {
        mode.mode: interval
        for mode in evidence.ranked
        if mode.mode != evidence.reference and (interval := evidence.gain(mode.mode)) is not None
    }
    if rows:
        blocks.append(gains(f"{anchor}-gains", rows, _short_reference(evidence)))
    blocks.append(
        Table(
            "Speed, the fastest mode first",
            (
                "mode", "tokens/s", "gain, 95 % interval", f"without the {looping} that loop",
                "outcome", "p", "p corrected", "all-in tokens/s",
            ),
            [_speed_row(evidence, mode, tests) for mode in [*evidence.ranked, *evidence.failed]],
            "Tokens per second count decoding: drafting, verification, policy and loop. All-in "
            "adds the prefills. Gains and outcomes are paired over the questions. p: Wilcoxon's "
            f"signed-rank test over questions, corrected after Holm for {len(tests)} tests.",
        )
    )  # fmt: skip
    for label in evidence.policies:
        if evidence.by_domain(label):
            met, why = worth_using(evidence, label)
            blocks.append(Paragraph(_rule(label, met, why)))
    if not looping:
        blocks.append(Paragraph("No answer of plain decoding ends in a loop.", "note"))
    return Section(f"{anchor}-speed", "Speed", blocks)


def _rule(label: str, met: bool, why: str) -> str:
    rule = (
        f"the interval lies above the tuned constant, at least {FEWEST_DOMAINS_WON} sets are won, "
        f"and none is below {percent(WORST_DOMAIN, 0)}"
    )
    advice = "use the policy" if met else "use the tuned constant instead"
    return (
        f"{label} {'meets' if met else 'does not meet'} the rule that was fixed beforehand "
        f"({rule}): {why}. By it, {advice}."
    )


def _speed_row(
    evidence: Evidence, mode: ModeSummary, tests: dict[str, PairedTest]
) -> list[str | Cell]:
    label = mode.mode
    if mode.failed:
        return [
            Cell(label), Cell(number(mode.tokens_per_second), "faint"), NOTHING, NOTHING,
            Cell("failed: output differs", "failed"), NOTHING, NOTHING, NOTHING,
        ]  # fmt: skip
    if label == evidence.reference:
        middle: list[str | Cell] = ["reference", "reference", "reference", NOTHING, NOTHING]
    else:
        test = tests.get(label)
        rest = evidence.gain_without_looping(label) if evidence.summary.looping else None
        middle = [
            with_interval(evidence.gain(label)),
            with_interval(rest),
            outcome(evidence.gain(label)),
            probability(test.p_value) if test else NOTHING,
            probability(test.corrected) if test else NOTHING,
        ]
    speeds = number(mode.tokens_per_second), number(mode.all_in_tokens_per_second)
    return [label, speeds[0], *middle, speeds[1]]


def _domains(evidence: Evidence, anchor: str) -> Section:
    domains = list(evidence.summary.by_domain)
    shown = [
        mode.mode
        for mode in evidence.ranked
        if mode.mode != evidence.reference and evidence.by_domain(mode.mode)
    ]
    if not shown:
        return Section(f"{anchor}-sets", "By set of questions", [not_measured("A second mode")])
    chosen = _interesting(evidence, shown)
    rows = {label: evidence.by_domain(label) for label in chosen}
    blocks: list[Block] = [
        domain_gains(f"{anchor}-sets-gains", rows, domains, _short_reference(evidence)),
        Table(
            f"Gain over {evidence.reference_words} by set, with 95 % intervals",
            ("mode", *domains),
            [
                [
                    label,
                    *(
                        Cell(with_interval(interval), verdict(interval))
                        if (interval := evidence.by_domain(label).get(domain))
                        else NOTHING
                        for domain in domains
                    ),
                ]
                for label in shown
            ],
        ),
    ]
    if len(chosen) < len(shown):
        blocks.append(
            Paragraph(
                f"The figure shows {len(chosen)} modes, policies first; the table has all.", "note"
            )
        )
    return Section(f"{anchor}-sets", "By set of questions", blocks)


def _interesting(evidence: Evidence, labels: Sequence[str]) -> list[str]:
    """Choose the modes for a small figure: policies, then others that decide, the fastest first."""
    policies = [label for label in labels if label in evidence.policies]
    deciding = [
        label
        for label in labels
        if label not in policies and evidence.kind(label) not in CONSTANT_KINDS
    ]
    rest = [
        label
        for label in labels
        if label not in policies + deciding and evidence.kind(label) not in ("plain", "generate")
    ]
    return (policies + deciding + rest or list(labels))[:_MOST_IN_A_FIGURE]


def _pareto(evidence: Evidence, anchor: str) -> Section:
    points = []
    for mode in evidence.ranked:
        seconds = cycle_seconds(evidence, mode.mode)
        if seconds:
            kind = evidence.kind(mode.mode)
            points.append(Point(mode.mode, 1e3 * seconds, mode.acceptance_length, kind))
    title = "Acceptance length against cycle time"
    if not points:
        return Section(f"{anchor}-pareto", title, [not_measured("Cycles")])
    rows: list[list[str | Cell]] = [
        [
            mode.mode,
            number(mode.acceptance_length, 2),
            number(1e3 * cycle_seconds(evidence, mode.mode), 2),
            number(mode.token_milliseconds_p50, 2),
            number(mode.token_milliseconds_p99, 2),
            share(mode.wasted_drafts) if mode.wasted_drafts is not None else NOTHING,
            "not known" if mode.host_syncs is None else number(mode.host_syncs, 2),
            _output(evidence, mode),
        ]
        for mode in [*evidence.ranked, *evidence.failed]
    ]
    table = Table(
        "Tokens and time per cycle",
        (
            "mode", "acceptance length", "ms per cycle", "ms per token, p50", "p99",
            "wasted drafts", "host syncs per cycle", "output",
        ),
        rows,
        "Acceptance length: tokens per cycle, the bonus token included. A token's time is its "
        "cycle's, shared equally. Wasted drafts: verified rows that were not accepted.",
    )  # fmt: skip
    return Section(f"{anchor}-pareto", title, [pareto(f"{anchor}-pareto-plane", points), table])


def _output(evidence: Evidence, mode: ModeSummary) -> str | Cell:
    if not evidence.greedy:
        return "sampled, not compared"
    if mode.failed:
        differ = mode.compared - mode.identical
        return Cell(f"differs in {differ} of {mode.compared}", "failed")
    return "identical" if mode.compared else "not compared"


def _components(evidence: Evidence, anchor: str) -> Section:
    rows = [
        part
        for mode in evidence.ranked
        if (part := mean_components(evidence, mode.mode)) is not None
    ]
    title = "Where the time goes"
    if not rows:
        return Section(f"{anchor}-time", title, [not_measured("Cycles")])
    cells = [
        [
            row.label,
            number(row.draft, 2),
            number(row.verify, 2),
            "not known" if row.policy is None else number(row.policy, 3),
            number(row.rest, 2),
            "not known"
            if (spent := evidence.summaries[row.label].policy_share) is None
            else share(spent, 2),
        ]
        for row in rows
    ]
    table = Table(
        "Milliseconds of a mean cycle",
        ("mode", "draft", "verification", "policy", "rest of the loop", "policy's share"),
        cells,
        "The policy's time is that of its calls, including the preparation of their inputs. A "
        "policy that is fused with the encoder has the whole fused call.",
    )
    picture = components(f"{anchor}-time-components", rows)
    return Section(f"{anchor}-time", title, [picture, table])


def cycle_seconds(evidence: Evidence, label: str) -> float:
    """Return the mean time of a mode's cycles, everything included; 0 if it has none."""
    records = evidence.by_mode[label]
    count = sum(len(turn.cycles) for record in records for turn in record.turns)
    return sum(record.decode_seconds for record in records) / count if count else 0.0


def mean_components(evidence: Evidence, label: str) -> Components | None:
    """Return a mode's mean milliseconds per cycle by component, or None without cycles."""
    turns = [turn for record in evidence.by_mode[label] for turn in record.turns]
    count = sum(len(turn.cycles) for turn in turns)
    if not count:
        return None
    draft = sum(sum(turn.cycles.draft_seconds) for turn in turns)
    verify = sum(sum(turn.cycles.verify_seconds) for turn in turns)
    told = known([turn.cycles.policy_seconds for turn in turns])
    policy = None if told is None else sum(sum(each) for each in told)
    rest = sum(turn.decode_seconds for turn in turns) - draft - verify - (policy or 0.0)
    scale = 1e3 / count
    return Components(
        label,
        draft * scale,
        verify * scale,
        None if policy is None else policy * scale,
        # Reading the clocks takes time, so that the parts may exceed the whole.
        max(0.0, rest * scale),
    )


def _method(evidence: Evidence, anchor: str) -> Section:
    manifest = evidence.comparison.manifest
    modes = Table(
        "The modes",
        ("mode", "description", "requested as"),
        [[label, mode.description, mode.spec] for label, mode in manifest.modes.items()],
    )
    load = "; ".join(
        f"repeat {index + 1}: median {median:.2f}, largest {largest:.2f}"
        for index, (median, largest) in enumerate(evidence.summary.load)
    )
    settings = ", ".join(
        f"{name} {value}" for name, value in manifest.configuration.items() if name != "files"
    )
    versions = ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
    texts = [
        "All modes decode the same questions in the same run, question by question in changing "
        "order. The headline is total tokens over total seconds, never a mean of ratios. Intervals "
        "are 95 % confidence intervals over questions, all repeats of one summed: the delta method "
        "on the logarithm of the ratio, with Student's t. When decoding greedily, every mode must "
        f"give the output of {PLAIN}; a mode that does not has failed and is not ranked.",
        f"A question loops if the last {LOOP_TOKENS} tokens of plain decoding's answer repeat with "
        f"a period of at most {LOOP_PERIOD}: such answers favour prompt lookup.",
        f"Settings: {settings}. Versions: {versions}. Target {manifest.target_id}, head "
        f"{manifest.head_id}.",
        f"Load averages of the machine when answers began: {load}. Processes: "
        f"{len(manifest.runs)}.",
    ]
    return Section(
        f"{anchor}-method", "How it was measured", [*(Paragraph(text) for text in texts), modes]
    )


def _short_reference(evidence: Evidence) -> str:
    return "the tuned constant" if evidence.reference == TUNED else evidence.reference_words
