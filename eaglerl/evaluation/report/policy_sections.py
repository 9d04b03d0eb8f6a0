"""Sections on what the policies of a comparison decide."""

from __future__ import annotations

from collections import Counter

import numpy as np

from eaglerl.evaluation.report.blocks import (
    Block,
    Paragraph,
    Passage,
    Section,
    Table,
    not_measured,
)
from eaglerl.evaluation.report.evidence import CONSTANT_KINDS, Evidence
from eaglerl.evaluation.report.policy_plots import (
    MOST_COLUMNS,
    Action,
    heat_map,
    over_text,
    rows_and_depth,
)
from eaglerl.evaluation.report.words import number, percent, share
from eaglerl.evaluation.results.records import Record, Turn
from eaglerl.evaluation.statistics.summary import uncut_actions

# Policies with a section of their own; the table has all.
_MOST_POLICIES = 3


def policy_sections(evidence: Evidence, anchor: str, question: str | None) -> list[Section]:
    """Make a section that compares decisions, and one for each of the fastest policies.

    Raises:
        ValueError: no policy has answered `question`.
    """
    deciding = [
        mode.mode for mode in evidence.ranked if evidence.kind(mode.mode) not in CONSTANT_KINDS
    ]
    if question is not None and not any(
        record.question == question for label in deciding for record in evidence.by_mode[label]
    ):
        known = sorted({record.question for record in evidence.comparison.records})[:5]
        raise ValueError(
            f"question must be one that a policy has answered, such as {known}, got {question!r}"
        )
    title = "What the policies decide"
    if not deciding:
        return [Section(f"{anchor}-decisions", title, [not_measured("Modes that decide")])]
    first = [_table(evidence, deciding), *_worth(evidence)]
    sections = [Section(f"{anchor}-decisions", title, first)]
    shown = (evidence.policies or deciding)[:_MOST_POLICIES]
    for index, label in enumerate(shown):
        name = f"{anchor}-policy-{index + 1}"
        blocks = _one_policy(evidence, label, name, question)
        sections.append(Section(name, f"What {label} does", blocks))
    return sections


def _table(evidence: Evidence, labels: list[str]) -> Table:
    rows = []
    for label in labels:
        mode = evidence.summaries[label]
        syncs = "not known" if mode.host_syncs is None else number(mode.host_syncs, 2)
        rows.append(
            [
                label,
                "no cache" if mode.hit_rate is None else share(mode.hit_rate),
                str(mode.distinct_actions),
                number(mode.switches),
                "not known" if mode.policy_share is None else share(mode.policy_share, 2),
                syncs,
            ]
        )
    return Table(
        "Decisions",
        (
            "mode", "cycles served from the cache", "distinct actions", "switches per 100 cycles",
            "share of the time", "host syncs per cycle",
        ),
        rows,
        "An action is T, D, K and the number of looked-up tokens. Cycles that the end of an "
        "answer may have cut short are left out.",
    )  # fmt: skip


def _worth(evidence: Evidence) -> list[Block]:
    """Compare each policy with itself when it is shown the states of other cycles."""
    manifest = evidence.comparison.manifest
    arguments = {label: mode.spec.partition(":")[2] for label, mode in manifest.modes.items()}
    shuffled = {
        arguments[mode.mode]: mode
        for mode in evidence.ranked
        if evidence.kind(mode.mode) == "shuffled"
    }
    found: list[Block] = []
    for label in evidence.policies:
        other = shuffled.get(arguments[label])
        if other is None or evidence.kind(label) != "policy":
            continue
        ratio = evidence.summaries[label].tokens_per_second / other.tokens_per_second
        found.append(
            Paragraph(
                f"The state is worth {percent(ratio)} to {label}: it is that much faster than "
                f"{other.mode}, the same policy shown the states of other cycles."
            )
        )
    if not found:
        found.append(
            not_measured(
                "The worth of the state", "Compare with the mode shuffled:FOLDER of a policy."
            )
        )
    return found


def _one_policy(evidence: Evidence, label: str, name: str, question: str | None) -> list[Block]:
    records = evidence.by_mode[label]
    cycles = [turn.cycles for record in records for turn in record.turns if len(turn.cycles)]
    if not cycles:
        return [not_measured("Cycles")]
    blocks: list[Block] = []
    chosen = _chosen(evidence, label, question)
    if chosen is not None:
        record, turn = chosen
        blocks.append(over_text(f"{name}-text", turn, label, record.question))
        blocks += _texts(evidence, record, record.turns.index(turn))
    limit = evidence.comparison.manifest.configuration["max_new_tokens"]
    counts: dict[str, Counter[Action]] = {}
    for record in records:
        counter = counts.setdefault(record.domain, Counter())
        for turn in record.turns:
            counter.update(uncut_actions(turn, limit))
    counts = {domain: counter for domain, counter in counts.items() if counter}
    if counts:
        everything = sum(counts.values(), Counter())
        actions = sorted(action for action, _ in everything.most_common(MOST_COLUMNS))
        blocks.append(heat_map(f"{name}-actions", counts, label, actions))
    blocks.append(rows_and_depth(f"{name}-sizes", cycles, label))
    return blocks


def _chosen(evidence: Evidence, label: str, question: str | None) -> tuple[Record, Turn] | None:
    """Choose the answer to show: of the given question, or one with the median gain."""
    first = [record for record in evidence.by_mode[label] if record.repeat == 0]
    if question is not None:
        first = [record for record in first if record.question == question]
    elif quiet := [r for r in first if r.question not in evidence.summary.looping]:
        first = quiet
    long = [record for record in first if max(len(turn.cycles) for turn in record.turns) >= 8]
    candidates = long or [r for r in first if any(len(turn.cycles) for turn in r.turns)]
    if not candidates:
        return None
    others = {
        record.question: record.decode_seconds
        for record in evidence.by_mode[evidence.reference]
        if record.repeat == 0
    }
    ratios = [
        others.get(record.question, record.decode_seconds) / max(record.decode_seconds, 1e-9)
        for record in candidates
    ]
    order = np.argsort(ratios, kind="stable")
    record = candidates[int(order[len(order) // 2])]
    return record, max(record.turns, key=lambda turn: len(turn.cycles))


def _texts(evidence: Evidence, record: Record, turn: int) -> list[Block]:
    blocks: list[Block] = []
    prompt = evidence.prompts.get(record.question)
    if prompt is None:
        told = "The text of the prompt is missing: give the question files with --questions."
        blocks.append(Paragraph(told, "missing"))
    else:
        blocks.append(
            Passage(f"The prompt of {record.question}", prompt[min(turn, len(prompt) - 1)])
        )
    answer = evidence.answers.get((record.mode, record.question))
    if answer is None or turn >= len(answer):
        blocks.append(
            Paragraph("The text of the answer is missing from the comparison's folder.", "missing")
        )
    else:
        blocks.append(Passage(f"The answer to {record.question}", answer[turn]))
    return blocks
