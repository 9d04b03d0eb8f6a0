"""Run `eaglerl headroom` on recorded traces with every table of `costs/`, and keep the figures.

    eaglerl record traces questions/*.jsonl --top-k 1,2,4,8,10 --max-depth 7
    python benchmarks/device_model/run_headroom.py traces

writes `headroom.json`: tokens per second of every way to decide, and what the traces accept.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from eaglerl.eagle3.policy import TreeParams
from eaglerl.traces import TraceSet

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "headroom.json"
#: EAGLE's default tree, a smaller one, and the longest chain; total_tokens, depth, top_k.
TREES = ((60, 7, 10), (32, 5, 8), (8, 6, 1))
_FIGURES = ("tokens_per_second", "over_tuned_constant")


def studied(traces: Path, cost: Path) -> dict[str, Any]:
    """Return what the command says for a table: its best constant and every way's figures."""
    command = [sys.executable, "-m", "eaglerl", "headroom", str(traces), "--cost", str(cost)]
    result = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    study = json.loads(result.stdout)["studies"][0]
    ways = {
        way["name"].split(",")[0] if way["kind"] == "constant" else way["name"]: {
            figure: {part: round(value, 4) for part, value in way[figure].items()}
            for figure in _FIGURES
        }
        for way in study["ways"]
    }
    kept = {name: study[name] for name in ("requests", "tokens", "best_constant", "verdict")}
    return {"cost": fingerprint(cost)} | kept | {"ways": ways}


def fingerprint(cost: Path) -> str:
    """Return 16 digits that tell a table from another, so that old figures are found."""
    return hashlib.sha256(cost.read_bytes()).hexdigest()[:16]


def acceptance(traces: Path) -> dict[str, dict[str, float]]:
    """Return the tokens per cycle of some trees, by kind of question and of all."""
    found: dict[str, dict[str, float]] = {}
    for tree in TREES:
        counts: dict[str, list[int]] = {}
        for trace in TraceSet(traces):
            lengths = trace.accepted_lengths([TreeParams(*tree)])[:, 0].astype(np.int64)
            position = cycles = 0
            while position < len(trace):
                position += int(lengths[position])
                cycles += 1
            for kind in (trace.domain, "all"):
                own = counts.setdefault(kind, [0, 0])
                own[0] += len(trace)
                own[1] += cycles
        found["/".join(map(str, tree))] = {
            kind: round(tokens / cycles, 4) for kind, (tokens, cycles) in sorted(counts.items())
        }
    return found


def main() -> None:
    """Run the command for every table."""
    traces = Path(sys.argv[1])
    studies = {}
    for cost in sorted((HERE / "costs").glob("*.json")):
        print(cost.stem, file=sys.stderr, flush=True)  # noqa: T201
        studies[cost.stem] = studied(traces, cost)
    content = {"tokens_per_cycle": acceptance(traces), "studies": studies}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
