"""Compile the launches that decide for an H100, and store what a warp of each of them does.

    python benchmarks/device_model/compile_launches.py

writes `launches.json`, from which `decision_times.py` computes microseconds. It needs Triton and
the tests' compilation ahead of time, and no GPU. Run it again after a change of a kernel or of
`assumptions.py`; `pytest -m slow tests/benchmarks/test_device_model.py` finds a file that is old.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from assumptions import LATENCIES, LEAST_SHARE, MULTIPROCESSOR_BYTES, Range  # noqa: E402
from instruction_time import Instruction, longest_chain, read_ptx, run, warp_cycles  # noqa: E402

from eaglerl.kernels._launch import Launch  # noqa: E402
from eaglerl.kernels._selection_rules import (  # noqa: E402
    CONFIDENCE_ENTRIES,
    SURVIVAL_ENTRIES,
)
from eaglerl.ops.node_selection import SelectionSizes, rule_layout, tensor_layout  # noqa: E402
from tests.kernels.aot import TARGETS, compile_launch  # noqa: E402
from tests.kernels.test_compilation import Case  # noqa: E402
from tests.kernels.test_selection_compilation import launch_of  # noqa: E402

LAUNCHES = HERE / "launches.json"
WIDTHS = (576, 2048, 4096)
#: K, D, R and L of a draft: the automatic policy's own limit, and trees that are usual on GPUs.
DRAFTS = ((4, 5, 32, 12), (8, 5, 32, 12), (8, 8, 64, 12), (10, 7, 60, 12), (10, 8, 64, 12))
# Branches of the folded launch, in their order: this program does not store what was compared; the
# multiplication is left out; it writes no sum of squares; this is not the last ticket; no hit is
# served; the policy is left out.
_MISS = (True, False, True, False, True, False)
_HIT = (True, True, False, False, True)
# Branches of the fused launch, from its first ticket on: this is not the neighbours' last ticket;
# no sequence needs its part, or there is none; there is another; this is not the last ticket; there
# is no sequence; none is skipped; there is no other.
_LAST_OF_FUSED = (False, False, False, False, False, False, True, True)
# Behind the ticket, everything is in the L2 cache, see `kernels/_prefetch.py`.
_BEHIND_TICKET = LATENCIES | {"load": LATENCIES["load behind a ticket"]}
_SCHEDULERS, _FLOAT, _LANES = 4, 4, 32  # of a multiprocessor; bytes; threads of a warp
_KINDS = ("load", "barrier", "shuffle", "shared")
Steps = Sequence[tuple[Instruction, bool]]


def described(
    steps: Steps, warps: int, latencies: Mapping[str, Range] = LATENCIES, *, alone: bool = False
) -> dict[str, Any]:
    """Return cycles and counts of a warp, and by how much each kind of wait lengthens its chain.

    Args:
        steps: see `run`.
        warps: of the program.
        latencies: ranges of cycles by kind.
        alone: whether what is read comes at the rate of one multiprocessor; if not, it is counted
            elsewhere.
    """
    reading = Range(0.0, 0.0)
    if alone:
        least = warps * _LANES / MULTIPROCESSOR_BYTES
        reading = Range(least, least / LEAST_SHARE)
    low = {kind: cycles.low for kind, cycles in latencies.items()}
    chain = longest_chain(steps, low, reading.low)
    without = {
        kind: round(chain.cycles - longest_chain(steps, _less(low, kind), reading.low).cycles)
        for kind in _KINDS
    }
    cycles = warp_cycles(steps, latencies, max(warps // _SCHEDULERS, 1), reading)
    return {
        "cycles": [round(cycles.low), round(cycles.high)],
        "chain": round(chain.cycles),
        "instructions": chain.instructions,
        **{kind: chain.counts.get(kind, 0) for kind in _KINDS},
        "of_the_chain": without,
    }


def _less(latencies: dict[str, float], kind: str) -> dict[str, float]:
    """Return latencies of which one kind is as short as arithmetic."""
    names = (kind, "repeated load") if kind == "load" else (kind,)
    return latencies | dict.fromkeys(names, latencies["arithmetic"])


def code_of(launch: Launch) -> list[str | Instruction]:
    """Return the instructions of a launch, compiled for an H100."""
    return read_ptx(compile_launch(launch, TARGETS["sm_90"]).asm["ptx"])


def steps_of(launch: Launch, taken: Sequence[bool] = ()) -> list[tuple[Instruction, bool]]:
    """Return the instructions that a warp of a launch runs on an H100."""
    return list(run(code_of(launch), taken))


def steps_behind_ticket(launch: Launch, taken: Sequence[bool]) -> list[tuple[Instruction, bool]]:
    """Return the instructions of the program that finishes a fused launch, from its ticket on.

    Raises:
        ValueError: the branches lead elsewhere.
    """
    code = code_of(launch)
    kinds = [isinstance(line, Instruction) and line.kind == "atomic" for line in code]
    steps = list(run(code[kinds.index(True) :], taken, lenient=True))
    found = sum(step.kind == "atomic" for step, _ in steps)
    stored = sum(step.name.startswith("st.global") for step, _ in steps)
    if (found, steps[-1][0].name) != (sum(kinds), "ret") or stored < 10:
        raise ValueError(f"the branches of {launch.kernel} must lead to its end through the policy")
    return steps


def behind_ticket(steps: Steps) -> int:
    """Return the place of the ticket."""
    return next(at for at, (step, _) in enumerate(steps) if step.kind == "atomic")


def decisions() -> Iterator[dict[str, Any]]:
    """Yield the launches that decide from the target's features."""
    for k in WIDTHS:
        launch = Case("folded", k, torch.bfloat16).launch()
        plan = launch.plan
        matrices = matrix_bytes(plan.policy.widths, plan.policy.k * plan.policy.chunks)
        warps = plan.tiles.num_warps
        miss = steps_of(launch, _MISS)
        place = behind_ticket(miss)
        shared = {"k": k, "programs": plan.programs, "warps": warps}
        yield {
            "launch": "folded", **shared, "read": sum(matrices) + 3 * 2 * k,
            "read_by_one": matrices[0] // plan.programs, **tail_bytes(launch, matrices),
            "front": described(miss[:place], warps),
            "tail": described(miss[place:], warps, _BEHIND_TICKET, alone=True),
        }  # fmt: skip
        hit = steps_of(launch, _HIT)
        yield {"launch": "kept", **shared, "read": 2 * 16 * _FLOAT, "tail": described(hit, warps)}
        fused = Case("fused", k, torch.bfloat16).launch()
        warps = fused.plan.tiles.num_warps
        steps = steps_behind_ticket(fused, _LAST_OF_FUSED)
        matrices = matrix_bytes(fused.plan.policy.widths, k)
        yield {
            "launch": "fused", "k": k, "programs": fused.plan.programs, "warps": warps,
            "read": 3 * 2 * k * k + sum(matrices) + 3 * 2 * k, "read_for_decision": sum(matrices),
            **tail_bytes(fused, matrices),
            "tail": described(steps, warps, _BEHIND_TICKET, alone=True),
        }  # fmt: skip


def matrix_bytes(widths: Sequence[int], inputs: int) -> list[int]:
    """Return the bytes of the policy's matrices in bfloat16."""
    return [2 * a * b for a, b in zip(widths, (inputs, *widths[:-1]), strict=True)]


def tail_bytes(launch: Launch, matrices: Sequence[int]) -> dict[str, int]:
    """Return what the program with the last ticket reads alone, and what all programs write."""
    plan = launch.plan
    sums = plan.policy.widths[0] * _FLOAT
    gathered = (plan.gathered + plan.parts) * sums if plan.gathered else plan.parts * sums
    written = (plan.programs + plan.parts if plan.gathered else plan.parts) * sums
    outputs = (plan.policy.widths[-1] + 4) * _FLOAT
    return {"read_by_last": gathered + sum(matrices[1:]), "written": written + outputs}


def selections() -> Iterator[dict[str, Any]]:
    """Yield the choice of nodes after a pass."""
    for draft in DRAFTS:
        sizes = SelectionSizes(*draft)
        # As for several sequences and for a LimitedPolicy; `AutoPolicy` alone gives none.
        launch = launch_of(sizes, limited=True)
        plan = launch.plan
        layout = tensor_layout(1, sizes)
        size = {
            name: dtype.itemsize * torch.Size(shape).numel()
            for name, (dtype, shape) in layout.items()
        }
        new = sizes.top_k**2
        pool = 4 + 8 + 4 + 4  # score, token, parent and logit of a candidate
        tables = 4 * (CONFIDENCE_ENTRIES.value + SURVIVAL_ENTRIES.value)
        rows = sum(size[name] for name in layout if name.startswith("row_")) + size["enabled"]
        # Word and token of each candidate that is kept, and a word of each that is expanded.
        kept = 8 * (2 * plan.kept + sizes.top_k + 1)
        read = tables + 4 * rule_layout(sizes)["words"] + new * (8 + 4) + 8 * plan.lookup + kept
        read += size["frontier"] // 3 + size["record"] + size["row_parents"]
        written = new * pool + kept + rows + size["ancestors"] + size["frontier"] + size["record"]
        yield {
            "launch": "select", "draft": list(draft), "programs": 1, "warps": plan.tiles.num_warps,
            "pool": sizes.pool_size, "elements": plan.elements, "read": read, "written": written,
            "read_by_last": read,
            "tail": described(steps_of(launch), plan.tiles.num_warps, alone=True),
        }  # fmt: skip


def all_launches() -> list[dict[str, Any]]:
    """Return all launches, compiled."""
    return [*decisions(), *selections()]


if __name__ == "__main__":
    LAUNCHES.write_text(json.dumps(all_launches(), indent=1) + "\n", encoding="utf-8")
