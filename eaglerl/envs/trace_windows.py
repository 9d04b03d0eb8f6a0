"""Cache windows of traces in tables, and their observations, for the environments over traces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.envs.action_repeat import check_keeping, resembles
from eaglerl.traces.oracle import TraceTable
from eaglerl.traces.trace_set import Trace

Extra = Literal["acceptance", "position", "confidence"]

#: Weight of the newest window in the running acceptance length.
ACCEPTANCE_ALPHA = 0.3
#: Unit of the observed position, in tokens of context.
POSITION_SCALE = 1000.0

_EXTRA_SIZES = {"acceptance": 1, "position": 1, "confidence": 8}

#: Confidence before the first draft pass: uniform.
NO_CONFIDENCE = np.full(_EXTRA_SIZES["confidence"], -np.log(8.0), dtype=np.float32)


def check_extras(extras: Sequence[str]) -> tuple[str, ...]:
    """Return the extras as a tuple.

    Raises:
        ValueError: an extra is unknown, or occurs twice.
    """
    unknown = [extra for extra in extras if extra not in get_args(Extra)]
    if unknown or len(set(extras)) != len(extras):
        raise ValueError(
            f"extras must be distinct names of {list(get_args(Extra))}, got {list(extras)}"
        )
    return tuple(extras)


def observation_size(features: int, extras: Sequence[str]) -> int:
    """Return the width of an observation: the features, then the extras in their order."""
    return features + sum(_EXTRA_SIZES[extra] for extra in check_extras(extras))


class TraceWindows:
    """All positions of many traces as nodes of one graph, and where a window leads from each.

    A trace of P positions has P + 1 nodes; the last is its end. A window is `cache_steps` cycles
    with one action. It ends earlier at the end of the trace and, with a threshold, before a cycle
    whose features no longer resemble those of its first.

    Attributes:
        actions: the actions.
        extras: what observations hold besides the features.
        cache_steps: cycles of a window.
        starts: (number of traces,) int64 first node of each trace.
        ends: (nodes,) int64 the end that each node leads to.
        next_node: (nodes, A) int32 node after a window.
        seconds: (nodes, A) float32 duration of a window.
        cycles: (nodes, A) int16 cycles of a window.
        last_drafted: (nodes, A) int32 node of the window's last cycle that drafted, -1 for none;
            None if confidence is not observed.
    """

    def __init__(
        self,
        traces: Iterable[Trace],
        actions: ActionSpace,
        cost: CostTable,
        *,
        cache_steps: int = 10,
        extras: Sequence[str] = (),
        similarity_threshold: float | None = None,
    ) -> None:
        """Tabulate.

        Args:
            traces: recorded continuations.
            actions: trees to choose from.
            cost: time of the cycles.
            cache_steps: cycles of a window.
            extras: what observations hold besides the features.
            similarity_threshold: see `ActionRepeat`.

        Raises:
            ValueError: there are no traces, their features differ in width, a trace or the cost
                table lacks an action, an extra is unknown, or a value is out of its range.
        """
        if cache_steps < 1:
            raise ValueError(f"cache_steps must be at least 1, got {cache_steps}")
        check_keeping(similarity_threshold, 1)
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
        self._lengths = lengths
        # The node at the end has the features of the last position: nothing is chosen there.
        self._features = _with_last_row([trace.features for trace in traces]).astype(np.float32)
        confidence = _with_last_row([trace.first_log_probs for trace in traces])
        # Node -1 stands for none; as an index it is the last row.
        self._confidence = np.vstack((padded_confidence(confidence), NO_CONFIDENCE))
        self._positions = np.concatenate(
            [trace.context_lengths[0] + np.arange(len(trace) + 1) for trace in traces]
        ).astype(np.float32)
        self._similar = None
        if similarity_threshold is not None:
            self._similar = self._similarity(similarity_threshold)
        self._tabulate([TraceTable.of(trace, actions, cost) for trace in traces])

    @property
    def observation_size(self) -> int:
        """Width of an observation."""
        return observation_size(self._features.shape[1], self.extras)

    def _similarity(self, threshold: float) -> np.ndarray:
        """Return (nodes, longest trace) bool: which features of its trace resemble a node's."""
        similar = np.zeros((len(self.ends), int(self._lengths.max())), dtype=bool)
        for start, length in zip(self.starts, self._lengths, strict=True):
            rows = self._features[start : start + length]
            similar[start : start + length, :length] = resembles(rows, rows, threshold)
        return similar

    def _tabulate(self, tables: Sequence[TraceTable]) -> None:
        shape = (len(self.ends), len(self.actions))
        node = np.arange(shape[0])[:, None]
        step = np.repeat(node, shape[1], axis=1)
        seconds = np.zeros(shape)
        for start, table in zip(self.starts, tables, strict=True):
            rows = slice(start, start + len(table))
            step[rows] += table.tokens
            seconds[rows] = table.seconds
        # `step` is where one cycle leads. All windows grow by one cycle per pass of the loop; those
        # that have ended stay where they are.
        columns = np.arange(shape[1])
        reached = step.copy()
        total = seconds.copy()
        cycles = (step > node).astype(np.int16)
        last = np.where(step > node, node, -1)
        for _ in range(self.cache_steps - 1):
            following = step[reached, columns]
            if self._similar is not None:
                place = reached - np.repeat(self.starts, self._lengths)[:, None]
                following = np.where(self._similar[node, place], following, reached)
            should_continue = following > reached
            total += np.where(should_continue, seconds[reached, columns], 0.0)
            cycles += should_continue
            last = np.where(should_continue, reached, last)
            reached = following
        self.next_node = reached.astype(np.int32)
        self.seconds = total.astype(np.float32)
        self.cycles = cycles
        last[:, [action.total_tokens == 1 for action in self.actions]] = -1
        self.last_drafted = last.astype(np.int32) if "confidence" in self.extras else None

    def observe(self, nodes: np.ndarray, acceptance: np.ndarray, drafted: np.ndarray) -> np.ndarray:
        """Return the observations at nodes.

        Args:
            nodes: (n,) nodes.
            acceptance: (n,) running acceptance lengths.
            drafted: (n,) nodes of the last cycles that drafted; -1 for none.

        Returns:
            (n, size) float32.
        """
        features = self._features[nodes]
        if not self.extras:
            return features
        columns = {
            "acceptance": lambda: acceptance[:, None],
            "position": lambda: self._positions[nodes, None] / POSITION_SCALE,
            "confidence": lambda: self._confidence[drafted],
        }
        parts = [columns[extra]() for extra in self.extras]
        return np.concatenate([features, *parts], axis=1, dtype=np.float32)


class Advance(NamedTuple):
    """The outcome of a decision's windows in n sequences.

    Attributes:
        tokens: (n,) int64 tokens emitted.
        seconds: (n,) float32 duration.
        cycles: (n,) int16 cycles.
        ended: (n,) bool, whether the trace is over.
    """

    tokens: np.ndarray
    seconds: np.ndarray
    cycles: np.ndarray
    ended: np.ndarray


class TraceWalk:
    """The positions of some sequences in `TraceWindows`.

    Attributes:
        nodes: (n,) int64 nodes.
        acceptance: (n,) float64 running acceptance lengths.
        drafted: (n,) int64 nodes of the last cycles that drafted; -1 for none.
    """

    def __init__(self, windows: TraceWindows, traces: np.ndarray) -> None:
        """Begin (n,) traces."""
        self._windows = windows
        self.nodes = windows.starts[traces].astype(np.int64)
        self.acceptance = np.zeros(len(self.nodes))
        self.drafted = np.full(len(self.nodes), -1)

    def restart(self, sequences: np.ndarray, traces: np.ndarray) -> None:
        """Begin other traces in some sequences."""
        self.nodes[sequences] = self._windows.starts[traces]
        self.acceptance[sequences] = 0.0
        self.drafted[sequences] = -1

    def observe(self, sequences: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the observations (n, size) of some sequences, or of all."""
        return self._windows.observe(
            self.nodes[sequences], self.acceptance[sequences], self.drafted[sequences]
        )

    def advance(self, actions: np.ndarray, sequences: np.ndarray | slice = slice(None)) -> Advance:
        """Advance by the windows of a decision.

        Args:
            actions: (n, horizon) int64.
            sequences: those to advance; all by default.
        """
        windows, nodes, drafted = self._windows, self.nodes[sequences], self.drafted[sequences]
        seconds, cycles = np.zeros(len(nodes), np.float32), np.zeros(len(nodes), np.int16)
        following = nodes
        # Beyond the end of a trace a window is empty.
        for chosen in actions.T:
            seconds += windows.seconds[following, chosen]
            cycles += windows.cycles[following, chosen]
            if windows.last_drafted is not None:
                newest = windows.last_drafted[following, chosen]
                drafted = np.where(newest >= 0, newest, drafted)
            following = windows.next_node[following, chosen].astype(np.int64)
        tokens, ended = following - nodes, following == windows.ends[nodes]
        self.acceptance[sequences] = running_acceptance(self.acceptance[sequences], tokens, cycles)
        self.nodes[sequences], self.drafted[sequences] = following, drafted
        return Advance(tokens, seconds, cycles, ended)


def padded_confidence(best: np.ndarray) -> np.ndarray:
    """Return log-probabilities (n, 1 to 8) as (n, 8) float32.

    A draft vocabulary of fewer than 8 tokens lacks the others: -100 stands for them.
    """
    missing = _EXTRA_SIZES["confidence"] - best.shape[1]
    return np.pad(best.astype(np.float32), ((0, 0), (0, missing)), constant_values=-100.0)


def running_acceptance(previous: np.ndarray, tokens: np.ndarray, cycles: np.ndarray) -> np.ndarray:
    """Return the running acceptance length after a window.

    It was 0 before the first window, whose own length it becomes.
    """
    newest = tokens / np.maximum(cycles, 1)
    mixed = (1 - ACCEPTANCE_ALPHA) * previous + ACCEPTANCE_ALPHA * newest
    return np.where(previous > 0, mixed, newest)


def _with_last_row(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part for array in arrays for part in (array, array[-1:])])
