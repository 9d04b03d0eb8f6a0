"""Decoding of made-up texts together, on a simulated clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from eaglerl.cost import CostTable
from eaglerl.eagle3.policy import (
    NO_DRAFT,
    DraftPlan,
    Selection,
    StepResult,
    TreeParams,
)
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.policies.batch_auto import BatchAutoPolicy

from ..simulated_clock import FLAT, STEEP, STEP, WIDTH, Clock
from .made_up_texts import (
    CATCH_UP,
    DEPTH,
    Cycle,
    MadeUpState,
    accepted_rows_of,
    constant_tokens,
    cut_lookup,
    emitted_tokens,
    looked_up_nodes,
)


def to_64_rows(table: CostTable, seconds: float) -> CostTable:
    """Return a table that goes on to 64 rows, which take so long."""
    return replace(
        table,
        total_tokens=(*table.total_tokens, 64),
        verify_base=(*table.verify_base, seconds),
        verify_slope=(*table.verify_slope, 0.0),
    )


#: Costs of up to 64 rows, and by how much of a draft's pass another slot prolongs it.
STEEP_64 = (to_64_rows(STEEP, 0.17), 0.3)
STEP_64 = (to_64_rows(STEP, 0.1), 0.1)
FLAT_64 = (to_64_rows(FLAT, 0.01), 0.02)


@dataclass
class BatchClock(Clock):
    """A clock of passes that several slots share.

    Attributes:
        another: by how much of a draft's pass another slot prolongs it.
    """

    another: float = 0.1

    def passes_seconds(self, slots: Sequence[int]) -> float:
        """Return the true seconds of a draft whose passes have so many slots each."""
        first = self.draft_seconds(0)
        later = self.draft_seconds(1) - first
        each = [first, *[later] * (len(slots) - 1)]
        return sum(s * (1 + self.another * (m - 1)) for s, m in zip(each, slots, strict=True))


@dataclass(frozen=True)
class State:
    """What a policy sees of a slot: room for everything."""

    slot: int
    state: MadeUpState
    most_tokens: int = 1000
    unread: int = 1

    def cut(self, plan: DraftPlan) -> DraftPlan:
        return plan


def made_up_state(context_length: int, found: Lookup) -> MadeUpState:
    """Return a state whose lookup finds this."""
    state = MadeUpState(torch.zeros(3), context_length, None)
    object.__setattr__(state, "found", found)
    return state


@dataclass(frozen=True)
class BatchDecoded:
    """Of every cycle: tokens and rows of each slot, whether it drafted, and the true seconds."""

    tokens: np.ndarray
    rows: np.ndarray
    drafted: np.ndarray
    seconds: np.ndarray

    def rate(self, begin: int = 0, end: int | None = None) -> float:
        """Return the tokens per second of the cycles from `begin` to `end`."""
        return float(self.tokens[begin:end].sum() / self.seconds[begin:end].sum())


class Batch:
    """Texts that are decoded together; what it knows of them lasts from call to call."""

    def __init__(self, policy: BatchAutoPolicy, clock: BatchClock, slots: int) -> None:
        self.policy, self.clock, self.slots = policy, clock, slots
        self.contexts, self.read = [50] * slots, [42] * slots
        # As `AutoPolicy` counts: at its beginning the draft has read nothing.
        self.told = [0] * slots
        for slot in range(slots):
            policy.join(slot)

    def decode(self, texts: Sequence[Sequence[Cycle]]) -> BatchDecoded:
        """Decode the next cycles of a text in every slot."""
        found = [self._run(cycles) for cycles in zip(*texts, strict=True)]
        return BatchDecoded(*(np.array(column) for column in zip(*found, strict=True)))

    def _run(self, cycles: Sequence[Cycle]) -> tuple[list[int], list[int], list[bool], float]:
        clock, policy = self.clock, self.policy
        plans = policy.plan(self._states(cycles))
        drafting = [slot for slot, plan in enumerate(plans) if plan.tree is not None]
        passes, depths = self._draft(cycles, drafting)
        results, unread = [], 0
        for slot, (cycle, plan) in enumerate(zip(cycles, plans, strict=True)):
            if slot in drafting:
                unread += max(self.contexts[slot] - self.read[slot] - 8, 0)
                self.read[slot] = self.told[slot] = self.contexts[slot]
            results.append((slot, self._verify(slot, cycle, plan, depths.get(slot))))
        rows = sum(result.rows for _, result in results)
        draft = clock.passes_seconds(passes) if passes else 0.0
        draft += CATCH_UP * unread * clock.verify_seconds(1)
        measured = clock.measure(draft), clock.measure_verification(rows)
        policy.observe(results, rows, *measured)
        clock.cycle += 1
        tokens = [len(result.token_ids) for _, result in results]
        self.contexts = [a + b for a, b in zip(self.contexts, tokens, strict=True)]
        verified = [result.rows for _, result in results]
        drafted = [slot in drafting for slot in range(self.slots)]
        return tokens, verified, drafted, clock.verify_seconds(rows) + draft

    def _states(self, cycles: Sequence[Cycle]) -> list[State]:
        return [
            State(
                slot,
                made_up_state(self.contexts[slot], cycle.lookup),
                unread=self.contexts[slot] - self.told[slot],
            )
            for slot, cycle in enumerate(cycles)
        ]

    def _draft(
        self, cycles: Sequence[Cycle], drafting: list[int]
    ) -> tuple[list[int], dict[int, int]]:
        """Return the number of slots in each pass, and the depth that each slot reached."""
        going, passes, depths = drafting, [], {}
        for depth in range(DEPTH + 1):
            if not going:
                break
            passes.append(len(going))
            for slot in going:
                depths[slot] = depth
                self._look(slot, cycles[slot], depth)
            going = self.policy.continuing()
        if drafting:
            self.policy.select()
        return passes, depths

    def _look(self, slot: int, cycle: Cycle, depth: int) -> None:
        """Do what the policy does with a builder."""
        nodes = looked_up_nodes(cycle)[: depth + 1] if cycle.lookup.match_length else None
        self.policy._native.score(
            slot, cycle.scores[: WIDTH + depth * WIDTH**2], depth, self.contexts[slot],
            cycle.lookup.match_length, len(cycle.lookup.token_ids), nodes,
        )  # fmt: skip

    def _verify(self, slot: int, cycle: Cycle, plan: DraftPlan, depth: int | None) -> StepResult:
        lookup = cycle.lookup
        if depth is None:
            lookup, accepted = cut_lookup(cycle, plan)
            rows, params = 1 + len(lookup.token_ids), NO_DRAFT
        else:
            selection = Selection(*self.policy._native.selection(slot))
            nodes = looked_up_nodes(cycle)[: depth + 1]
            shared = int((nodes >= 0).sum()) if lookup.match_length else 0
            rows = 1 + len(selection.nodes) + max(0, selection.lookup_tokens - shared)
            accepted = accepted_rows_of(selection, cycle, nodes)
            params = TreeParams(min(rows, 1 + WIDTH + depth * WIDTH**2), depth, WIDTH)
        emitted = emitted_tokens(cycle, lookup, len(accepted))
        return StepResult(
            emitted, params, len(accepted), 0.0, 0.0, torch.zeros(3),
            self.contexts[slot] + len(emitted), lookup, 0, rows, 0.0, accepted,
        )  # fmt: skip


def uniform_rates(
    trees: Sequence[TreeParams], texts: Sequence[Sequence[Cycle]], clock: BatchClock
) -> dict[TreeParams, float]:
    """Return the tokens per second of each tree in all slots alike, as far as 64 rows allow."""
    slots = len(texts)
    tokens = np.sum([constant_tokens(trees, cycles) for cycles in texts], axis=0)
    rates = {}
    for tree, emitted in zip(trees, tokens, strict=True):
        if slots * tree.total_tokens > 64:
            continue
        seconds = clock.verify_seconds(slots * tree.total_tokens)
        if tree != NO_DRAFT:
            seconds += clock.passes_seconds([slots] * (tree.depth + 1))
        rates[tree] = float(emitted) / seconds
    return rates
