"""Several prompts of one call that a device decodes together, to their ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch

from eaglerl.eagle3.captured.captured_cycle import MOST_ROWS, longest_path
from eaglerl.eagle3.captured.graphed_calls import Graph
from eaglerl.eagle3.captured.lockstep import Lockstep
from eaglerl.eagle3.captured.pending_slots import MOST_PENDING
from eaglerl.eagle3.captured.slot_sequence import SlotSequence
from eaglerl.eagle3.fused_policy import BoundPolicy, fused_part
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.output import DecodedSequence
from eaglerl.eagle3.policy import ConstantPolicy, TreeParams, TreePolicy, as_plan
from eaglerl.eagle3.policy_use import begin_use
from eaglerl.eagle3.ruled_policy import RuledPolicy
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.verifier import Verifier
from eaglerl.ops._encode_checks import MAX_ROWS

#: Most prompts at once.
MOST_SLOTS = 64
#: Types of devices that decode several prompts together, by the module that their kernels need.
DEVICES = {"cuda": "triton"}
#: Share of a device's free memory that the caches of all slots may take.
MEMORY_SHARE = 0.5


class SlotDecoder:
    """Decodes prompts in groups, each in lockstep, where target, policy and options allow it.

    The slots of the last group, with their graphs, are kept for the next call. Any number of
    threads may call it; those that find the slots taken make their own.
    """

    def __init__(
        self,
        target: TargetModel,
        draft_head: Eagle3DraftHead | None,
        draft_runner: CachedDraft | None,
        new_graph: Callable[[], Graph] | None,
        *,
        spare_rows: int,
    ) -> None:
        """Begin without slots.

        Args:
            target: the target.
            draft_head: the head; None for none.
            draft_runner: runs it.
            new_graph: makes an empty graph; None captures nothing.
            spare_rows: cache rows behind the longest sequence.
        """
        self._target, self._head, self._draft = target, draft_head, draft_runner
        self._new_graph, self._spare_rows = new_graph, spare_rows
        self._lock = threading.Lock()
        self._idle: Lockstep | None = None

    def decode(
        self,
        policy: TreePolicy,
        prompts: Sequence[list[int]],
        begun: Sequence[tuple[Verifier, StoppingRules]],
    ) -> list[DecodedSequence] | None:
        """Decode prompts to their ends.

        Args:
            policy: every sequence takes it or a fork of it.
            prompts: token ids.
            begun: verifier and rules of every prompt.

        Returns:
            The sequences in the order of the prompts; None if they must be decoded one after
            another.

        Raises:
            Exception: what ended a sequence, and with it all others.
        """
        if len(prompts) < 2 or not self._serves(policy, begun):
            return None
        assert isinstance(self._draft, ModuleDraft), "a head on a device runs as a module"
        limit, lookup_tokens = limits_of(policy)
        path = longest_path(limit, lookup_tokens)
        length = max(len(ids) + rules.limit for ids, (_, rules) in zip(prompts, begun, strict=True))
        # A sequence with few tokens left has trees as deep as the others, and the target has no
        # positions beyond these.
        if length + path > self._target.max_positions:
            return None
        capacity = length + self._spare_rows
        most = self._most_slots(capacity)
        if fused_part(policy) is not None:
            most = min(most, MAX_ROWS // path)
        if most < 2:
            return None
        groups = -(-len(prompts) // most)
        slots = -(-len(prompts) // groups)
        sequences: list[SlotSequence] = []
        lockstep = self._take(slots, capacity)
        for first in range(0, len(prompts), slots):
            chosen = slice(first, first + slots)
            sequences += self._decode_group(lockstep, policy, prompts[chosen], begun[chosen])
        with self._lock:
            self._idle = lockstep
        return [*sequences]

    def _serves(self, policy: TreePolicy, begun: Sequence[tuple[Verifier, StoppingRules]]) -> bool:
        """Return whether the target's device and these policies and options allow it."""
        needed = DEVICES.get(self._target.device.type)
        if needed is None or find_spec(needed) is None or not isinstance(self._draft, ModuleDraft):
            return False
        # Draws of several prompts come from one generator, in the order of the prompts.
        if any(type(verifier) is not GreedyVerifier for verifier, _ in begun):
            return False
        if any(rules.has_criteria for _, rules in begun):
            return False
        if isinstance(policy, ConstantPolicy):
            if as_plan(policy.params).lookup_tokens:
                return False
        elif not (isinstance(policy, RuledPolicy) and hasattr(policy, "fork")):
            return False
        limit, lookup_tokens = limits_of(policy)
        path = longest_path(limit, lookup_tokens)
        if path > MOST_PENDING or limit.total_tokens > MOST_ROWS:
            return False
        # Rows of a cycle, behind a text whose last cycle accepts more than belongs to it.
        rows = max(MOST_PENDING, limit.total_tokens + lookup_tokens, limit.depth * limit.top_k)
        return path + rows <= self._spare_rows

    def _most_slots(self, capacity: int) -> int:
        """Return for how many slots there is memory."""
        device = self._target.device
        if device.type != "cuda":
            return MOST_SLOTS
        target, draft = self._target, self._draft
        assert draft is not None
        config = draft.head_config
        values = 2 * target.num_layers * target.num_kv_heads * target.head_dim
        bytes_of_row = values * target.kv_cache_dtype.itemsize
        bytes_of_row += 2 * config.num_key_value_heads * config.head_dim * 4
        free = torch.cuda.mem_get_info(device)[0]
        idle = self._idle
        if idle is not None:
            free += idle.slots * idle.capacity * bytes_of_row
        return min(MOST_SLOTS, int(MEMORY_SHARE * free) // (bytes_of_row * capacity))

    def _take(self, slots: int, capacity: int) -> Lockstep:
        """Return idle slots of so many rows; make them if there are none."""
        with self._lock:
            idle, self._idle = self._idle, None
        if idle is not None and idle.slots == slots and idle.capacity >= capacity:
            return idle
        # Freed before the new ones are made, so that memory need not hold both.
        idle = None
        assert isinstance(self._draft, ModuleDraft)
        draft = self._draft.with_own_cache(capacity, slots)
        cache = self._target.new_cache(capacity, slots)
        return Lockstep(self._target, draft, cache, self._new_graph)

    def _decode_group(
        self,
        lockstep: Lockstep,
        policy: TreePolicy,
        prompts: Sequence[list[int]],
        begun: Sequence[tuple[Verifier, StoppingRules]],
    ) -> list[SlotSequence]:
        sequences: list[SlotSequence] = []
        try:
            for prompt, (verifier, rules) in zip(prompts, begun, strict=True):
                used, end_use = begin_use(policy)
                sequences.append(SlotSequence(prompt, verifier, rules, used, end_use))
                used.reset()
            lockstep.decode(sequences, self._bind(policy, lockstep))
        finally:
            for sequence in sequences:
                sequence.end_use()
        return sequences

    def _bind(self, policy: TreePolicy, lockstep: Lockstep) -> BoundPolicy | None:
        """Return the network that limits all slots, with a record for each; None without one."""
        network = fused_part(policy)
        if network is None:
            return None
        assert self._head is not None
        assert self._draft is not None
        if lockstep.network is None or lockstep.network[0] is not network:
            joint = network.fork(lockstep.slots).bind(self._head, self._draft.reduce)
            lockstep.network = network, joint
        bound = lockstep.network[1]
        bound.cache.invalidate()
        return bound


def limits_of(policy: TreePolicy) -> tuple[TreeParams, int]:
    """Return the largest tree of a constant or a ruled policy, and its most looked-up tokens."""
    if isinstance(policy, ConstantPolicy):
        return as_plan(policy.params).params, 0
    assert isinstance(policy, RuledPolicy)
    return policy.limit, policy.lookup_tokens
