"""Tables of what deciding is worth for a target on GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assumptions import PUBLISHED_EAGLE3, PUBLISHED_PLAIN, TARGETS
from cycle_costs import ENDS, cost_table
from decision_tables import table

from eaglerl.eagle3.policy import TreeParams

HEADROOM: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parent / "headroom.json").read_text(encoding="utf-8")
)
_TUNED = "best constant of other requests"
_TREE = TreeParams(60, 7, 10)
_CONTEXT = 512
_WAYS = {
    "best constant of every request": "per-prompt constant",
    "auto, trees": "policy, trees",
    "auto, trees and prompt lookup": "policy, trees and lookup",
    "oracle of trees": "oracle, trees",
    "oracle of trees and prompt lookup": "oracle, trees and lookup",
}
_DECIDES = ("auto, trees", "auto, trees and prompt lookup")


def cycles() -> str:
    """Return the table of what passes and cycles cost."""
    rows = []
    for target in TARGETS.values():
        for end in ENDS:
            cost = cost_table(target, end, decides=False)
            plain = cost.verify_seconds(1, _CONTEXT)
            wide = cost.verify_seconds(_TREE.total_tokens, _CONTEXT)
            draft = float(cost.draft_seconds(1, _TREE.top_k, _CONTEXT)) - float(
                cost.draft_seconds(0, _TREE.top_k, _CONTEXT)
            )
            rows.append([
                target.name, end, f"{1e3 * plain:.2f}", f"{wide / plain:.2f}",
                f"{1e3 * draft:.3f}", f"{draft / plain:.3f}",
                f"{cost.seconds(_TREE, _CONTEXT) / plain:.2f}", f"{1 / plain:.0f}",
            ])  # fmt: skip
    head = [
        "target",
        "end",
        "one row, ms",
        "60 rows / one",
        "draft pass, ms",
        "draft pass / one row",
    ]
    return table([*head, "cycle of 60/7/10 / one row", "plain, tokens/s"], rows)


def published() -> str:
    """Return the published figures beside those of the traces."""
    own = HEADROOM["tokens_per_cycle"]["60/7/10"]
    names = {"chat": "everyday", "code": "code", "arithmetic": "math", "summaries": "summary"}
    rows = []
    for label, (speed, tokens) in PUBLISHED_EAGLE3.items():
        ours = own[names.get(label.split(" (")[0], "all")]
        cells = [f"{tokens:.2f}", f"{speed:.2f}", f"{tokens / speed:.2f}", f"{ours:.2f}"]
        rows.append([label, *cells, f"{ours / tokens:.2f}"])
    head = ["kind of question", "EAGLE-3: tokens per cycle", "speed-up", "cycle / plain step"]
    found = table([*head, "our traces: tokens per cycle", "ours / published"], rows)
    plain = f"SGLang's plain decoding of the 8B model on one H100: {PUBLISHED_PLAIN} tokens/s."
    return f"{found}\n\n{plain}"


def gains() -> str:
    """Return the table of the ways to decide."""
    rows = []
    for name, target in TARGETS.items():
        for end in ENDS:
            free, paid = (HEADROOM["studies"][f"{name}-{end}{more}"] for more in ("", "-deciding"))
            tuned = free["ways"][_TUNED]["tokens_per_second"]["value"]
            plain = free["ways"]["plain decoding"]["tokens_per_second"]["value"]
            cells = [
                target.name, end, f"{tuned / plain:.2f}",
                free["best_constant"].removeprefix("tree "),
            ]  # fmt: skip
            for way in _WAYS:
                cells.append(_gain(free["ways"][way]))
                if way in _DECIDES:
                    slow = paid["ways"][way]["tokens_per_second"]["value"]
                    cells.append(_percent(slow / tuned))
            rows.append(cells)
    head = ["target", "end", "tuned constant / plain", "best constant, T/D/K"]
    for way, label in _WAYS.items():
        head.append(label)
        if way in _DECIDES:
            head.append("with its cost")
    return table(head, rows)


def _gain(way: dict[str, Any]) -> str:
    value, low, high = (
        _percent(way["over_tuned_constant"][part]) for part in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}".replace("-", "\N{MINUS SIGN}")


TARGET_TABLES: dict[str, Callable[[], str]] = {
    "cycles": cycles, "published": published, "gains": gains,
}  # fmt: skip
