"""Decoding of made-up texts on a simulated clock: no model, and the truth is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    CycleState,
    DraftProgress,
    StepResult,
    TreeParams,
    TreePolicy,
)
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup

WIDTH, DEPTH, LOOKUP = 4, 5, 12
#: What a token that the draft has not read adds to its first pass, beside the target's pass.
CATCH_UP = 0.005


@dataclass(frozen=True)
class Cycle:
    """What a cycle would draft, and what the target would accept of it.

    Attributes:
        scores: (4 + 5 * 16,) float32 cumulative log-probabilities of all candidates.
        path: accepted candidate of each level, as far as there is one.
        lookup: what prompt lookup proposes.
        right: number of leading looked-up tokens that the target accepts.
    """

    scores: np.ndarray
    path: list[int]
    lookup: Lookup
    right: int


@dataclass
class Text:
    """A text whose draft is right `trust` times as often as it believes.

    Attributes:
        trust: probability that the target agrees with the draft's own probabilities; 0 for a draft
            of chance.
        sharpness: concentration of the draft's probabilities; the smaller, the surer it is.
        match: share of the cycles in which prompt lookup finds something.
        lookup_right: probability that a looked-up token is right if those before are.
        seed: seed of the text.
    """

    trust: float = 1.0
    sharpness: float = 0.3
    match: float = 0.0
    lookup_right: float = 0.0
    seed: int = 0
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def cycle(self) -> Cycle:
        """Draw the next cycle."""
        draw = self.draw
        # A fifth probability is that of all other tokens.
        weights = draw.standard_gamma(self.sharpness, (1 + DEPTH * WIDTH, WIDTH + 1)) + 1e-12
        probs = np.sort(weights / weights.sum(1, keepdims=True), axis=1)[:, ::-1]
        logs = np.log(probs[:, :WIDTH] + 1e-9)
        chosen = draw.random(DEPTH + 1)
        scores = [logs[0]]
        path: list[int] = []
        at, begin = 0, 0  # node of `logs` that is the accepted one, and its children's first index
        alive = True
        for level in range(DEPTH + 1):
            if level:
                parents = np.argsort(-scores[-1], kind="stable")[:WIDTH]
                nodes = 1 + (level - 1) * WIDTH + np.arange(WIDTH)
                start = sum(len(each) for each in scores)
                if alive:
                    place = np.flatnonzero(parents == path[-1] - (start - len(scores[-1])))
                    alive = len(place) == 1
                if alive:
                    at, begin = int(nodes[place[0]]), start + int(place[0]) * WIDTH
                scores.append((scores[-1][parents, None] + logs[nodes]).ravel())
            if alive:
                child = int(
                    np.searchsorted(np.cumsum(self.trust * probs[at, :WIDTH]), chosen[level])
                )
                alive = child < WIDTH
                if alive:
                    path.append(begin + child)
        lookup, right = NO_LOOKUP, 0
        if draw.random() < self.match:
            lookup = Lookup(int(draw.integers(2, 17)), tuple(range(100, 100 + LOOKUP)))
            right = min(int(draw.geometric(1 - self.lookup_right)) - 1, LOOKUP)
        return Cycle(np.concatenate(scores).astype(np.float32), path, lookup, right)


@dataclass
class Clock:
    """Times of a cost table, with noise and stalls.

    Attributes:
        table: the true costs.
        noise: standard deviation of the logarithm of a time.
        stalls: share of the times that are 2 to 10 times as long.
        seed: seed of noise and stalls.
    """

    table: CostTable
    noise: float = 0.05
    stalls: float = 0.01
    seed: int = 0
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed + 1_000_000)

    def measure(self, true: float) -> float:
        """Return what a stopwatch would show."""
        stall = self.draw.uniform(2, 10) if self.draw.random() < self.stalls else 1.0
        return true * math.exp(self.draw.normal(0, self.noise)) * stall


class _State(CycleState):
    """A state whose lookup is made up."""

    found: Lookup

    def lookup(self, max_tokens: int) -> Lookup:
        return self.found


@dataclass(frozen=True)
class Decoded:
    """Tokens and true seconds of every cycle."""

    tokens: np.ndarray
    seconds: np.ndarray
    drafted: np.ndarray

    def rate(self, begin: int = 0) -> float:
        """Return the tokens per second of the cycles from `begin` on."""
        return float(self.tokens[begin:].sum() / self.seconds[begin:].sum())


def decode(policy: TreePolicy, text: Text, clock: Clock, cycles: int) -> Decoded:
    """Decode with a policy that selects its nodes."""
    policy.reset()
    state = _State(torch.zeros(3), 0, None)
    context, read, columns = 50, 42, ([], [], [])
    for _ in range(cycles):
        cycle = text.cycle()
        object.__setattr__(state, "found", cycle.lookup)
        object.__setattr__(state, "context_length", context)
        result, true = _run(policy, cycle, state, clock, context - read)
        if result.params != NO_DRAFT:
            read = context
        policy.observe(result)
        context += len(result.token_ids)
        for column, value in zip(
            columns, (len(result.token_ids), true, result.params != NO_DRAFT), strict=True
        ):
            column.append(value)
    return Decoded(*(np.array(column) for column in columns))


def _run(
    policy: TreePolicy, cycle: Cycle, state: CycleState, clock: Clock, unread: int
) -> tuple[StepResult, float]:
    """Return what a cycle reports, and its true seconds."""
    plan, table, context = policy.choose(state), clock.table, state.context_length
    lookup = cycle.lookup
    if plan.tree is None:
        lookup = Lookup(lookup.match_length, lookup.token_ids[: plan.lookup_tokens])
        rows, params, accepted = 1 + len(lookup.token_ids), NO_DRAFT, 0
        accepted = min(cycle.right, len(lookup.token_ids))
        accepted_rows = tuple(range(1, 1 + accepted))
        draft = 0.0
    else:
        nodes = np.full(DEPTH + 1, -1)
        inside = min(cycle.right, len(cycle.path))
        nodes[:inside] = cycle.path[:inside]
        for depth in range(DEPTH + 1):
            progress = DraftProgress(
                WIDTH, depth, cycle.scores[: WIDTH + depth * WIDTH**2], context, lookup,
                nodes[: depth + 1] if lookup.match_length else None,
            )  # fmt: skip
            if depth == DEPTH or not policy.should_continue(progress):
                break
        selection = policy.select(progress)
        rows = selection.choose_total_tokens(progress)
        accepted_rows = _accepted_rows(selection, cycle, nodes[: depth + 1])
        accepted = len(accepted_rows)
        params = TreeParams(min(rows, 1 + len(progress.scores)), depth, WIDTH)
        draft = float(table.draft_seconds(depth, WIDTH, context))
        draft += CATCH_UP * max(unread - 8, 0) * float(table.verify_seconds(1, 0))
    verify = float(table.verify_seconds(rows, context))
    right = range(100, 100 + min(cycle.right, accepted))
    emitted = (*right, *(7,) * (accepted + 1 - len(right)))
    if lookup.match_length and accepted < cycle.right:
        emitted = (*emitted[:-1], 100 + accepted)  # the bonus token, which the text repeats, too
    result = StepResult(
        emitted, params, accepted, clock.measure(draft), clock.measure(verify), state.features,
        context + len(emitted), lookup, 0, rows, 0.0, accepted_rows,
    )  # fmt: skip
    return result, verify + draft


def _accepted_rows(selection, cycle: Cycle, looked_up: np.ndarray) -> tuple[int, ...]:
    row_of = {int(node): 1 + row for row, node in enumerate(np.sort(selection.nodes))}
    shared = 0
    while shared < len(looked_up) and int(looked_up[shared]) in row_of:
        shared += 1
    by_tree = 0
    while by_tree < len(cycle.path) and cycle.path[by_tree] in row_of:
        by_tree += 1
    by_lookup = min(cycle.right, selection.lookup_tokens)
    rows = []
    for level in range(max(by_tree, by_lookup)):
        node = cycle.path[level] if level < len(cycle.path) else -1
        rows.append(row_of.get(node, 1 + len(row_of) + level - shared))
    return tuple(rows)


def constant_rate(tree: TreeParams, cycles: list[Cycle], table: CostTable) -> float:
    """Return the tokens per second of a constant tree of width 4, or of plain decoding."""
    if tree.total_tokens == 1:
        return 1 / float(table.verify_seconds(1, 0))
    size, tokens = WIDTH + tree.depth * WIDTH**2, 0
    for cycle in cycles:
        best = set(
            np.argsort(-cycle.scores[:size], kind="stable")[: tree.total_tokens - 1].tolist()
        )
        length = 0
        while length < len(cycle.path) and cycle.path[length] in best:
            length += 1
        tokens += 1 + length
    seconds = table.verify_seconds(tree.total_tokens, 0)
    seconds += table.draft_seconds(tree.depth, WIDTH, 0)
    return tokens / len(cycles) / float(seconds)
