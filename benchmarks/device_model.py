"""What the decisions of a cycle would cost on GPUs, and what the cycle would: a model on paper.

    python benchmarks/device_model.py            # the tables of docs/kernels.md
    python benchmarks/device_model.py --costs FOLDER   # cost curves for `eaglerl headroom`

Nothing here was measured on a GPU by this project. Bytes and launches follow from the kernels;
bandwidths are the makers', latencies in cycles those of Luo et al., "Benchmarking and Dissecting
the Nvidia Hopper GPU Architecture via Microbenchmarking" (arXiv 2402.13499), and the time of a
launch in a graph that of Hazy Research's megakernel. Devices but the H100 are taken to have its
latencies.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from eaglerl.ops.node_selection import SelectionSizes, key_lanes, power_of_two

#: Bytes a second of the memory, by the makers' data sheets.
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "B200": 8.0e12}
HIDDEN, ACTIONS, BYTES = (128, 128), 203, 2
#: Boost clock of an H100 SXM, and cycles of a load from each memory.
CLOCK, SHARED, FIRST_LEVEL, SECOND_LEVEL, DEVICE = 1.755e9, 29, 41, 263, 479
LAUNCH = 1.3e-6
#: A step of a sort: a shuffle within a warp, or a round trip through shared memory and a barrier.
STEP = (30, 2 * SHARED + 30)
#: Share of the bandwidth that a pass reaches; Hazy Research's megakernel on an H100.
REACHED = 0.78
#: bfloat16 operations a second of an H100 without sparsity, and the share that is assumed.
OPERATIONS, BUSY = 989e12, 0.6
DRAFTS = {"automatic": SelectionSizes(4, 5, 32, 12), "EAGLE's": SelectionSizes(10, 7, 60, 12)}


def weight_bytes(k: int) -> dict[str, int]:
    """Return the bytes of weights that each decision reads, for layers of width k."""
    mlp = HIDDEN[0] * HIDDEN[1] + HIDDEN[1] * ACTIONS
    return {
        "FC and decision": BYTES * (3 * k * k + k * HIDDEN[0] + mlp),
        "folded decision": BYTES * (3 * k * HIDDEN[0] + mlp),
    }


def folded_latency() -> tuple[float, float]:
    """Return the least and most seconds that a folded decision waits beside reading weights.

    Features, a weight and a bias of each of three layers follow one another; so do the partial
    sums, the ticket and the cache's record.
    """
    least = 3 * SECOND_LEVEL + 3 * SECOND_LEVEL
    most = 9 * DEVICE + 3 * DEVICE
    return LAUNCH + least / CLOCK, LAUNCH + most / CLOCK


def sort_steps(lanes: int) -> int:
    """Return the steps of a bitonic sort."""
    exponent = power_of_two(lanes).bit_length() - 1
    return exponent * (exponent + 1) // 2


def selection_seconds(sizes: SelectionSizes) -> tuple[float, float]:
    """Return the least and most seconds of one choice of nodes, without its launch.

    Three sorts: of all keys, and twice of the candidates of a pass. Eight loads that depend on one
    another: record, frontier, scores, tokens of the lookup, keys, chosen candidates, their
    parents, prices. One load of a parent for each level of the tree, and two sums over
    the threads for each pass that looks ahead.
    """
    candidates = power_of_two(sizes.top_k**2)
    steps = sort_steps(key_lanes(sizes)) + 2 * sort_steps(candidates)
    levels = max(sizes.depth + 1, sizes.lookup_tokens)
    sums = 2 * sizes.depth
    least = 8 * SECOND_LEVEL + STEP[0] * steps + FIRST_LEVEL * levels + 2 * SHARED * sums
    most = 8 * DEVICE + STEP[1] * steps + SECOND_LEVEL * levels + 4 * SHARED * sums
    return least / CLOCK, most / CLOCK


class Model(NamedTuple):
    """A target with its EAGLE-3 head.

    Attributes:
        parameters: of the target that a pass reads, without its table of embeddings.
        head: of the head that a pass after the first reads.
        cache_bytes: of keys and values of a token.
        devices: H100s among which it is split.
        exchanges: of results between them in a pass.
    """

    parameters: float
    head: float
    cache_bytes: int
    devices: int
    exchanges: int


#: Llama 3.1 8B and 3.3 70B, and their heads with 32,000 tokens.
MODELS = {
    "8B on one H100": Model(7.5e9, 0.375e9, 131_072, 1, 0),
    "70B on four H100": Model(69.5e9, 1.20e9, 327_680, 4, 160),
}
#: Seconds of an exchange of small results between four H100s: assumed.
EXCHANGE = 10e-6


def pass_seconds(model: Model, rows: int, context: int) -> float:
    """Return the seconds of a verification: the slower of reading and computing, and exchanges."""
    read = (BYTES * model.parameters + model.cache_bytes * context) / model.devices
    compute = 2 * model.parameters * rows / model.devices
    slower = max(read / (REACHED * BANDWIDTH["H100"]), compute / (BUSY * OPERATIONS))
    return slower + model.exchanges * EXCHANGE


def draft_seconds(model: Model, sizes: SelectionSizes = DRAFTS["automatic"]) -> float:
    """Return the seconds of a pass of the head, the choice of nodes at its dearest included."""
    read = BYTES * model.head / model.devices / (REACHED * BANDWIDTH["H100"])
    exchanges = 0 if model.devices == 1 else 2 * EXCHANGE
    return read + exchanges + LAUNCH + selection_seconds(sizes)[1]


def cost_curve(model: Model, name: str) -> dict[str, Any]:
    """Return a cost curve as `eaglerl headroom` reads it."""
    rows = (1, 2, 4, 8, 16, 32, 64, 128)
    return {
        "format": "eaglerl-cost-curve",
        "version": 1,
        "machine": f"{name}: a model, not measured",
        "verify": [
            {"rows": count, "context": context, "seconds": pass_seconds(model, count, context)}
            for context in (128, 4096)
            for count in rows
        ],
        "draft": [{"seconds": draft_seconds(model)}],
    }


def microseconds(seconds: tuple[float, float]) -> str:
    """Return a range of times as text."""
    return f"{1e6 * seconds[0]:.1f} to {1e6 * seconds[1]:.1f}"


def tables() -> str:
    """Return the tables of docs/kernels.md."""
    devices = " | ".join(BANDWIDTH)
    lines = [
        f"| read from memory, us | k | MB | {devices} |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for k in (576, 2048, 4096):
        for name, size in weight_bytes(k).items():
            times = " | ".join(f"{1e6 * size / speed:.1f}" for speed in BANDWIDTH.values())
            lines.append(f"| {name} | {k} | {size / 1e6:.1f} | {times} |")
    lines += ["", "| bound by latency | launches | us |", "|---|---|---|"]
    lines.append(
        f"| folded decision, its bytes not included | 1 | {microseconds(folded_latency())} |"
    )
    for name, sizes in DRAFTS.items():
        once = [LAUNCH + each for each in selection_seconds(sizes)]
        passes = sizes.depth + 1
        whole = [passes * each for each in once]
        text = f"{sizes.top_k} wide, {sizes.rows} rows"
        lines.append(f"| choice of nodes, {name} draft ({text}) | 1 | {microseconds((*once,))} |")
        lines.append(f"| in a cycle of {passes} passes | {passes} | {microseconds((*whole,))} |")
    lines += ["", "| a cycle, ms | 1 row | 32 rows | 64 rows | a pass of the head |"]
    lines.append("|---|---|---|---|---|")
    for name, model in MODELS.items():
        times = [pass_seconds(model, rows, 1024) for rows in (1, 32, 64)]
        cells = " | ".join(f"{1e3 * each:.2f}" for each in (*times, draft_seconds(model)))
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, or write the cost curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--costs", type=Path, help="folder for the cost curves")
    arguments = parser.parse_args()
    if arguments.costs is None:
        sys.stdout.write(tables())
        return
    arguments.costs.mkdir(parents=True, exist_ok=True)
    for name, model in MODELS.items():
        path = arguments.costs / f"{name.split()[0].lower()}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(cost_curve(model, name), indent=1) + "\n", encoding="utf-8")
        temporary.rename(path)


if __name__ == "__main__":
    main()
