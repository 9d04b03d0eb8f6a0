"""Exact bounds on what a choice of trees can gain, on recorded traces.

The tokens of a trace are given, so the policy with the least total time has the most tokens per
second. All bounds are exact with respect to the cost table. They cover choices among draft trees:
a policy with prompt lookup may exceed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams
from eaglerl.traces.trace_set import Trace


@dataclass(frozen=True, eq=False)
class TraceTable:
    """Tokens and seconds of every action at every position of one trace.

    Attributes:
        domain: source of the prompt.
        tokens: (P, A) int64 tokens that a cycle emits, at most those left in the trace.
        seconds: (P, A) float64 duration of the cycle.
    """

    domain: str
    tokens: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, trace: Trace, actions: Sequence[TreeParams], cost: CostTable) -> TraceTable:
        """Make the table of a trace.

        Raises:
            ValueError: the trace or the cost table lacks an action.
        """
        lengths = trace.accepted_lengths(actions).astype(np.int64)
        return cls(
            trace.domain,
            np.minimum(lengths, trace.remaining[:, None]),
            cost.matrix(actions, trace.context_lengths),
        )

    def __len__(self) -> int:
        return self.tokens.shape[0]


def trace_tables(
    traces: Iterable[Trace], actions: Sequence[TreeParams], cost: CostTable
) -> list[TraceTable]:
    """Make the tables of several traces.

    Raises:
        ValueError: there are no traces, or a trace or the cost table lacks an action.
    """
    tables = [TraceTable.of(trace, actions, cost) for trace in traces]
    if not tables:
        raise ValueError("traces must hold at least one trace")
    return tables


def constant_seconds(table: TraceTable) -> np.ndarray:
    """Return the (A,) float64 seconds of decoding the whole trace with each action alone."""
    # total[i] is the time from position i to the end, so one backward pass serves all actions.
    positions, count = table.tokens.shape
    total = np.zeros((positions + 1, count))
    columns = np.arange(count)
    for position in range(positions - 1, -1, -1):
        following = total[position + table.tokens[position], columns]
        total[position] = table.seconds[position] + following
    return total[0]


def total_constant_seconds(tables: Iterable[TraceTable]) -> np.ndarray:
    """Return the (A,) float64 seconds that each action takes for all traces together."""
    return reduce(np.add, (constant_seconds(table) for table in tables))


def oracle_actions(table: TraceTable) -> tuple[np.ndarray, np.ndarray]:
    """Find the fastest choice at every position, by dynamic programming from the end.

    V(P) = 0, V(i) = min_a [t(i, a) + V(i + L(i, a))]. This is exact because in greedy decoding the
    text, and therefore every outcome L(i, a), is independent of the choices before.

    Returns:
        V, (P + 1,) float64 seconds to the end, and the minimising actions, (P,) int64.
    """
    positions = len(table)
    value = np.zeros(positions + 1)
    choice = np.empty(positions, dtype=np.int64)
    for position in range(positions - 1, -1, -1):
        total = table.seconds[position] + value[position + table.tokens[position]]
        choice[position] = total.argmin()
        value[position] = total[choice[position]]
    return value, choice


def follow(table: TraceTable, choice: np.ndarray) -> tuple[int, float, list[int]]:
    """Decode a trace with a given action at every position.

    Args:
        table: outcomes of the trace.
        choice: (P,) actions.

    Returns:
        Number of cycles, seconds, and the visited positions.
    """
    position, seconds, visited = 0, 0.0, []
    while position < len(table):
        visited.append(position)
        action = choice[position]
        seconds += float(table.seconds[position, action])
        position += int(table.tokens[position, action])
    return len(visited), seconds, visited


def myopic_seconds(
    tables: Sequence[TraceTable], *, tolerance: float = 1e-9, max_rounds: int = 100
) -> tuple[float, float]:
    """Return the time of an oracle that looks one cycle ahead: argmax_a L(i, a) - rate * t(i, a).

    The rate is the ratio of tokens to seconds that this rule itself reaches: it is iterated until
    it no longer grows (Dinkelbach 1967).

    Args:
        tables: the traces.
        tolerance: relative change of the rate at which iteration ends.
        max_rounds: most iterations.

    Returns:
        Total seconds, and the rate in tokens per second.
    """
    tokens = sum(len(table) for table in tables)
    best_seconds = total_constant_seconds(tables).min()
    rate = tokens / best_seconds
    for _ in range(max_rounds):
        seconds = 0.0
        for table in tables:
            choice = (table.tokens - rate * table.seconds).argmax(axis=1)
            seconds += follow(table, choice)[1]
        best_seconds = min(best_seconds, seconds)
        if tokens / seconds <= rate * (1 + tolerance):
            break
        rate = tokens / seconds
    return float(best_seconds), float(tokens / best_seconds)


@dataclass(frozen=True)
class Bounds:
    """Seconds for all traces together, from the weakest bound to the strongest.

    Attributes:
        tokens: tokens of all traces.
        plain: seconds without drafting; NaN if T = 1 is not among the actions.
        constant: seconds of the best constant tree in hindsight.
        constant_action: its index.
        per_domain: seconds of the best constant tree of each domain.
        per_prompt: seconds of the best constant tree of each prompt.
        myopic: seconds of the best choice at every cycle by L - rate * t.
        oracle: seconds of the best sequence of choices.
    """

    tokens: int
    plain: float
    constant: float
    constant_action: int
    per_domain: float
    per_prompt: float
    myopic: float
    oracle: float

    @property
    def headroom(self) -> float:
        """Gain in tokens per second of the oracle over the best constant tree: 0.33 for a third."""
        return self.constant / self.oracle - 1.0

    def captured(self, seconds: float) -> float:
        """Return the share of the oracle's gain in tokens per second that a policy reaches."""
        return (1.0 / seconds - 1.0 / self.constant) / (1.0 / self.oracle - 1.0 / self.constant)


def bounds(traces: Iterable[Trace], actions: ActionSpace, cost: CostTable) -> Bounds:
    """Compute all bounds on some traces.

    Raises:
        ValueError: there are no traces, or a trace or the cost table lacks an action.
    """
    tables = trace_tables(traces, actions, cost)
    constants = np.stack([constant_seconds(table) for table in tables])
    total = constants.sum(axis=0)
    order = sorted(range(len(tables)), key=lambda index: tables[index].domain)
    per_domain = sum(
        constants[list(group)].sum(axis=0).min()
        for _, group in groupby(order, key=lambda index: tables[index].domain)
    )
    plain = [column for column, tree in enumerate(actions) if tree.total_tokens == 1]
    return Bounds(
        tokens=sum(len(table) for table in tables),
        plain=float(total[plain[0]]) if plain else float("nan"),
        constant=float(total.min()),
        constant_action=int(total.argmin()),
        per_domain=float(per_domain),
        per_prompt=float(constants.min(axis=1).sum()),
        myopic=myopic_seconds(tables)[0],
        oracle=float(sum(oracle_actions(table)[0][0] for table in tables)),
    )


def select_actions(
    space: ActionSpace, traces: Iterable[Trace], cost: CostTable, count: int
) -> list[int]:
    """Select `count` actions that together cover most of the oracle's gain.

    The selection is greedy: the best constant tree first, then repeatedly the action that shortens
    the exact oracle's time over all traces the most.

    Args:
        space: the actions to choose from.
        traces: recorded continuations.
        cost: duration of every action.
        count: number of actions to select.

    Returns:
        Indices, in the order of selection; see `ActionSpace.subset`.

    Raises:
        ValueError: there are no traces, or `count` is not in 1 to the number of actions.
    """
    if not 1 <= count <= len(space):
        raise ValueError(f"count must lie in 1..{len(space)}, got {count}")
    tables = trace_tables(traces, space, cost)
    total = total_constant_seconds(tables)
    chosen = [int(total.argmin())]
    while len(chosen) < count:
        seconds = reduce(np.add, (_seconds_with_one_more(table, chosen) for table in tables))
        seconds[chosen] = np.inf
        chosen.append(int(seconds.argmin()))
    return chosen


def _seconds_with_one_more(table: TraceTable, chosen: Sequence[int]) -> np.ndarray:
    """Return the (A,) seconds of the oracle over the chosen actions plus each action in turn."""
    # Column a is the value function of the oracle with `chosen` and a: A dynamic programs at once.
    positions, count = table.tokens.shape
    value = np.zeros((positions + 1, count))
    columns = np.arange(count)
    own = list(chosen)
    for position in range(positions - 1, -1, -1):
        tokens, seconds = table.tokens[position], table.seconds[position]
        best = seconds + value[position + tokens, columns]
        known = seconds[own, None] + value[position + tokens[own]]
        value[position] = np.minimum(best, known.min(axis=0))
    return value[0]


def known_actions(space: ActionSpace, traces: Sequence[Trace], cost: CostTable) -> ActionSpace:
    """Return the actions that all traces and the cost table cover.

    Args:
        space: the actions.
        traces: recorded continuations.
        cost: cost table of a machine.

    Raises:
        ValueError: no action is covered.
    """
    widths = set(cost.top_ks).intersection(*(trace.top_ks for trace in traces))
    depth = min(trace.max_depth for trace in traces)
    rows = cost.total_tokens[-1]
    known = [
        tree
        for tree in space
        if tree.total_tokens <= rows
        and (tree.total_tokens == 1 or (tree.top_k in widths and tree.depth <= depth))
    ]
    if not known:
        raise ValueError(
            f"actions must hold a tree of the traces and the cost table, which have top_k in "
            f"{sorted(widths)}, depth up to {depth} and {rows} rows, got {space!r}"
        )
    return ActionSpace(known)
