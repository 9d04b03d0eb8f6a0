"""The cycle of several sequences on a device, in parts that CUDA graphs replay."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeAlias

import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.captured.captured_draft import CapturedDraft
from eaglerl.eagle3.captured.graphed_calls import Graph, GraphedCalls
from eaglerl.eagle3.captured.pending_slots import MOST_PENDING, PendingSlots
from eaglerl.eagle3.captured.slot_tables import SlotTables
from eaglerl.eagle3.device_acceptance import DeviceAccepted, accept_on_device, read_accepted
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.sequence_state import SequenceState
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetModel, TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree, DeviceTreeDrafter
from eaglerl.eagle3.tree.ruled_draft import RuledDraft
from eaglerl.eagle3.tree.selecting_drafter import SelectingDrafter, rows_for
from eaglerl.eagle3.verifier import CapturableVerifier, RowVerifier
from eaglerl.ops import AcceptedDrafts

#: Numbers of cache rows that a pass attends to: powers of two from here, and halfway between.
LEAST_COLUMNS = 256
#: Most rows of a tree, see `accept_draft`.
MOST_ROWS = 256
#: See `RowVerifier.choices`.
Choose: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class CapturedCycle:
    """The parts of a cycle over the caches of S sequences: draft, verify, accept.

    What only the device knows in time (how many rows are committed, which were accepted, their
    features) stays there from cycle to cycle. All shapes follow from a few classes, so that a part
    is captured once for each: numbers of accepted rows, of rows to verify, and of cache rows that a
    pass attends to. A cycle sends the host's words, replays, and copies one report back, for all
    sequences together. A sequence that has ended stays in its slot; nothing of it counts any more.

    The random numbers of a sampling verifier are drawn in a launch of their own. Where a
    `FusedPolicy` draws, or transformers' warpers may wait for the device, acceptance runs call by
    call.

    Attributes:
        calls: the graphs.
        selecting: the drafts that rules decide.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: ModuleDraft,
        cache: KVCache,
        slot: int,
        new_graph: Callable[[], Graph] | None,
        slots: int = 1,
    ) -> None:
        """Begin without graphs.

        Args:
            target: the target, on a device.
            draft: the head's runner over the sequences' cache.
            cache: the target's cache.
            slot: the first sequence in both caches.
            new_graph: makes an empty graph; None captures nothing.
            slots: number S of sequences, in neighbouring slots.
        """
        self._target, self._draft, self._cache = target, draft, cache
        self._slots = range(slot, slot + slots)
        device = cache.data.device
        self._device = device
        self.calls = GraphedCalls(new_graph)
        self._on_device = CapturedDraft(draft, slot, slots)
        self.selecting = SelectingDrafter(draft, device, slots)
        if self.calls.skips:
            self.selecting.run_all()
        self._drafter = DeviceTreeDrafter(draft, device)
        self._lengths = torch.zeros(slots, dtype=torch.int64, device=device)
        self._roots = torch.zeros(slots, dtype=torch.int64, device=device)
        # 1 for a sequence that goes on, 0 for one that has ended.
        self._active = torch.ones(slots, dtype=torch.int64, device=device)
        self._goes_on = [True] * slots
        self._pending = PendingSlots(slots, MOST_PENDING, device)
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        # By the longest path of a tree.
        self._accepted: dict[int, AcceptedDrafts] = {}
        # A text may be longer than the cache by its last token, and a cycle's beyond its end.
        self._tables = SlotTables(slots, cache.capacity + MOST_PENDING, device)
        self._waiting = [0] * slots
        # The texts that the tensors on the device belong to, and their tokens; 0 where they do not.
        self._states: list[weakref.ref[SequenceState]] = []
        self._tokens = [0] * slots
        self._key: tuple[Hashable, ...] = ()
        self._tree: DeviceTree | None = None
        self._times: dict[torch.Size, torch.Tensor] = {}
        self.use(GreedyVerifier(), TotalTime())

    def use(self, verifier: RowVerifier, policy_time: TotalTime) -> None:
        """Serve a session.

        Args:
            verifier: chooses the target's tokens.
            policy_time: adds up the policy's time on the host's clock.
        """
        self._used_by = verifier, policy_time
        self._settings = verifier.settings if isinstance(verifier, CapturableVerifier) else None

    @property
    def most_waiting(self) -> int:
        """Most accepted rows of a sequence that the head has not processed."""
        return max(self._waiting)

    def fits(self, waiting: int, params: TreeParams, longest: int) -> bool:
        """Return whether a cycle can run in the classes of shapes; if so, choose them.

        Args:
            waiting: accepted rows of a sequence that wait for the head's pass.
            params: the largest tree that the head may draft.
            longest: most looked-up tokens.
        """
        if waiting > MOST_PENDING or longest_path(params, longest) > MOST_PENDING:
            return False
        if params.total_tokens > MOST_ROWS:
            return False
        rows = max(MOST_PENDING, params.total_tokens + longest, params.depth * params.top_k)
        committed = max(self._cache.lengths[slot] for slot in self._slots)
        columns = columns_for(committed + rows, self._cache.capacity)
        if columns is None:
            return False
        self._tables.choose(longest)
        self.calls.begin_cycle()
        self._on_device.columns = columns
        return True

    @torch.inference_mode()
    def take_over(self, sequences: Sequence[SequenceState]) -> None:
        """Begin a cycle of these texts: take over what was not captured; nothing waits.

        Args:
            sequences: the texts of all slots; pending rows of those that are taken over are taken,
                those of others forgotten.
        """
        if [state() for state in self._states] != [*sequences]:
            self._forget()
        for place, sequence in enumerate(sequences):
            if self._goes_on[place] and self._tokens[place] != len(sequence.token_ids):
                self._load(place, sequence)
            sequence.pending.clear()
        self._tables.extend([sequence.token_ids for sequence in sequences])
        self._states = [weakref.ref(sequence) for sequence in sequences]

    def keep_going(self, goes_on: Sequence[bool]) -> None:
        """Say which sequences have not ended; the others change nothing of their texts any more."""
        if [*goes_on] != self._goes_on:
            self._goes_on = [*goes_on]
            self._active.copy_(torch.tensor(self._goes_on).long(), non_blocking=True)

    def _forget(self) -> None:
        """Begin other texts."""
        self._tokens, self._waiting = [0] * len(self._slots), [0] * len(self._slots)
        for numbers in (self._lengths, self._on_device.lengths, self._pending.counts):
            numbers.zero_()
        self._tables.forget()
        self.selecting.forget()
        # Rows behind the committed ones are masked, but NaN times 0 is NaN.
        for cache in (self._cache, self._draft.cache):
            for slot in self._slots:
                cache.data[slot, ..., cache.lengths[slot] :, :].zero_()

    def _load(self, place: int, sequence: SequenceState) -> None:
        """Take over a text from cycles that were not captured."""
        slot = self._slots[place]
        ids, features, reduced = sequence.pending.take_as_they_are(self._draft.reduce)
        self._pending.set(place, ids, features, reduced=reduced)
        self._waiting[place] = len(ids)
        self._lengths[place].fill_(self._cache.lengths[slot])
        self._on_device.lengths[place].fill_(self._draft.lengths[slot])
        self._roots[place].fill_(sequence.token_ids[-1])
        self._tokens[place] = len(sequence.token_ids)

    @torch.inference_mode()
    def extend(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the head over the accepted rows.

        Returns:
            The (S, h) outputs and (S, Vd) logits of the last rows.
        """
        rows, reduced = rows_for(self.most_waiting), self._pending.reduced
        key = ("extend", rows, reduced, self._on_device.columns)
        first = self.calls(key, partial(self._extend, rows, reduced))
        for place, slot in enumerate(self._slots):
            self._draft.lengths[slot] += self._waiting[place]
            self._waiting[place] = 0
        return first

    def _extend(self, rows: int, reduced: bool) -> tuple[torch.Tensor, torch.Tensor]:
        pending = self._pending
        hidden = pending.features(reduced=reduced)[:, :rows]
        hidden = hidden if reduced else self._draft.reduce(hidden)
        first = self._on_device.extend(pending.token_ids[:, :rows], hidden, pending.counts)
        pending.counts.zero_()
        if self._first is None:
            self._first = first[0].clone(), first[1].clone()
        else:
            for kept, new in zip(self._first, first, strict=True):
                kept.copy_(new)
        return self._first

    def may_wait(self, path: int) -> bool:
        """Return whether a cycle may leave the accepted rows waiting: `extend` need not run.

        Args:
            path: most rows that the cycle accepts of a sequence.
        """
        return self._first is not None and self.most_waiting + path <= self._pending.most

    @torch.inference_mode()
    def root_only(self) -> DeviceTree:
        """Draft nothing."""
        self._key = ("root", self._on_device.columns)
        self._tree = self.calls(self._key, lambda: self._drafter.roots_only(self._roots))
        return self._tree

    @torch.inference_mode()
    def grow(self, params: TreeParams) -> DeviceTree:
        """Draft trees of fixed size behind the rows of `extend`."""
        assert self._first is not None, "the accepted rows come first"
        self._key = ("grow", params, self._on_device.columns)
        drafting = (self._roots, *self._first, params, self._on_device)
        self._tree = self.calls(self._key, partial(self._drafter.grow_slots, *drafting))
        return self._tree

    @torch.inference_mode()
    def grow_by_rule(
        self, draft: RuledDraft, depth: int, policy: BoundPolicy | None = None
    ) -> DeviceTree:
        """Draft behind the rows of `extend`; see `SelectingDrafter.grow`.

        Args:
            draft: the drafts, of `selecting`, begun.
            depth: as they were begun with.
            policy: whose choices limit them; None for no limits.
        """
        assert self._first is not None, "the accepted rows come first"
        key = ("level", draft.sizes, self._on_device.columns, policy)
        looked_up = None
        if draft.sizes.lookup_tokens:
            assert self._tables.table is not None, "`fits` has made it"
            looked_up = self._tables.table.looked_up
        self.calls((*key, 0), partial(draft.take_first, *self._first, looked_up))
        for level in range(1, depth + 1):
            take = partial(draft.take_level, level, self._on_device, looked_up)
            self.calls((*key, level), take, draft.goes_on)
        self._key = key
        self._tree = draft.tree(depth, skipped=self.calls.skips)
        return self._tree

    @torch.inference_mode()
    def verify(self) -> TargetOutput:
        """Run the target over the rows of the last draft."""
        return self.calls(("verify", *self._key), self._verify)

    def _verify(self) -> TargetOutput:
        tree = self._tree
        assert tree is not None, "a draft comes first"
        drafted = (tree.token_ids, tree.levels, tree.mask, self._lengths)
        rows = RowBatch.equal_trees(*drafted, self._on_device.columns, self._slots[0])
        return self._target.forward(rows, self._cache, "all")

    @torch.inference_mode()
    def accept(self, output: TargetOutput, policy: BoundPolicy | None) -> list[Accepted | None]:
        """Accept rows and tell the host, which waits only here.

        Args:
            output: of `verify`.
            policy: chooses the next trees; None for none.

        Returns:
            What was accepted of every sequence; None for one that has ended.
        """
        return self._accept_by("accept", partial(self._accept, output, policy, drafts=True), policy)

    @torch.inference_mode()
    def verify_and_accept(
        self, policy: BoundPolicy | None, *, drafts: bool
    ) -> list[Accepted | None]:
        """Do both in one graph, whose memory for the logits of all rows others then share.

        Args:
            policy: see `accept`.
            drafts: whether the head will need the accepted rows, in this cycle's texts.
        """
        name = "verify and accept" if drafts else "verify and accept without a draft"
        return self._accept_by(
            name, lambda choose: self._accept(self._verify(), policy, choose, drafts=drafts), policy
        )

    def _accept_by(
        self, name: str, accept: Callable[[Choose], DeviceAccepted], policy: BoundPolicy | None
    ) -> list[Accepted | None]:
        tree, verifier = self._tree, self._used_by[0]
        assert tree is not None, "a draft comes first"
        settings = self._settings if policy is None or not policy.draws else None
        if settings is not None:
            assert isinstance(verifier, CapturableVerifier)
            choose = partial(verifier.choices_by, times=self._draw(verifier, tree))
            key = (name, *self._key, tree.longest_path, policy, settings)
            found = self.calls(key, partial(accept, choose))
        else:
            found = accept(verifier.choices)
        # The next cycle overwrites what is in a graph's memory.
        last_features = found.last_features.clone()
        report = found.report.cpu().tolist()
        self._pending.reduced = policy is not None
        accepted: list[Accepted | None] = [None] * len(report)
        for place, numbers in enumerate(report):
            if self._goes_on[place]:
                self._count(place, numbers[0])
                told = (found, place, numbers, last_features[place], tree, policy)
                accepted[place] = read_accepted(*told)
        return accepted

    def _count(self, place: int, tokens: int) -> None:
        """Take note of what a slot's text has become."""
        self._waiting[place] += tokens
        self._tokens[place] += tokens
        self._tables.count(place, tokens)
        self._cache.advance(tokens, self._slots[place])

    def _draw(self, verifier: CapturableVerifier, tree: DeviceTree) -> torch.Tensor | None:
        """Draw what the choices after the rows depend on, in memory that keeps its place.

        Not in the graph, which would keep the state of one generator: a text may have its own.
        """
        if not verifier.draws:
            return None
        shape = torch.Size((tree.token_ids.numel(), self._target.vocab_size))
        if shape not in self._times:
            self._times[shape] = torch.empty(shape, device=self._device)
        verifier.draw(self._times[shape])
        return self._times[shape]

    def _accept(
        self,
        output: TargetOutput,
        policy: BoundPolicy | None,
        choose: Choose,
        *,
        drafts: bool,
    ) -> DeviceAccepted:
        tree, policy_time = self._tree, self._used_by[1]
        assert tree is not None, "a draft comes first"
        longest = tree.longest_path
        accepted = self._accepted.get(longest)
        if accepted is None:
            accepted = AcceptedDrafts(len(self._slots), longest, device=self._device)
            self._accepted[longest] = accepted
        found = accept_on_device(
            output, tree, choose, policy, policy_time, accepted=accepted, table=self._tables.table
        )
        self._cache.move_behind(self._lengths, found.rows, self._slots[0])
        counts = found.counts * self._active
        self._lengths.add_(counts)
        last = found.token_ids.gather(1, found.counts[:, None] - 1)[:, 0]
        self._roots.copy_(torch.where(counts > 0, last, self._roots))
        if drafts:
            waiting = (found.token_ids, found.features, counts)
            self._pending.append(*waiting, reduced=policy is not None)
        return found


def longest_path(params: TreeParams, lookup_tokens: int) -> int:
    """Return the most rows that a cycle can accept, the root included."""
    return 1 + max(params.depth + 1, lookup_tokens)


def columns_for(needed: int, capacity: int) -> int | None:
    """Return how many cache rows a pass attends to that needs so many; None if it cannot be had.

    Args:
        needed: rows that must be among them.
        capacity: rows of the cache.
    """
    if needed > capacity:
        return None
    columns = LEAST_COLUMNS
    while columns < needed:
        # 256, 384, 512, 768, ...: at most half of the rows are masked, and a graph serves long.
        columns = columns * 3 // 2 if columns & (columns - 1) == 0 else columns * 4 // 3
    return min(columns, capacity)
