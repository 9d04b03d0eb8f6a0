"""Model card, learning curves and calibration of a trained acceptance policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eaglerl.files import atomic_path
from eaglerl.fitting.cross_validation import Gain, reliability_rows
from eaglerl.runs.extras import new_figure

_SOURCES = ("draft", "lookup")


def plot_fit(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Plot the losses of the nets, and the tokens per second by rounds of the stopping rule.

    Args:
        records: records of the run's phases.
        path: PNG file to write.
    """
    figure = new_figure(13, 4.2)
    axes = figure.subplots(1, 3)
    for kind, place in zip(_SOURCES, axes, strict=False):
        for record in records:
            if record["kind"] == kind and record["losses"]:
                steps, losses = zip(*record["losses"], strict=True)
                width = 1.8 if record["name"] == "all" else 0.8
                place.plot(steps, losses, label=record["name"], linewidth=width)
        place.set(xlabel="steps", ylabel="cross-entropy", title=f"net of the {kind}'s candidates")
    for record in records:
        for ridge, rates in record.get("rates", {}).items():
            last = record["name"] == "all"
            axes[2].plot(
                range(1, 1 + len(rates)), rates, marker=".", linewidth=1.8 if last else 0.8,
                color="tab:red" if last else "0.6", label=f"penalty {ridge}" if last else None,
            )  # fmt: skip
    axes[2].set(xlabel="round", ylabel="tokens per second, training", title="stopping rule")
    for place in axes:
        place.grid(alpha=0.3)
        if place.get_legend_handles_labels()[0]:
            place.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def write_calibration(path: str | Path, tables: np.ndarray, lengths: np.ndarray) -> None:
    """Write the calibration on held-out folds: predicted and actual acceptance.

    Args:
        path: JSON file to write.
        tables: tables of `reliability`.
        lengths: table of `expected_lengths`.
    """
    content = {
        source: reliability_rows(table) for source, table in zip(_SOURCES, tables, strict=True)
    }
    content["acceptance_length"] = [
        {"depth": depth, "expected": expected / count, "found": found / count}
        for depth, (count, expected, found) in enumerate(lengths.tolist())
    ]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_card(path: str | Path, report: Mapping[str, Any], tables: np.ndarray) -> None:
    """Write the model card.

    Args:
        path: Markdown file to write.
        report: results of the run, as in the model's file.
        tables: tables of `reliability`.
    """
    lookups = report["options"]["fit"]["chain_length"] > 0
    sources = "trees and lookups" if lookups else "trees only"
    lines = [
        "---",
        "tags: [eagle3, speculative-decoding]",
        "---",
        "",
        f"# Acceptance policy, {sources}",
        "",
        "Decides after every draft pass whether to continue, and which candidates the target "
        "verifies",
        "(`eaglerl.policies.AcceptancePolicy`). Fitted by",
        "`eaglerl train-policy --algorithm acceptance`.",
        "",
        *_settings_rows(report),
        "",
        "## Gain over the best constant tree",
        "",
        f"Cross-validated over {report['options']['folds']} folds of prompts, dealt by hash:",
        "policy and constant tree are fitted to the others. Gains are in tokens per second by the",
        "cost table, without the policy's own time; with 95 % confidence intervals over prompts.",
        "The penalty is chosen by the same figures.",
        "",
        "| penalty | gain over the best constant tree |",
        "|---|---|",
        *(f"| {name} | {Gain(**gain)} |" for name, gain in report["gain_by_ridge"].items()),
        "",
        "| kind of prompt | prompts | gain |",
        "|---|---|---|",
        *(
            f"| {name} | {row['prompts']} | {Gain(row['gain'], row['low'], row['high'])} |"
            for name, row in report["gain_by_domain"].items()
        ),
        f"| all | {report['prompts']} | {Gain(**report['gain'])} |",
        "",
        "## Calibration on held-out folds",
        "",
    ]
    for source, table in zip(_SOURCES[: 1 + lookups], tables, strict=False):
        lines += _calibration_lines(source, table)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _settings_rows(report: Mapping[str, Any]) -> list[str]:
    """Return a Markdown table of what the policy was made from."""
    fit, tree = report["options"]["fit"], report["constant"]
    return [
        "| | |",
        "|---|---|",
        f"| target, head | `{report['target_id']}`, `{report['head_id']}` |",
        f"| fitted to | {report['positions']:,} positions of {report['prompts']:,} prompts |",
        f"| trees | top_k {fit['top_k']}, depth up to {fit['max_depth']}, "
        f"up to {fit['max_rows']} rows |",
        f"| looked-up tokens | up to {fit['chain_length']} |",
        f"| nets | two hidden layers of {fit['hidden']}, {fit['steps']} steps, "
        f"seed {fit['seed']} |",
        f"| stopping rule | {fit['rounds']} rounds, penalty {report['ridge']:g} |",
        f"| cost table | {report['machine']}, draft in {report['draft_dtype']} |",
        f"| constant tree (T, D, K) | {tree['total_tokens']}, {tree['depth']}, {tree['top_k']} |",
        f"| rate in training | {report['rate']:.1f} tokens/s |",
    ]


def _calibration_lines(source: str, table: np.ndarray) -> list[str]:
    """Return a Markdown table of one source's calibration, without empty bins."""
    rows = [row for row in reliability_rows(table) if row["candidates"]]
    return [
        f"Candidates of the {source}:",
        "",
        "| predicted | candidates | mean prediction | accepted |",
        "|---|---|---|---|",
        *(
            f"| {row['from']:.1f} to {row['to']:.1f} | {row['candidates']:,} "
            f"| {row['predicted']:.3f} | {row['found']:.3f} |"
            for row in rows
        ),
        "",
    ]
