"""Decoding of made-up texts on a simulated clock: no model, and the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from eaglerl.eagle3.policy import (
    NO_DRAFT,
    CycleState,
    DraftPlan,
    DraftProgress,
    Selection,
    StepResult,
    TreeParams,
    TreePolicy,
)
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.policies import AutoPolicy

from ..simulated_clock import WIDTH, Clock

DEPTH, LOOKUP = 5, 12
#: Tokens that the draft does not propose.
OTHERS = 1000
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
        temperature: of the target, whose probabilities are flatter than the draft's accordingly.
        match: share of the cycles in which prompt lookup finds something.
        lookup_right: probability that a looked-up token is right if those before are.
        seed: seed of the text.
    """

    trust: float = 1.0
    sharpness: float = 0.3
    temperature: float = 1.0
    match: float = 0.0
    lookup_right: float = 0.0
    seed: int = 0
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def cycles(self, count: int) -> list[Cycle]:
        """Draw the next cycles."""
        draw = self.draw
        # A fifth probability is that of all other tokens.
        weights = draw.standard_gamma(self.sharpness, (count, 1 + DEPTH * WIDTH, WIDTH + 1)) + 1e-12
        probs = np.sort(weights / weights.sum(2, keepdims=True), axis=2)[:, :, ::-1]
        logs = np.log(probs[:, :, :WIDTH] + 1e-9)
        reached = np.cumsum(self.trust * self._target(probs), axis=2)
        chosen = draw.random((count, DEPTH + 1))
        each = np.arange(count)
        level = logs[:, 0]
        scores = [level]
        # The accepted node so far: its row of `probs`, and its children's first candidate.
        at, begin = np.zeros(count, dtype=int), np.zeros(count, dtype=int)
        alive = np.ones(count, dtype=bool)
        path = np.full((count, DEPTH + 1), -1)
        start = 0
        for depth in range(DEPTH + 1):
            if depth:
                parents = np.argsort(-level, axis=1, kind="stable")[:, :WIDTH]
                among = parents == (path[:, depth - 1] - start)[:, None]
                alive &= among.any(axis=1)
                place, first = among.argmax(axis=1), 1 + (depth - 1) * WIDTH
                start += level.shape[1]
                at, begin = first + place, start + place * WIDTH
                above = np.take_along_axis(level, parents, axis=1)
                level = (above[:, :, None] + logs[:, first : first + WIDTH]).reshape(count, -1)
                scores.append(level)
            child = (reached[each, at] < chosen[:, depth, None]).sum(axis=1)
            alive &= child < WIDTH
            path[:, depth] = np.where(alive, begin + child, -1)
        all_scores = np.concatenate(scores, axis=1).astype(np.float32)
        lengths = (path >= 0).sum(axis=1)
        return [Cycle(all_scores[i], path[i, : lengths[i]].tolist(), *self._lookup()) for i in each]

    def _target(self, probs: np.ndarray) -> np.ndarray:
        """Return the target's probabilities of the draft's best tokens."""
        flat = probs ** (1 / self.temperature)
        flat[:, :, WIDTH] *= OTHERS ** (1 - 1 / self.temperature)
        return flat[:, :, :WIDTH] / flat.sum(axis=2, keepdims=True)

    def _lookup(self) -> tuple[Lookup, int]:
        draw = self.draw
        if draw.random() >= self.match:
            return NO_LOOKUP, 0
        lookup = Lookup(int(draw.integers(2, 17)), tuple(range(100, 100 + LOOKUP)))
        return lookup, min(int(draw.geometric(1 - self.lookup_right)) - 1, LOOKUP)


class MadeUpState(CycleState):
    """A state whose lookup is made up."""

    found: Lookup

    def lookup(self, max_tokens: int) -> Lookup:
        return self.found


@dataclass(frozen=True)
class Decoded:
    """Tokens, true seconds and verified rows of every cycle, and whether it drafted."""

    tokens: np.ndarray
    seconds: np.ndarray
    rows: np.ndarray
    drafted: np.ndarray

    def rate(self, begin: int = 0, end: int | None = None) -> float:
        """Return the tokens per second of the cycles from `begin` to `end`."""
        return float(self.tokens[begin:end].sum() / self.seconds[begin:end].sum())


class Informed(AutoPolicy):
    """The policy that knows the true costs at every moment."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.true = self._true_costs()

    def choose(self, state: CycleState) -> DraftPlan:
        if self.clock.later is not None:
            self.true = self._true_costs()
        self.cost._native.restore(self.true, np.full(len(self.true), 1e-3), 1)
        return super().choose(state)

    def _true_costs(self) -> np.ndarray:
        knots = self.cost._native.knots().tolist()
        rows = np.log([self.clock.verify_seconds(min(knot, 32)) for knot in knots])
        first, second = self.clock.draft_seconds(0), self.clock.draft_seconds(1)
        passes = np.log([first, second - first])
        return np.concatenate((rows[:1], rows[1:] - rows[0], np.log([1e-9]), passes - rows[0]))


def decode(policy: TreePolicy, cycles: Sequence[Cycle], clock: Clock) -> Decoded:
    """Decode with a policy that selects its nodes."""
    policy.reset()
    state = MadeUpState(torch.zeros(3), 0, None)
    context, read, columns = 50, 42, []
    for cycle in cycles:
        object.__setattr__(state, "found", cycle.lookup)
        object.__setattr__(state, "context_length", context)
        result, true = _run(policy, cycle, state, clock, context - read)
        drafted = result.params != NO_DRAFT
        if drafted:
            read = context
        policy.observe(result)
        clock.cycle += 1
        context += len(result.token_ids)
        columns.append((len(result.token_ids), true, result.rows, drafted))
    return Decoded(*(np.array(column) for column in zip(*columns, strict=True)))


def _run(
    policy: TreePolicy, cycle: Cycle, state: CycleState, clock: Clock, unread: int
) -> tuple[StepResult, float]:
    """Return what a cycle reports, and its true seconds."""
    plan, context = policy.choose(state), state.context_length
    lookup = cycle.lookup
    if plan.tree is None:
        lookup, accepted_rows = cut_lookup(cycle, plan)
        rows, params, draft = 1 + len(lookup.token_ids), NO_DRAFT, 0.0
    else:
        nodes = looked_up_nodes(cycle)
        for depth in range(DEPTH + 1):
            progress = DraftProgress(
                WIDTH, depth, cycle.scores[: WIDTH + depth * WIDTH**2], context, lookup,
                nodes[: depth + 1] if lookup.match_length else None,
            )  # fmt: skip
            if depth == DEPTH or not policy.should_continue(progress):
                break
        selection = policy.select(progress)
        rows = selection.choose_total_tokens(progress)
        accepted_rows = accepted_rows_of(selection, cycle, nodes[: depth + 1])
        params = TreeParams(min(rows, 1 + len(progress.scores)), depth, WIDTH)
        draft = clock.draft_seconds(depth, context)
        draft += CATCH_UP * max(unread - 8, 0) * clock.verify_seconds(1)
    verify = clock.verify_seconds(rows, context)
    emitted = emitted_tokens(cycle, lookup, len(accepted_rows))
    result = StepResult(
        emitted, params, len(accepted_rows), clock.measure(draft),
        clock.measure_verification(rows, context), state.features,
        context + len(emitted), lookup, 0, rows, 0.0, accepted_rows,
    )  # fmt: skip
    return result, verify + draft


def cut_lookup(cycle: Cycle, plan: DraftPlan) -> tuple[Lookup, tuple[int, ...]]:
    """Return what is verified without a draft, and its accepted rows."""
    match, tokens = cycle.lookup
    lookup = Lookup(match, tokens[: plan.lookup_tokens])
    return lookup, tuple(range(1, 1 + min(cycle.right, len(lookup.token_ids))))


def looked_up_nodes(cycle: Cycle) -> np.ndarray:
    """Return each level's candidate that holds the looked-up token, or -1."""
    nodes = np.full(DEPTH + 1, -1)
    inside = min(cycle.right, len(cycle.path))
    nodes[:inside] = cycle.path[:inside]
    return nodes


def emitted_tokens(cycle: Cycle, lookup: Lookup, accepted: int) -> tuple[int, ...]:
    """Return the accepted tokens, which are the looked-up ones as far as those are right."""
    right = range(100, 100 + min(cycle.right, accepted))
    emitted = (*right, *(7,) * (accepted + 1 - len(right)))
    if lookup.match_length and accepted < cycle.right:
        emitted = (*emitted[:-1], 100 + accepted)  # the bonus token, which the text repeats, too
    return emitted


def accepted_rows_of(selection: Selection, cycle: Cycle, looked_up: np.ndarray) -> tuple[int, ...]:
    """Return the accepted rows of a selection's tree."""
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


def constant_rates(trees: Sequence[TreeParams], cycles: Sequence[Cycle], clock: Clock) -> list:
    """Return the tokens per second of constant trees of width 4, or of plain decoding."""
    return [
        tokens / (clock.verify_seconds(tree.total_tokens) + clock.draft_seconds(tree.depth))
        if tree != NO_DRAFT
        else 1 / clock.verify_seconds(1)
        for tree, tokens in zip(trees, constant_tokens(trees, cycles), strict=True)
    ]


def constant_tokens(trees: Sequence[TreeParams], cycles: Sequence[Cycle]) -> list[float]:
    """Return the mean tokens of a cycle with constant trees of width 4.

    Ancestors score no less than a candidate and come before it, so a path is accepted up to its
    first candidate that is not among a tree's best.
    """
    scores = np.stack([cycle.scores for cycle in cycles])
    path = np.array([cycle.path + [-1] * (DEPTH + 1 - len(cycle.path)) for cycle in cycles])
    ranks = []
    for depth in range(DEPTH + 1):
        best = np.argsort(-scores[:, : WIDTH + depth * WIDTH**2], axis=1, kind="stable")
        rank = np.take_along_axis(np.argsort(best, axis=1), np.maximum(path[:, : depth + 1], 0), 1)
        ranks.append(np.where(path[:, : depth + 1] < 0, scores.shape[1], rank))
    accepted = [(ranks[tree.depth] < tree.total_tokens - 1).sum() for tree in trees]
    return [float(1 + count / len(cycles)) for count in accepted]
