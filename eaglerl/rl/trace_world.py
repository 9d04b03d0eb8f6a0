"""What the environments over traces share: windows looked up in tables, and observations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np

from eaglerl.rl.actions import ActionSpace
from eaglerl.rl.cost import CostTable
from eaglerl.rl.oracle import TraceTable
from eaglerl.rl.traces import Trace

Extra = Literal["acceptance", "position", "confidence"]

#: Weight of the newest window in the running acceptance length.
ACCEPTANCE_ALPHA = 0.3
#: Tokens of context that the observed position counts in.
POSITION_SCALE = 1000.0

_EXTRA_SIZES = {"acceptance": 1, "position": 1, "confidence": 8}


def check_extras(extras: Sequence[str]) -> tuple[str, ...]:
    """The extras as a tuple.

    Raises:
        ValueError: an unknown one, or one that occurs twice.
    """
    unknown = [extra for extra in extras if extra not in get_args(Extra)]
    if unknown or len(set(extras)) != len(extras):
        raise ValueError(
            f"extras must be distinct names of {list(get_args(Extra))}, got {list(extras)}"
        )
    return tuple(extras)


def observation_size(features: int, extras: Sequence[str]) -> int:
    """Width of an observation: the features, then the extras in their order."""
    return features + sum(_EXTRA_SIZES[extra] for extra in check_extras(extras))


class TraceWorld:
    """All positions of many traces as nodes of one graph, and where a window leads from each.

    A trace of P positions has P + 1 nodes; the last is its end. A window is `cache_steps` cycles
    with one action, or as many as there are before the end.

    Attributes:
        actions: the actions.
        extras: what observations hold besides the features.
        cache_steps: cycles of a window.
        starts: (number of traces,) int64 first node of each trace.
        ends: (nodes,) int64 the end that each node leads to.
        next_node: (nodes, A) int32 node after a window.
        seconds: (nodes, A) float32 duration of a window.
        cycles: (nodes, A) int16 cycles of a window.
    """

    def __init__(
        self,
        traces: Iterable[Trace],
        actions: ActionSpace,
        cost: CostTable,
        *,
        cache_steps: int = 10,
        extras: Sequence[str] = (),
    ) -> None:
        """Tabulate.

        Raises:
            ValueError: no traces, features of different widths, a cache of no steps, an unknown
                extra, or an action that a trace or the cost table does not know.
        """
        if cache_steps < 1:
            raise ValueError(f"cache_steps must be at least 1, got {cache_steps}")
        self.actions = actions
        self.extras = check_extras(extras)
        self.cache_steps = cache_steps
        traces = list(traces)
        if not traces:
            raise ValueError("traces must hold at least one trace")
        widths = {trace.features.shape[1] for trace in traces}
        if len(widths) > 1:
            raise ValueError(f"traces must have features of one width, got {sorted(widths)}")
        lengths = np.array([len(trace) + 1 for trace in traces])
        self.starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        self.ends = np.repeat(self.starts + lengths - 1, lengths)
        # The node at the end is shown as the last position: nothing is chosen there.
        self._features = _with_last_row([trace.features for trace in traces]).astype(np.float32)
        confidence = _with_last_row([trace.first_log_probs for trace in traces])
        self._confidence = _padded(confidence.astype(np.float32))
        self._positions = np.concatenate(
            [trace.context_lengths[0] + np.arange(len(trace) + 1) for trace in traces]
        ).astype(np.float32)
        self._tabulate([TraceTable.of(trace, actions, cost) for trace in traces])

    @property
    def observation_size(self) -> int:
        """Width of an observation."""
        return observation_size(self._features.shape[1], self.extras)

    def _tabulate(self, tables: Sequence[TraceTable]) -> None:
        shape = (len(self.ends), len(self.actions))
        node = np.arange(shape[0])[:, None]
        step = np.repeat(node, shape[1], axis=1)
        seconds = np.zeros(shape)
        for start, table in zip(self.starts, tables, strict=True):
            rows = slice(start, start + len(table))
            step[rows] += table.tokens
            seconds[rows] = table.seconds
        columns = np.arange(shape[1])
        reached = step.copy()
        total = seconds.copy()
        cycles = (step > node).astype(np.int16)
        for _ in range(self.cache_steps - 1):
            following = step[reached, columns]
            total += seconds[reached, columns]
            cycles += following > reached
            reached = following
        self.next_node = reached.astype(np.int32)
        self.seconds = total.astype(np.float32)
        self.cycles = cycles

    def observe(self, nodes: np.ndarray, acceptance: np.ndarray) -> np.ndarray:
        """Observations at nodes.

        Args:
            nodes: (n,) nodes.
            acceptance: (n,) running acceptance lengths.

        Returns:
            (n, size) float32.
        """
        features = self._features[nodes]
        if not self.extras:
            return features
        columns = {
            "acceptance": lambda: acceptance[:, None],
            "position": lambda: self._positions[nodes, None] / POSITION_SCALE,
            "confidence": lambda: self._confidence[nodes],
        }
        parts = [columns[extra]() for extra in self.extras]
        return np.concatenate([features, *parts], axis=1, dtype=np.float32)


def _padded(confidence: np.ndarray) -> np.ndarray:
    """A draft of fewer tokens than are observed cannot propose the others."""
    missing = _EXTRA_SIZES["confidence"] - confidence.shape[1]
    return np.pad(confidence, ((0, 0), (0, missing)), constant_values=-100.0)


def running_acceptance(previous: np.ndarray, tokens: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """The running acceptance length after a window; the first window's own where there was none,
    which is 0."""
    newest = tokens / np.maximum(cycles, 1)
    mixed = (1 - ACCEPTANCE_ALPHA) * previous + ACCEPTANCE_ALPHA * newest
    return np.where(previous > 0, mixed, newest)


def _with_last_row(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part for array in arrays for part in (array, array[-1:])])
