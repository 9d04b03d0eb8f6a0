"""One cycle over all ready sequences of a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from eaglerl.eagle3.batch.batch_drafter import BatchDrafter
from eaglerl.eagle3.batch.batch_policy import BatchPolicy, SlotState
from eaglerl.eagle3.batch.batch_verification import BatchVerification
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence, CyclePart, alive, failing
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.policy import DraftPlan, StepResult
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.merge import merge_looked_up
from eaglerl.eagle3.tree.tree_drafter import check_top_k, root_only


@dataclass(frozen=True, slots=True)
class CycleShare:
    """What a cycle did for one sequence.

    Attributes:
        result: its result; None if the sequence failed.
        seconds: its share of the time of draft and verification, by rows.
    """

    result: StepResult | None
    seconds: float


class BatchCycle:
    """The steps of a cycle, each for all sequences: choose, look up, draft, verify, observe."""

    def __init__(
        self,
        target: TargetModel,
        draft: CachedDraft | None,
        policies: BatchPolicy,
        cache: KVCache,
    ) -> None:
        """Set up.

        Args:
            target: the target.
            draft: the draft's runner, with the slots of `cache`; None without a draft.
            policies: decides for all slots.
            cache: the target's KV cache.
        """
        self._draft = draft
        self._policies = policies
        self._fused = policies if isinstance(policies, FusedSlots) else None
        self._cache = cache
        self._drafter = None if draft is None else BatchDrafter(draft, policies)
        self._verification = BatchVerification(target, cache)

    def run(self, sequences: Sequence[BatchedSequence]) -> list[CycleShare]:
        """Run one cycle; a sequence that fails in it has its `error` set.

        Args:
            sequences: sequences whose prompts are read.

        Returns:
            One share per sequence, in the same order.
        """
        parts = [CyclePart(sequence) for sequence in sequences]
        self._decide([part for part in parts if part.sequence.state.decision is None])
        self._choose(parts)
        started = time.perf_counter()
        self._draft_trees(alive(parts))
        drafted = time.perf_counter()
        self._verification.verify(alive(parts))
        self._decide([part for part in alive(parts) if part.accepted is not None])
        verified = time.perf_counter()
        draft_seconds, verify_seconds = drafted - started, verified - drafted
        draft_shares = _shares([part.draft_rows for part in parts])
        verify_shares = _shares([part.tree_rows for part in parts])
        shares = []
        for part, of_draft, of_verification in zip(parts, draft_shares, verify_shares, strict=True):
            seconds = (of_draft * draft_seconds, of_verification * verify_seconds)
            result = _result(part, seconds)
            shares.append(CycleShare(result, sum(seconds)))
        results = [
            (part.slot, share.result)
            for part, share in zip(parts, shares, strict=True)
            if share.result is not None
        ]
        rows = sum(part.tree_rows for part in parts)
        began = time.perf_counter()
        if results:
            living = alive(parts)
            with failing(*living):
                self._policies.observe(results, rows, draft_seconds, verify_seconds)
            _add_policy_time(living, time.perf_counter() - began)
        for part in parts:
            if part.error is not None:
                part.sequence.fail(part.error)
        return shares

    def _decide(self, parts: Sequence[CyclePart]) -> None:
        """Let a fused policy read the features of the accepted tokens, or of a prompt's last."""
        fused = self._fused
        deciding = [] if fused is None else [part for part in parts if fused.decides(part.slot)]
        if fused is None or not deciding:
            return
        began = time.perf_counter()
        with failing(*deciding):
            features = [
                part.sequence.state.last_features[None]
                if part.accepted is None
                else part.accepted.features
                for part in deciding
            ]
            reduced, trees = fused.read([part.slot for part in deciding], features)
            for row, (part, tree) in enumerate(zip(deciding, trees, strict=True)):
                part.sequence.state.decision = tree
                if reduced is not None and part.accepted is not None:
                    part.sequence.state.pending.reduce_last(reduced[row])
        _add_policy_time(deciding, time.perf_counter() - began)

    def _choose(self, parts: Sequence[CyclePart]) -> None:
        """Let the policy choose a plan for every part."""
        for part in parts:
            if self._room(part) < 1:
                part.error = ValueError(
                    f"the context is full: slot {part.slot} has {self._cache.capacity} rows in the "
                    "KV cache"
                )
        choosing = alive(parts)
        if not choosing:
            return
        began = time.perf_counter()
        with failing(*choosing):
            states = [
                SlotState(
                    part.slot,
                    part.sequence.state.cycle_state,
                    part.sequence.tokens_left,
                    self._room(part),
                    len(part.sequence.state.pending),
                )
                for part in choosing
            ]
            plans = self._policies.plan(states)
            for part, state, plan in zip(choosing, states, plans, strict=True):
                with failing(part):
                    if isinstance(plan, Exception):
                        raise plan
                    part.plan = state.cut(plan)
                    self._check_plan(part.plan)
        _add_policy_time(choosing, time.perf_counter() - began)

    def _check_plan(self, plan: DraftPlan) -> None:
        if self._draft is not None:
            check_top_k(plan.params, self._draft.draft_vocab_size)
        elif plan.params.total_tokens > 1:
            raise ValueError(
                f"this batch has no draft: total_tokens must be 1, got {plan.params.total_tokens}"
            )

    def _draft_trees(self, parts: Sequence[CyclePart]) -> None:
        """Look up and draft."""
        for part in parts:
            with failing(part):
                part.lookup = part.sequence.state.look_up(part.plan.lookup_tokens)
        drafting = [part for part in alive(parts) if part.plan.params.total_tokens > 1]
        if drafting and self._drafter is not None:
            self._drafter.draft(drafting)
        for part in alive(parts):
            if part.tree is None:
                part.tree = merge_looked_up(root_only(part.root), part.lookup.token_ids)

    def _room(self, part: CyclePart) -> int:
        return self._cache.capacity - self._cache.lengths[part.slot]


def _result(part: CyclePart, seconds: tuple[float, float]) -> StepResult | None:
    if part.accepted is None or part.error is not None:
        return None
    sequence = part.sequence
    return sequence.state.result(
        part.accepted,
        part.tree_rows,
        part.params,
        part.lookup,
        seconds,
        sequence.policy_time.take(),
    )


def _add_policy_time(parts: Sequence[CyclePart], seconds: float) -> None:
    """Divide the time of a call that decided for several sequences evenly."""
    for part in parts:
        part.sequence.policy_time.seconds += seconds / len(parts)


def _shares(rows: Sequence[int]) -> list[float]:
    """Return each part's share of the time of passes over all their rows."""
    total = sum(rows)
    return [count / total if total else 1 / len(rows) for count in rows]
