"""Compare `OnlinePolicy`, which knows the costs, and `AutoPolicy`, which learns them, on traces.

    python benchmarks/compare_online_policy.py --traces FOLDER --cost FILE [--cost FILE ...]

Both see every prompt once, in a random order, and begin with each cost table anew. The constant
tree is the best on these very traces, which favours it. ``flat`` is a made-up table
like a GPU's: 10 ms for any number of rows up to 32, and 0.5 ms for a pass of the draft.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from eaglerl.actions import ActionSpace
from eaglerl.cost import CostTable
from eaglerl.eagle3.policy import TreeParams, TreePolicy
from eaglerl.policies import AutoPolicy, OnlinePolicy, best_constant
from eaglerl.traces import TraceSet, simulate
from eaglerl.traces.simulation import total

FLAT = CostTable(
    "flat", "float32", (1, 32, 64), (0.010, 0.010, 0.016), (0.0, 0.0, 0.0), (1, 2, 4),
    (5e-4,) * 3, (5e-4,) * 3,
)  # fmt: skip


def constants() -> ActionSpace:
    """Return the constant trees of up to 32 rows, 6 levels and 4 children."""
    sizes = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
    trees = [
        TreeParams(rows, depth, width)
        for width in (1, 2, 4)
        for depth in range(6)
        for rows in sizes
        if depth + 1 < rows <= 1 + width + depth * width**2
    ]
    return ActionSpace([TreeParams(1), *trees])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", required=True, help="folder that `eaglerl record` wrote")
    parser.add_argument("--cost", action="append", default=[], help="file of `eaglerl calibrate`")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the prompts")
    given = parser.parse_args()
    traces = list(TraceSet(given.traces))
    random.Random(given.seed).shuffle(traces)
    tables = {Path(file).stem: CostTable.from_json(file) for file in given.cost} | {"flat": FLAT}
    lines = ["| cost table | best constant tree | plain | constant | online | auto |"]
    lines.append("|---|---|---|---|---|---|")
    for name, cost in tables.items():
        constant = best_constant(traces, constants(), cost)
        policies: list[TreePolicy | TreeParams] = [
            TreeParams(1),
            constant,
            OnlinePolicy(cost),
            AutoPolicy(),
        ]
        rates = [total(simulate(policy, traces, cost)).tokens_per_second for policy in policies]
        cells = " | ".join(f"{rate:.1f}" for rate in rates)
        lines.append(
            f"| {cost.machine if name != 'flat' else name} | {constant.params} | {cells} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
