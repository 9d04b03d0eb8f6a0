"""Compile the launches that decide for an H100, and store what a warp of each of them does.

    python benchmarks/device_model/compile_launches.py

writes `launches.json`, from which `decision_times.py` computes microseconds. It needs Triton and
the tests' compilation ahead of time, and no GPU. Run it again after a change of a kernel or of
`assumptions.py`; `pytest -m slow tests/benchmarks/test_device_model.py` finds a file that is old.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from assumptions import LATENCIES  # noqa: E402
from instruction_time import Instruction, longest_chain, read_ptx, run, warp_cycles  # noqa: E402

from eaglerl.kernels._launch import Launch  # noqa: E402
from eaglerl.kernels._plan import Tiles, power_of_two  # noqa: E402
from eaglerl.kernels._selection_rules import (  # noqa: E402
    CONFIDENCE_ENTRIES,
    SURVIVAL_ENTRIES,
)
from eaglerl.kernels._settings import default_tiles  # noqa: E402
from eaglerl.kernels.policy_mlp_kernel import prepare_policy_mlp  # noqa: E402
from eaglerl.ops.node_selection import SelectionSizes, rule_layout, tensor_layout  # noqa: E402
from tests.kernels.aot import TARGETS, compile_launch  # noqa: E402
from tests.kernels.test_compilation import GREEDY, Case, make_cache, make_weights, on_meta  # noqa: E402
from tests.kernels.test_selection_compilation import launch_of  # noqa: E402

LAUNCHES = HERE / "launches.json"
WIDTHS = (576, 2048, 4096)
#: K, D, R and L of a draft: the automatic policy's own limit, and trees that are usual on GPUs.
DRAFTS = ((4, 5, 32, 12), (8, 5, 32, 12), (8, 8, 64, 12), (10, 7, 60, 12), (10, 8, 64, 12))
# Branches of the folded launch, in their order: this program does not store what was compared; the
# multiplication is left out; this is not the last ticket; no hit is served; the policy is left out.
_MISS = (True, False, False, True, False)
_HIT = (True, True, False, False, True)
_SCHEDULERS, _FLOAT = 4, 4  # of a multiprocessor; bytes
_KINDS = ("load", "barrier", "shuffle", "shared")
Steps = Sequence[tuple[Instruction, bool]]


def described(steps: Steps, warps: int) -> dict[str, Any]:
    """Return cycles and counts of a warp, and by how much each kind of wait lengthens its chain."""
    low = {kind: cycles.low for kind, cycles in LATENCIES.items()}
    chain = longest_chain(steps, low)
    without = {
        kind: round(chain.cycles - longest_chain(steps, _less(low, kind)).cycles) for kind in _KINDS
    }
    cycles = warp_cycles(steps, LATENCIES, max(warps // _SCHEDULERS, 1))
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


def steps_of(launch: Launch, taken: Sequence[bool] = ()) -> list[tuple[Instruction, bool]]:
    """Return the instructions that a warp of a launch runs on an H100."""
    return list(run(read_ptx(compile_launch(launch, TARGETS["sm_90"]).asm["ptx"]), taken))


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
            "front": described(miss[:place], warps), "tail": described(miss[place:], warps),
        }  # fmt: skip
        hit = steps_of(launch, _HIT)
        yield {"launch": "kept", **shared, "read": 2 * 16 * _FLOAT, "tail": described(hit, warps)}
        fused = Case("fused", k, torch.bfloat16).launch()
        rest = tail_of_fused(fused)
        steps = steps_of(rest, _MISS)
        matrices = matrix_bytes(fused.plan.policy.widths, k)
        yield {
            "launch": "fused", "k": k, "programs": fused.plan.programs,
            "warps": fused.plan.tiles.num_warps,
            "read": 3 * 2 * k * k + sum(matrices) + 3 * 2 * k, "read_for_decision": sum(matrices),
            **tail_bytes(fused, matrices),
            "tail": described(steps[behind_ticket(steps) :], rest.plan.tiles.num_warps),
        }  # fmt: skip


def tail_of_fused(fused: Launch) -> Launch:
    """Return a launch from g that ends as the fused one does.

    Both end in `decide`, with as many partial sums; the code before it has branches that depend on
    the data, which `run` does not follow.
    """
    k = fused.plan.policy.k
    weights = make_weights(k, torch.bfloat16, "features", 3)
    own = default_tiles(fused.plan.policy, 2, 1)
    tiles = Tiles(1, 128, power_of_two(own.columns), own.num_warps, 3, own.max_registers)
    inputs = (on_meta(64, k, dtype=torch.bfloat16),)
    one = on_meta(1, dtype=torch.int64)
    cache = make_cache("fixed", k)
    launch = prepare_policy_mlp(weights, inputs, one, one, cache, None, GREEDY, tiles=tiles)[0]
    assert launch.plan.programs == fused.plan.programs
    return launch


def matrix_bytes(widths: Sequence[int], inputs: int) -> list[int]:
    """Return the bytes of the policy's matrices in bfloat16."""
    return [2 * a * b for a, b in zip(widths, (inputs, *widths[:-1]), strict=True)]


def tail_bytes(launch: Launch, matrices: Sequence[int]) -> dict[str, int]:
    """Return what the program with the last ticket reads alone, and what all programs write."""
    partial = launch.plan.programs * launch.plan.policy.widths[0] * _FLOAT
    outputs = (launch.plan.policy.widths[-1] + 4) * _FLOAT
    return {"read_by_last": partial + sum(matrices[1:]), "written": partial + outputs}


def selections() -> Iterator[dict[str, Any]]:
    """Yield the choice of nodes after a pass."""
    for draft in DRAFTS:
        sizes = SelectionSizes(*draft)
        # The loop gives limits in every cycle.
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
            "read_by_last": read, "tail": described(steps_of(launch), plan.tiles.num_warps),
        }  # fmt: skip


def all_launches() -> list[dict[str, Any]]:
    """Return all launches, compiled."""
    return [*decisions(), *selections()]


if __name__ == "__main__":
    LAUNCHES.write_text(json.dumps(all_launches(), indent=1) + "\n", encoding="utf-8")
