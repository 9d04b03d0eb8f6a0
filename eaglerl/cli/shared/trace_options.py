"""The traces that a command is given, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eaglerl.traces.trace_set import Trace, TraceSet


def read_trace_sets(folders: Sequence[Path]) -> list[TraceSet]:
    """Open folders of traces.

    Raises:
        ValueError: a folder holds no traces, or they are of different targets or heads.
    """
    from eaglerl.traces.trace_set import TraceSet

    sets = [TraceSet(folder) for folder in folders]
    for other in sets[1:]:
        other.check_ids(target_id=sets[0].target_id, head_id=sets[0].head_id)
    return sets


def read_traces(folders: Sequence[Path], held_out: float) -> tuple[list[Trace], list[Trace], str]:
    """Return the traces to learn from, those held out, and the id of their draft head.

    Raises:
        ValueError: a folder holds no traces, they are of different targets or heads, or one of the
            two parts is empty.
    """
    sets = read_trace_sets(folders)
    training, checking = split_traces([trace for traces in sets for trace in traces], held_out)
    if not training:
        raise ValueError(
            f"--traces must leave a trace to learn from, got {len(checking)}, all of them held "
            "out: record more prompts, or lower --held-out"
        )
    if held_out and not checking:
        raise ValueError(
            f"--held-out {held_out} must leave a trace to choose the policy by, got none of "
            f"{len(training)}: record more prompts, raise it, or switch it off with 0"
        )
    return training, checking, sets[0].head_id


def split_traces(traces: Sequence[Trace], share: float) -> tuple[list[Trace], list[Trace]]:
    """Return the traces to learn from and those held out: about `share`, by the prompt's hash."""
    training: list[Trace] = []
    held_out: list[Trace] = []
    for trace in traces:
        # The lowest 32 bits of the hash: `compare` may have split the prompts by the highest.
        out = int(trace.prompt_id[-8:], 16) < share * 16**8
        (held_out if out else training).append(trace)
    return training, held_out
