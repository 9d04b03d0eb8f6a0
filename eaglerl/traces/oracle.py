"""What is the most that choosing trees can give: exact bounds on recorded traces.

A trace's tokens are given, so that the policy with the least total time has the most tokens per
second. All bounds are exact for the cost table that they are computed with.
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
    """Outcome of every action at every position of one trace.

    Attributes:
        domain: where the prompt comes from.
        tokens: (P, A) int64 tokens that a cycle emits, never more than there are left.
        seconds: (P, A) float64 duration of the cycle.
    """

    domain: str
    tokens: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, trace: Trace, actions: Sequence[TreeParams], cost: CostTable) -> TraceTable:
        """The table of a trace.

        Raises:
            ValueError: an action that the trace or the cost table does not know.
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
    """The tables of several traces.

    Raises:
        ValueError: no traces, or an action that a trace or the cost table does not know.
    """
    tables = [TraceTable.of(trace, actions, cost) for trace in traces]
    if not tables:
        raise ValueError("traces must hold at least one trace")
    return tables


def constant_seconds(table: TraceTable) -> np.ndarray:
    """(A,) float64 time that each action takes for the whole trace, chosen at every cycle."""
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
    """The fastest choice at every position, by dynamic programming from the end.

    V(P) = 0, V(i) = min_a [t(i, a) + V(i + L(i, a))].

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
    """Decode a trace by a choice per position.

    Args:
        table: the trace's outcomes.
        choice: (P,) actions.

    Returns:
        Cycles, seconds, and the positions that were visited.
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
    """An oracle that does not look beyond the cycle: argmax_a L(i, a) - lambda t(i, a).

    lambda is the ratio of sums that this very rule gives (Dinkelbach 1967): iterated until it stays
    where it is.

    Args:
        tables: the traces.
        tolerance: relative change of lambda that counts as none.
        max_rounds: most iterations.

    Returns:
        Total seconds, and lambda in tokens per second.
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
        plain: without drafting; NaN where T = 1 is none of the actions.
        constant: the best constant tree, in hindsight.
        constant_action: its index.
        per_domain: the best constant of every domain.
        per_prompt: the best constant of every prompt.
        myopic: the best choice at every cycle by L - lambda t.
        oracle: the best sequence of choices.
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
        """Gain in tokens per second of the oracle over the best constant: 0.33 for a third."""
        return self.constant / self.oracle - 1.0

    def captured(self, seconds: float) -> float:
        """Share of the oracle's gain in tokens per second that a policy's time amounts to."""
        return (1.0 / seconds - 1.0 / self.constant) / (1.0 / self.oracle - 1.0 / self.constant)


def bounds(traces: Iterable[Trace], actions: ActionSpace, cost: CostTable) -> Bounds:
    """All bounds on some traces.

    Raises:
        ValueError: no traces, or an action that a trace or the cost table does not know.
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
    """The `count` actions that together cover most of the oracle's gain.

    Greedy: the best constant tree first, then always the action that shortens the exact oracle's
    time over all traces the most.

    Args:
        space: the actions to choose from.
        traces: recorded continuations.
        cost: time of every action.
        count: actions to choose.

    Returns:
        Indices, in the order in which they were chosen; see `ActionSpace.subset`.

    Raises:
        ValueError: no traces, or `count` outside 1 to the number of actions.
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
    """(A,) the oracle's time with the chosen actions and each of all actions besides."""
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
    """The actions that all traces and the cost table have an answer for.

    Args:
        space: the actions.
        traces: recorded continuations.
        cost: of a machine.

    Raises:
        ValueError: there is none.
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
