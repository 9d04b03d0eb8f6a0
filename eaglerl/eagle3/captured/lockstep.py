"""Several sequences on a device whose cycles run together, with one wait for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.captured.captured_cycle import CapturedCycle, longest_path
from eaglerl.eagle3.captured.graphed_calls import Graph
from eaglerl.eagle3.captured.slot_sequence import SlotSequence
from eaglerl.eagle3.fused_policy import BoundPolicy, FusedPolicy, decision_of
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.policy import NO_DRAFT, ConstantPolicy, TreeParams, as_plan
from eaglerl.eagle3.ruled_policy import RuledPolicy
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.sequence_state import SequenceState
from eaglerl.eagle3.stopwatch import TotalTime, clock_of, seconds_between
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.eagle3.tree.selecting_drafter import SlotDraft


class Lockstep:
    """S slots on a device, and the cycles of the sequences in them.

    One pass of the head per level serves all slots, one pass of the target verifies all trees,
    which have equally many rows, and one copy tells the host what was accepted. Decoding is greedy.
    A sequence that has ended stays in its slot until all have ended. What was captured serves the
    next sequences.

    Attributes:
        cycle: the parts of a cycle.
        slots: number S of slots.
        capacity: cache rows of each.
        network: what limits all slots, and the policy that it was forked from; graphs belong to it.
            None without one.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: ModuleDraft,
        cache: KVCache,
        new_graph: Callable[[], Graph] | None,
    ) -> None:
        """Take the caches.

        Args:
            target: the target, on a device.
            draft: the head's runner over a cache of S slots.
            cache: the target's cache of S slots.
            new_graph: makes an empty graph; None captures nothing.
        """
        self._target, self._draft, self._cache = target, draft, cache
        self.slots, self.capacity = cache.slots, cache.capacity
        self.cycle = CapturedCycle(target, draft, cache, 0, new_graph, self.slots)
        self.network: tuple[FusedPolicy, BoundPolicy] | None = None
        self._joint_time = TotalTime()
        self.cycle.use(GreedyVerifier(), self._joint_time)
        self._now = clock_of(target.device)
        # The tree of a constant policy in this cycle.
        self._params = NO_DRAFT
        # Of slots that no sequence has taken.
        self._empty = SequenceState(drafts=False)
        self._empty.token_ids = [0]

    def decode(self, sequences: Sequence[SlotSequence], policy: BoundPolicy | None = None) -> None:
        """Decode sequences to their ends.

        Args:
            sequences: at most S; all have a `ConstantPolicy` of one tree, or a `RuledPolicy` of one
                limit.
            policy: chooses the limits of all slots; None for none.
        """
        sequences = [*sequences]
        for slot in range(self.slots):
            self._cache.truncate(0, slot)
            self._draft.reset(slot)
        for slot, sequence in enumerate(sequences):
            sequence.read_prompt(self._target, self._cache, slot)
            if not _drafts_nothing(sequence):
                with self._target.turns:
                    self._catch_up(sequence, slot, reduced=policy is not None)
        if policy is not None:
            with self._target.turns:
                self._decide_first(sequences, policy)
        while going := [
            (slot, sequence)
            for slot, sequence in enumerate(sequences)
            if sequence.finish_reason is None
        ]:
            self._run_cycle(sequences, going, policy)

    def _catch_up(self, sequence: SlotSequence, slot: int, *, reduced: bool) -> None:
        """Let the head process a prompt but for its last row, which waits for the first cycle."""
        ids, features, _ = sequence.state.pending.take_as_they_are(self._draft.reduce)
        features = self._draft.reduce(features) if reduced else features
        if len(ids) > 1:
            self._draft.extend(ids[:-1], features[:-1], slot, reduced=reduced)
        sequence.state.pending.add(ids[-1:], features[-1:], reduced=reduced)

    def _decide_first(self, sequences: Sequence[SlotSequence], policy: BoundPolicy) -> None:
        """Let the network decide after the prompts; the host waits once for all."""
        features = [sequence.state.last_features for sequence in sequences]
        features += [torch.zeros_like(features[0])] * (self.slots - len(sequences))
        rows = torch.arange(self.slots).to(self._target.device)
        _, params = policy.encode(torch.stack(features), rows, rows)
        for sequence, numbers in zip(sequences, params.cpu().tolist(), strict=False):
            sequence.state.decision = decision_of(numbers)

    def _run_cycle(
        self,
        sequences: Sequence[SlotSequence],
        going: Sequence[tuple[int, SlotSequence]],
        policy: BoundPolicy | None,
    ) -> None:
        with self._target.turns as waited:
            began = time.perf_counter()
            for _, sequence in going:
                sequence.wait(waited)
                sequence.choose()
            slots = [slot for slot, _ in going]
            self.cycle.keep_going([slot in slots for slot in range(self.slots)])
            started = self._now()
            tree, drafts = self._draft_trees(sequences, going, policy)
            drafted = self._now()
            accepted = self.cycle.verify_and_accept(policy, drafts=drafts)
            times = seconds_between(started, drafted, self._now())
            share = 1 / len(going)
            joint = self._joint_time.take() * share
            for slot, sequence in going:
                own = accepted[slot]
                assert own is not None, "the text goes on"
                sequence.policy_time.seconds += joint
                self._keep(sequence, slot, own, tree, (times[0] * share, times[1] * share))
            seconds = (time.perf_counter() - began) * share
            for _, sequence in going:
                sequence.decode_seconds += seconds

    def _keep(
        self,
        sequence: SlotSequence,
        slot: int,
        accepted: Accepted,
        tree: DeviceTree,
        seconds: tuple[float, float],
    ) -> None:
        policy, params, draft = sequence.policy, sequence.plan.params, accepted.draft
        if not sequence.drafts:
            # Others may have drafted: what was computed for this one counts for nothing.
            accepted = replace(accepted, draft=None, drafted_rows=())
            seconds, params = (0.0, seconds[1]), NO_DRAFT
        elif draft is not None:
            assert isinstance(policy, RuledPolicy)
            params = draft.params
            self.cycle.selecting.learn(draft, slot)
            with sequence.policy_time:
                policy.take_draft(draft)
        elif isinstance(policy, ConstantPolicy):
            # Of the sequence with most tokens left.
            params = self._params
        sequence.keep(accepted, tree.rows, params, seconds)

    def _draft_trees(
        self,
        sequences: Sequence[SlotSequence],
        going: Sequence[tuple[int, SlotSequence]],
        policy: BoundPolicy | None,
    ) -> tuple[DeviceTree, bool]:
        """Return the trees of all slots, and whether the head will need the accepted rows."""
        cycle, ruled = self.cycle, going[0][1].policy
        empty = [self._empty] * (self.slots - len(sequences))
        states = [*(sequence.state for sequence in sequences), *empty]
        if not isinstance(ruled, RuledPolicy):
            longest = max((one for _, one in going), key=lambda one: one.tokens_left)
            self._params = params = longest.plan.params
            self._begin(states, params, 0)
            if params.total_tokens == 1:
                return cycle.root_only(), False
            cycle.extend()
            return cycle.grow(params), True
        limit, tokens = ruled.limit, ruled.lookup_tokens
        self._begin(states, limit, tokens)
        drafts = any(sequence.drafts for _, sequence in going)
        if drafts or not cycle.may_wait(longest_path(limit, tokens)):
            cycle.extend()
        # Slots of sequences that have ended ask for nothing.
        idle = SlotDraft(0, ruled, None, NO_LOOKUP, TotalTime())
        wanted = [idle] * self.slots
        for slot, sequence in going:
            wanted[slot] = _wanted(sequence)
        limits = None if policy is None else policy.limits
        draft, depth = cycle.selecting.begin(wanted, limits)
        return cycle.grow_by_rule(draft, depth, policy), True

    def _begin(self, states: Sequence[SequenceState], limit: TreeParams, tokens: int) -> None:
        fits = self.cycle.fits(self.cycle.most_waiting, limit, tokens)
        assert fits, "there is room for every cycle"
        self.cycle.take_over(states)


def _drafts_nothing(sequence: SlotSequence) -> bool:
    policy = sequence.policy
    return isinstance(policy, ConstantPolicy) and as_plan(policy.params).params.total_tokens == 1


def _wanted(sequence: SlotSequence) -> SlotDraft:
    """Return what a sequence wants of a draft; its policy is a `RuledPolicy`."""
    policy, root = sequence.policy, sequence.state.token_ids[-1]
    assert isinstance(policy, RuledPolicy)
    if sequence.drafts:
        depth, levels = sequence.plan.params.depth, sequence.tokens_left - 1
        return SlotDraft(root, policy, depth, sequence.lookup, sequence.policy_time, levels)
    # Rules and reports are of a tree of the policy's limit.
    match, tokens = sequence.lookup
    sequence.lookup = Lookup(match, tokens[: policy.limit.total_tokens - 1])
    return SlotDraft(root, policy, None, sequence.lookup, sequence.policy_time)
