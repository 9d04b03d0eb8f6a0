"""Calls on a device that are captured as CUDA graphs and replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch

from eaglerl.ops._operands import need_triton

#: Graphs that are kept; a call of another key makes them all go. Each holds its own results, for a
#: vocabulary of 128,256 and 64 rows 16 MB of logits in bfloat16.
MOST_GRAPHS = 128

Result = TypeVar("Result")


class Graph(Protocol):
    """A captured call.

    Attributes:
        skips: whether a replay can skip the call by a condition on the device.
    """

    skips: bool

    def capture(
        self, call: Callable[[], Result], condition: Callable[[], torch.Tensor] | None = None
    ) -> Result:
        """Record what a call does on the device, without doing it; return the call's result.

        The result's tensors are those that every replay fills.

        Args:
            call: the call.
            condition: computes a bool tensor () at the beginning of a replay; if it is False, the
                rest is skipped. Ignored if the graph does not skip.
        """

    def replay(self) -> None:
        """Do it."""


class CudaGraph:
    """A graph of torch; those of one pool share memory for what their calls only use meanwhile.

    Conditional nodes came with CUDA 12.4 and, in torch, with release 2.13.
    """

    skips = hasattr(torch.cuda.CUDAGraph, "begin_capture_to_if_node")

    def __init__(self, pool: Any) -> None:
        """Make an empty graph; `pool` is one of `torch.cuda.graph_pool_handle`."""
        self._graph = torch.cuda.CUDAGraph()
        self._pool = pool

    def capture(
        self, call: Callable[[], Result], condition: Callable[[], torch.Tensor] | None = None
    ) -> Result:
        """See `Graph`."""
        # Only this thread's calls are captured and checked: others may use the device.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            if condition is None or not self.skips:
                return call()
            self._graph.begin_capture_to_if_node(condition())
            try:
                return call()
            finally:
                self._graph.end_capture_to_conditional_node()

    def replay(self) -> None:
        """See `Graph`."""
        self._graph.replay()


def graphs_on(device: torch.device) -> Callable[[], Graph]:
    """Return what makes the empty graphs of a target, of which one runs at a time.

    Raises:
        ValueError: it is no CUDA device.
        RuntimeError: there is no Triton, whose kernel accepts drafts.
    """
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs needs a target on a CUDA device, got one on {device}")
    need_triton("cuda_graphs")
    # Not shared between targets, whose cycles may run side by side.
    return partial(CudaGraph, torch.cuda.graph_pool_handle())


class GraphedCalls:
    """Calls without arguments, by key: the first runs, the second is captured, all are replayed.

    The first run prepares what a capture must not: libraries' handles and workspaces, compiled
    kernels, and tensors that the call keeps. A call reads and writes tensors that keep their
    addresses: those that existed before, and the results of other graphed calls whose keys are used
    whenever its own is.

    Attributes:
        skips: see `Graph`.
        captures: how many calls were captured.
        replays: how many were replayed.
    """

    def __init__(self, new_graph: Callable[[], Graph] | None) -> None:
        """Begin without graphs.

        Args:
            new_graph: makes an empty graph; None runs every call.
        """
        self._new_graph = new_graph
        self.skips = new_graph is not None and new_graph().skips
        self._used: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Graph, object]] = {}
        self.captures = self.replays = 0

    def begin_cycle(self) -> None:
        """Forget all graphs if there are too many; never between calls that use one another."""
        if len(self._graphs) >= MOST_GRAPHS:
            self._used.clear()
            self._graphs.clear()

    def __call__(
        self,
        key: Hashable,
        call: Callable[[], Result],
        condition: Callable[[], torch.Tensor] | None = None,
    ) -> Result:
        """Run a call.

        Args:
            key: calls of one key do the same, on the same tensors.
            call: launches work on the device, and asks it nothing.
            condition: see `Graph.capture`; a call that is not captured is not skipped.

        Returns:
            The result of the call, in tensors that the next call of this key overwrites.
        """
        if key not in self._used or self._new_graph is None:
            self._used.add(key)
            return call()
        if key not in self._graphs:
            graph = self._new_graph()
            self._graphs[key] = graph, graph.capture(call, condition)
            self.captures += 1
        graph, result = self._graphs[key]
        graph.replay()
        self.replays += 1
        return cast("Result", result)
