"""Costs of a target's cycle by a roofline, as tables that `eaglerl headroom` reads.

    python benchmarks/device_model/cycle_costs.py

writes a pair of tables to `costs/` for every target and end of the ranges in `assumptions.py`: one
without a decision, and one in which every cycle has the folded decision and every draft pass has a
choice of nodes.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from assumptions import (  # noqa: E402
    ALL_REDUCE,
    ARITHMETIC_SHARE,
    BANDWIDTH_SHARE,
    KERNELS_OF_LAYER,
    KERNELS_OF_PASS,
    LAUNCH,
    TARGETS,
    Target,
)
from decision_times import decision_seconds, selection_seconds  # noqa: E402

from eaglerl.cost import CostTable  # noqa: E402

ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 60, 64, 80, 128)
WIDTHS = (1, 2, 4, 8, 10)
ENDS = ("low", "high")
COSTS = HERE / "costs"
#: Draft whose choice of nodes is counted: the automatic policy's largest.
_DRAFT = (4, 5, 32, 12)
_BYTES = 2  # of a parameter in bfloat16


def pass_seconds(target: Target, parameters: float, layers: int, rows: int, end: str) -> float:
    """Return the seconds of a pass over some rows, the KV cache left out.

    Low: reading and multiplying overlap entirely, at the best shares. High: they follow each other,
    at the worst ones. Kernels have the launches of a CUDA graph in both.
    """
    device = target.device
    best = end == "low"
    bandwidth = device.bandwidth * (BANDWIDTH_SHARE.high if best else BANDWIDTH_SHARE.low)
    arithmetic = device.arithmetic * (ARITHMETIC_SHARE.high if best else ARITHMETIC_SHARE.low)
    reading = parameters * _BYTES / target.devices / bandwidth
    multiplying = 2.0 * parameters * rows / target.devices / arithmetic
    launches = LAUNCH.low * (layers * KERNELS_OF_LAYER + KERNELS_OF_PASS)
    reducing = 0.0
    if target.devices > 1:
        reducing = 2 * layers * (ALL_REDUCE.low if best else ALL_REDUCE.high)
    work = max(reading, multiplying) if best else reading + multiplying
    return work + launches + reducing


def cost_table(target: Target, end: str, *, decides: bool) -> CostTable:
    """Return the costs of a target's cycles at one end of the ranges.

    Args:
        target: the target with its head.
        end: "low" or "high".
        decides: whether the times of decisions are included.
    """
    share = BANDWIDTH_SHARE.high if end == "low" else BANDWIDTH_SHARE.low
    per_token = target.cache_bytes / target.devices / (target.device.bandwidth * share)
    decision = getattr(decision_seconds(target.device), end) if decides else 0.0
    choice = getattr(selection_seconds(_DRAFT), end) if decides else 0.0
    draft = {
        width: pass_seconds(target, target.head_parameters, 1, width, end) + choice
        for width in WIDTHS
    }
    reduction = 3.0 * target.width**2 * _BYTES / target.devices
    reduction /= target.device.bandwidth * share
    return CostTable(
        machine=f"{target.name}, modelled, {end} end{', with decisions' if decides else ''}",
        draft_dtype="bfloat16",
        total_tokens=ROWS,
        verify_base=tuple(
            pass_seconds(target, target.parameters, target.layers, rows, end) + decision
            for rows in ROWS
        ),
        verify_slope=(per_token,) * len(ROWS),
        top_ks=WIDTHS,
        first_pass=tuple(draft[width] + reduction for width in WIDTHS),
        later_pass=tuple(draft.values()),
        draft_slope=per_token / target.layers,
    )


def table_path(name: str, end: str, *, decides: bool) -> Path:
    """Return where a table is."""
    return COSTS / f"{name}-{end}{'-deciding' if decides else ''}.json"


if __name__ == "__main__":
    COSTS.mkdir(exist_ok=True)
    for name, target in TARGETS.items():
        for end in ENDS:
            for decides in (False, True):
                cost_table(target, end, decides=decides).to_json(
                    table_path(name, end, decides=decides)
                )
