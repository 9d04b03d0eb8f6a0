"""Microseconds of the decision's launches on a GPU, from what their compiled warps do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from assumptions import (
    BANDWIDTH_SHARE,
    CLOCK,
    DEVICES,
    LATENCIES,
    LAUNCH,
    LEAST_SHARE,
    MULTIPROCESSOR_BYTES,
    Device,
    Range,
)

LAUNCHES: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parent / "launches.json").read_text(encoding="utf-8")
)


def find(launch: str, k: int) -> dict[str, Any]:
    """Return a launch of a width k."""
    return next(one for one in LAUNCHES if one["launch"] == launch and one["k"] == k)


def selection(draft: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return the choice of nodes of a draft of K, D, R and L."""
    return next(one for one in LAUNCHES if one.get("draft") == list(draft))


def of_cycles(low: float, high: float) -> Range:
    """Return the seconds of a multiprocessor's cycles."""
    return Range(low / CLOCK.high, high / CLOCK.low)


def reading(size: float, device: Device) -> Range:
    """Return the seconds of reading bytes by all multiprocessors."""
    rates = (device.bandwidth * share for share in reversed(BANDWIDTH_SHARE))
    return Range(*(size / rate for rate in rates))


def alone(size: float) -> Range:
    """Return the seconds of reading bytes by one multiprocessor."""
    cycles = size / MULTIPROCESSOR_BYTES
    return of_cycles(cycles, cycles / LEAST_SHARE)


def tail_seconds(launch: dict[str, Any]) -> Range:
    """Return the seconds of the program that finishes a launch, from its ticket on, if any."""
    return of_cycles(*launch["tail"]["cycles"])


def folded_seconds(device: Device, k: int) -> Range:
    """Return the seconds of the folded decision, its launch included."""
    launch = find("folded", k)
    shared, single = reading(launch["read"], device), alone(launch["read_by_one"])
    # The programs run side by side: the device's memory or a multiprocessor limits them.
    work = Range(max(shared.low, single.low), max(shared.high, single.high))
    front = of_cycles(*launch["front"]["cycles"]).plus(work)
    return LAUNCH.plus(front).plus(tail_seconds(launch))


def fused_seconds(device: Device, k: int) -> Range:
    """Return the seconds of the FC fused with the policy, its launch included."""
    launch = find("fused", k)
    first = of_cycles(LATENCIES["load"].low, LATENCIES["load"].high)
    return LAUNCH.plus(reading(launch["read"], device)).plus(first).plus(tail_seconds(launch))


def added_seconds(device: Device, k: int) -> Range:
    """Return the seconds that the policy adds to a launch of the FC alone."""
    launch = find("fused", k)
    return reading(launch["read_for_decision"], device).plus(tail_seconds(launch))


def kept_seconds(k: int) -> Range:
    """Return the seconds of a folded launch that finds its decision kept."""
    return LAUNCH.plus(of_cycles(*find("kept", k)["tail"]["cycles"]))


def selection_seconds(draft: tuple[int, int, int, int]) -> Range:
    """Return the seconds of the choice of nodes after a pass, its launch included."""
    return LAUNCH.plus(tail_seconds(selection(draft)))


def decision_seconds(device: Device) -> Range:
    """Return the seconds of a cycle's folded decision at k = 4096."""
    return folded_seconds(device, 4096)


def cycle_seconds(device: Device, draft: tuple[int, int, int, int]) -> Range:
    """Return the seconds of a cycle's folded decision and of the choices after all its passes."""
    return decision_seconds(device).plus(selection_seconds(draft).times(1 + draft[1]))


if __name__ == "__main__":
    for each in DEVICES:
        print(each.name, *(f"{1e6 * t:.1f}" for t in folded_seconds(each, 4096)))  # noqa: T201
