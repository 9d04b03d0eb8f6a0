"""Tables of what the decision costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import loop_operations
from assumptions import (
    ALL_REDUCE,
    ARITHMETIC_SHARE,
    BANDWIDTH_SHARE,
    CLOCK,
    DEVICES,
    KERNELS_OF_LAYER,
    KERNELS_OF_PASS,
    LATENCIES,
    LAUNCH,
    MULTIPROCESSOR_BYTES,
    Device,
    Range,
)
from decision_times import (
    LAUNCHES,
    added_seconds,
    alone,
    cycle_seconds,
    folded_seconds,
    fused_seconds,
    kept_seconds,
    of_cycles,
    selection,
    selection_seconds,
    tail_seconds,
)

_H200 = DEVICES[1]
#: Seconds that a decision on an H200 was hoped to cost at most.
CLAIMED = 4e-6
_WAITS = {
    "load": "loads", "barrier": "barriers", "shuffle": "shuffles", "shared": "shared memory",
}  # fmt: skip
_FORMS = (
    ("FC fused with the policy", "fused", fused_seconds),
    ("policy's part of it", "part", added_seconds),
    ("folded", "folded", folded_seconds),
    ("folded, decision kept", "kept", lambda device, k: kept_seconds(k)),
)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def between(times: Range, factor: float = 1e6, digits: int = 1) -> str:
    """Return a range in a unit."""
    low, high = (f"{factor * value:.{digits}f}".replace("-", "\N{MINUS SIGN}") for value in times)
    return f"{low} to {high}"


def assumptions() -> str:
    """Return the table of what is assumed."""
    rows = [[f"{device.name}: memory; dense bfloat16", _sheet(device)] for device in DEVICES]
    rows += [
        ["launch: in a CUDA graph; in a stream that the host keeps fed", f"{between(LAUNCH)} us"],
        ["clock of a multiprocessor", f"{between(CLOCK, 1e-9, 2)} GHz"],
        ["share of the data sheet's bandwidth", between(BANDWIDTH_SHARE, 100, 0) + " %"],
        ["most that one multiprocessor reads from L2", f"{MULTIPROCESSOR_BYTES} bytes a cycle"],
        ["share of the tensor cores' arithmetic", between(ARITHMETIC_SHARE, 100, 0) + " %"],
        ["launches of a layer; of the rest of a pass", f"{KERNELS_OF_LAYER}; {KERNELS_OF_PASS}"],
        ["all-reduce among GPUs, two for each layer", f"{between(ALL_REDUCE, digits=0)} us"],
    ]
    rows += [[kind, f"{between(cycles, 1, 0)} cycles"] for kind, cycles in LATENCIES.items()]
    return table(["assumed", "range"], rows)


def _sheet(device: Device) -> str:
    return f"{device.bandwidth * 1e-12:.2f} TB/s; {device.arithmetic * 1e-12:,.0f} TFLOPS"


def _launch(name: str, k: int) -> dict[str, Any]:
    return next(one for one in LAUNCHES if one["launch"] == name and one["k"] == k)


def decisions() -> str:
    """Return the table of the decisions from the target's features."""
    rows = []
    for label, name, seconds in _FORMS:
        for k in (576, 2048, 4096):
            one = _launch("fused" if name == "part" else name, k)
            size = one["read_for_decision" if name == "part" else "read"]
            written = one.get("written", 8 * 4)
            floors = (f"{1e6 * size / device.bandwidth:.2f}" for device in DEVICES)
            times = (between(seconds(device, k)) for device in DEVICES)
            rows.append([
                label, f"{k:,}", "0" if name == "part" else "1", f"{one['programs']}",
                f"{size / 1e6:.3f}", f"{written / 1e3:.1f}", *floors, *times,
            ])  # fmt: skip
    head = ["launch", "k", "launches", "programs", "MB read", "KB written"]
    head += [f"{device.name}: bytes alone, us" for device in DEVICES]
    return table([*head, *(f"{device.name}: model, us" for device in DEVICES)], rows)


def selections() -> str:
    """Return the table of the choice of nodes after a pass."""
    rows = []
    for one in (one for one in LAUNCHES if one["launch"] == "select"):
        draft, tail = tuple(one["draft"]), one["tail"]
        size = one["read"] + one["written"]
        rows.append([
            "/".join(map(str, draft)), f"{one['pool']}", f"{size / 1e3:.1f}",
            f"{1e6 * size / _H200.bandwidth:.3f}", f"{one['elements']}",
            f"{one['warps']}", f"{tail['instructions']:,}", f"{tail['barrier']}", f"{tail['load']}",
            between(selection_seconds(draft)),
        ])  # fmt: skip
    head = ["K/D/R/L", "candidates", "KB read and written", "at 4.8 TB/s, us", "elements", "warps"]
    return table([*head, "instructions of a warp", "barriers", "loads", "model, us"], rows)


def parts() -> str:
    """Return the table of what makes the chains long."""
    wanted = [_launch("folded", 4096), _launch("fused", 4096)]
    wanted += [one for one in LAUNCHES if one.get("draft") in ([4, 5, 32, 12], [10, 7, 60, 12])]
    rows = []
    for one in wanted:
        tail = one["tail"]
        label = f"nodes {'/'.join(map(str, one['draft']))}" if "draft" in one else one["launch"]
        label += "" if "draft" in one else ", from the ticket on"
        starts = tail["instructions"] * max(one["warps"] // 4, 1)
        waits = (f"{tail['of_the_chain'][kind]:,}" for kind in _WAITS)
        last = alone(one.get("read_by_last", 0))
        rows.append([
            label, f"{tail['chain']:,}", *waits, f"{starts:,}", between(last, digits=2),
            between(of_cycles(*tail["cycles"])),
        ])  # fmt: skip
    head = ["part", "longest chain, cycles"]
    head += [f"shorter without {words}" for words in _WAITS.values()]
    head += ["instructions to start, cycles", "bytes it reads alone, us", "warp, us"]
    return table(head, rows)


def net_seconds(draft: tuple[int, int, int, int]) -> tuple[int, Range]:
    """Return how many operations of torch a choice of nodes replaces, and the difference in time.

    Each operation counts as one launch and as no work. Launches are as dear for both, so the
    differences are those of the extremes: cheap work with dear launches, and the reverse.
    """
    constant = sum(loop_operations.of_constant_tree().values())
    chosen = loop_operations.of_chosen_nodes()
    replaced = constant - sum(chosen.values()) + chosen["select_draft_nodes"]
    work = tail_seconds(selection(draft))
    fewer = replaced - 1
    return replaced, Range(work.low - fewer * LAUNCH.high, work.high - fewer * LAUNCH.low)


def claim() -> str:
    """Return the table that compares the model with 4 us on an H200."""
    draft = (4, 5, 32, 12)
    choice, folded = selection_seconds(draft), folded_seconds(_H200, 4096)
    replaced, net = net_seconds(draft)
    passes = 1 + draft[1]
    shape = "/".join(map(str, draft))
    cases = (
        ("folded decision, once a cycle", folded),
        ("the same, decision kept", kept_seconds(4096)),
        (f"choice of nodes, each pass, {shape}", choice),
        (f"folded decision and the choices of {passes} passes", cycle_seconds(_H200, draft)),
        (f"choice of nodes less the {replaced} operations that it replaces, each pass", net),
        (f"folded decision and {passes} such differences", folded.plus(net.times(passes))),
    )
    rows = [[label, between(times), _verdict(times)] for label, times in cases]
    return table(["on an H200, k = 4096, bfloat16", "model, us", "at most 4 us?"], rows)


def _verdict(times: Range) -> str:
    if times.high <= CLAIMED:
        return "yes"
    return "no" if times.low > CLAIMED else "not shown: only at the low end"


DECISION_TABLES: dict[str, Callable[[], str]] = {
    "assumptions": assumptions, "decisions": decisions, "selections": selections, "parts": parts,
    "claim": claim,
}  # fmt: skip
