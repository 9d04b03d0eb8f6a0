"""Recorded traces as the log of an engine that drafts chains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eaglerl.eagle3.policy import TreeParams
from eaglerl.headroom.step_log import LookupLine, StepLine, Steps, make_steps
from eaglerl.traces.trace_set import Trace


def steps_of_traces(traces: Sequence[Trace], levels: int | None = None) -> Steps:
    """Return the steps that an engine would have logged with a constant chain.

    Args:
        traces: recorded with width 1.
        levels: tokens of each chain; None for as many as the traces hold.

    Raises:
        ValueError: the traces lack width 1 or the depth.
    """
    lines: list[StepLine] = []
    names: list[str] = []
    for trace in traces:
        own = trace_lines(trace, levels or trace.max_depth + 1)
        lines += own
        names += [trace.prompt_id] * len(own)
    return make_steps(lines, names)


def trace_lines(trace: Trace, levels: int) -> list[StepLine]:
    """Return the steps of a chain of `levels` tokens on one trace, as lines of a log.

    Raises:
        ValueError: the trace lacks width 1 or the depth.
    """
    tree = TreeParams(levels + 1, levels - 1, 1)
    lengths = trace.accepted_lengths([tree])[:, 0].astype(np.int64)
    totals = trace.scores[1][:, :levels].astype(np.float64)
    # Differences of halves may round to above 0.
    each = np.minimum(np.diff(totals, axis=1, prepend=0.0), 0.0)
    lines, position = [], 0
    while position < len(trace):
        length = min(int(lengths[position]), int(trace.remaining[position]))
        # The text may end here: what the target would have accepted beyond it was not emitted.
        drafted = levels if length == lengths[position] else length - 1
        match = int(trace.lookup_match[position])
        lookup = LookupLine(
            match=match,
            tokens=trace.lookup_tokens,
            accepted=int(trace.lookup_accepted[position]),
            # Traces know what would have followed.
            judged=trace.lookup_tokens,
        )
        lines.append(
            StepLine(
                request=trace.prompt_id,
                position=position + 1,
                context=int(trace.context_lengths[position]),
                logprobs=tuple(each[position, :drafted].tolist()),
                accepted=length - 1,
                lookup=lookup if match else None,
            )
        )
        position += length
    return lines
