"""Passes over several rows: ours and llama-bench's, in turn."""

from __future__ import annotations

from pathlib import Path

from llama_cpp import bench_passes, build
from peer_engines import Eaglerl
from peer_models import retyped
from peer_records import Passes, RunRecords
from peer_runners import GGUF_TYPES
from rich.progress import track

#: Rows of a pass.
ROWS = (1, 2, 4, 8, 16, 32, 512, 2048)


def repeats_of(rows: int) -> int:
    """Return how many passes are timed one after another: fewer of those that take seconds."""
    return 20 if rows < 64 else 2


def measure_passes(
    eaglerl: Eaglerl, folder: Path, model: Path, records: RunRecords, turns: int, threads: int
) -> float:
    """Time passes of every number of rows, but for what is there already.

    Args:
        eaglerl: ours, with the precisions to measure.
        folder: of the peers.
        model: the expanded model's folder.
        records: get the seconds.
        turns: how often all take their turn.
        threads: of every runner.

    Returns:
        The bytes per second that the threads together read from memory.
    """
    bench = build(folder) / "llama-bench"
    files = {kind: retyped(model / "model.gguf", kind, folder) for kind in GGUF_TYPES}
    precisions = list(dict.fromkeys(runner.weights for runner in eaglerl.runners))
    best = 0.0
    for turn in range(turns):
        best = max(best, eaglerl.bandwidth())
        for rows in track(ROWS, description=f"passes, turn {turn + 1} of {turns}"):
            repeats = repeats_of(rows)
            for weights in [*precisions, *files]:
                ours = weights in precisions
                name = f"{'eaglerl' if ours else 'llama.cpp'} {weights}"
                if (name, rows, turn) in records.passes:
                    continue
                if ours:
                    seconds = eaglerl.time_passes(weights, rows, repeats)
                else:
                    seconds = bench_passes(bench, files[weights], rows, repeats, threads)
                records.add_passes(
                    Passes(runner=name, rows=rows, turn=turn, seconds=tuple(seconds))
                )
    return best
