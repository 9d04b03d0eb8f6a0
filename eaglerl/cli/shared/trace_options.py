"""Traces that a command is given, and the prompts among them that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eaglerl.traces.trace_set import Trace


def read_traces(folders: Sequence[Path], held_out: float) -> tuple[list[Trace], list[Trace], str]:
    """Traces to learn from, traces held out, and the id of their head.

    Raises:
        ValueError: a folder holds none, they are of different targets or heads, or none is left to
            learn from.
    """
    from eaglerl.traces.trace_set import TraceSet

    sets = [TraceSet(folder) for folder in folders]
    for other in sets[1:]:
        other.check_ids(target_id=sets[0].target_id, head_id=sets[0].head_id)
    learned, checked = split_traces([trace for traces in sets for trace in traces], held_out)
    if not learned:
        raise ValueError(
            f"--traces must leave a trace to learn from, got {len(checked)}, all of them held out: "
            "record more prompts, or lower --held-out"
        )
    if held_out and not checked:
        raise ValueError(
            f"--held-out {held_out} must leave a trace to choose the policy by, got none of "
            f"{len(learned)}: record more prompts, raise it, or switch it off with 0"
        )
    return learned, checked, sets[0].head_id


def split_traces(traces: Sequence[Trace], share: float) -> tuple[list[Trace], list[Trace]]:
    """Traces to learn from and traces held out: about `share`, by the hash of the prompt."""
    learned, held_out = [], []
    for trace in traces:
        # The hash's lower digits: its upper ones may have split the prompts before.
        out = int(trace.prompt_id[-8:], 16) < share * 16**8
        (held_out if out else learned).append(trace)
    return learned, held_out
