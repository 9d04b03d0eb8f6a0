"""Traces: recorded decoding in which every draft tree can be replayed."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.traces.oracle import Bounds, bounds
    from eaglerl.traces.recording import Prompt, RecordOptions
    from eaglerl.traces.simulation import Outcome, simulate
    from eaglerl.traces.trace_set import Trace, TraceSet

__all__ = [
    "Bounds",
    "Outcome",
    "Prompt",
    "RecordOptions",
    "Trace",
    "TraceSet",
    "bounds",
    "simulate",
]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "Bounds": "eaglerl.traces.oracle",
        "Outcome": "eaglerl.traces.simulation",
        "Prompt": "eaglerl.traces.recording",
        "RecordOptions": "eaglerl.traces.recording",
        "Trace": "eaglerl.traces.trace_set",
        "TraceSet": "eaglerl.traces.trace_set",
        "bounds": "eaglerl.traces.oracle",
        "simulate": "eaglerl.traces.simulation",
    },
)
