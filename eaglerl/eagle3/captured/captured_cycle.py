"""The cycle of one sequence on a device, in parts that CUDA graphs replay."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from functools import partial

import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.captured.captured_draft import CapturedDraft
from eaglerl.eagle3.captured.graphed_calls import Graph, GraphedCalls
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
from eaglerl.ops import AcceptedDrafts, DraftTree, NgramTable, extend_ngrams

#: Accepted rows that wait for the head's pass. More than that, as after a prompt, are extended by a
#: pass of their own shape.
MOST_PENDING = 64
#: Numbers of cache rows that a pass attends to: powers of two from here, and halfway between.
LEAST_COLUMNS = 256


class CapturedCycle:
    """The parts of a cycle over the caches of one sequence: draft, verify, accept.

    What only the device knows in time (how many rows are committed, which were accepted, their
    features) stays there from cycle to cycle. All shapes follow from a few classes, so that a part
    is captured once for each: numbers of accepted rows, of rows to verify, and of cache rows that a
    pass attends to. A cycle sends the host's words, replays, and copies one report back.

    The random numbers of a sampling verifier are drawn in a launch of their own. Where a
    `FusedPolicy` draws, or transformers' warpers may wait for the device, acceptance runs call by
    call.

    Attributes:
        calls: the graphs.
        selecting: the drafts that a rule decides.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: ModuleDraft,
        cache: KVCache,
        slot: int,
        new_graph: Callable[[], Graph],
    ) -> None:
        """Begin without graphs.

        Args:
            target: the target, on a device.
            draft: the head's runner over the sequence's cache.
            cache: the target's cache.
            slot: the sequence in both caches.
            new_graph: makes an empty graph.
        """
        self._target, self._draft, self._cache, self._slot = target, draft, cache, slot
        device = cache.data.device
        self._device = device
        self.calls = GraphedCalls(new_graph)
        self._on_device = CapturedDraft(draft, slot)
        self.selecting = SelectingDrafter(draft, device)
        if self.calls.skips:
            self.selecting.run_all()
        self._drafter = DeviceTreeDrafter(draft, device)
        self._drafter.draft = self._on_device
        self._length = torch.zeros(1, dtype=torch.int64, device=device)
        self._root = torch.zeros(1, dtype=torch.int64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self._pending_ids = torch.zeros(MOST_PENDING, dtype=torch.int64, device=device)
        # By whether they are reduced: allocated when first needed, for their width and dtype.
        self._pending: dict[bool, torch.Tensor] = {}
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        # By the longest path of a tree.
        self._accepted: dict[int, AcceptedDrafts] = {}
        # By the tokens that they propose: tables, and how much of the text they have. Graphs hold
        # their addresses.
        self._tables: dict[int, NgramTable] = {}
        self._indexed: dict[int, int] = {}
        self._table: NgramTable | None = None
        self._lookup = 0
        self._waiting, self._reduced = 0, False
        # The text that the tensors on the device belong to, and its tokens; 0 where they do not.
        self._state: weakref.ref[SequenceState] | None = None
        self._tokens = 0
        self._key: tuple[Hashable, ...] = ()
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

    def fits(self, sequence: SequenceState, params: TreeParams, longest: int) -> bool:
        """Return whether a cycle can run in the classes of shapes; if so, choose them.

        Args:
            sequence: the text.
            params: the largest tree that the head may draft.
            longest: most looked-up tokens.
        """
        waiting = len(sequence.pending)
        accepted = 1 + max(params.depth + 1, longest)
        if waiting > MOST_PENDING or accepted > MOST_PENDING:
            return False
        rows = max(MOST_PENDING, params.total_tokens + longest, params.depth * params.top_k)
        columns = columns_for(self._cache.lengths[self._slot] + rows, self._cache.capacity)
        if columns is None:
            return False
        if longest and longest not in self._tables:
            # A text may be longer than the cache by its last token, and a cycle's beyond its end.
            capacity = self._cache.capacity + MOST_PENDING
            self._tables[longest] = NgramTable(1, capacity, longest, device=self._device)
            self._indexed[longest] = 0
        self._lookup, self._table = longest, self._tables.get(longest)
        self.calls.begin_cycle()
        self._on_device.columns = columns
        return True

    @torch.inference_mode()
    def extend(self, sequence: SequenceState) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the head over the accepted rows.

        Args:
            sequence: the text; its pending rows are taken.

        Returns:
            The (h,) output and (Vd,) logits of the last row.
        """
        if self._state is None or self._state() is not sequence:
            self._forget()
        if self._tokens != len(sequence.token_ids):
            self._load(sequence)
        self._index(sequence)
        waiting = self._waiting
        sequence.pending.clear()
        rows = rows_for(waiting)
        key = ("extend", rows, self._reduced, self._on_device.columns)
        first = self.calls(key, partial(self._extend, rows, self._reduced))
        self._draft.lengths[self._slot] += waiting
        self._state = weakref.ref(sequence)
        return first

    def _index(self, sequence: SequenceState) -> None:
        """Append what the lookup table has not yet; nothing waits."""
        if self._table is None:
            return
        new = sequence.token_ids[self._indexed[self._lookup] :]
        if not new:
            return
        ids, counts = torch.tensor([new]), torch.tensor([len(new)])
        extend_ngrams(self._table, ids.to(self._device), counts.to(self._device))
        self._indexed[self._lookup] += len(new)

    def _forget(self) -> None:
        """Begin another text."""
        self._tokens = 0
        for longest, table in self._tables.items():
            table.reset()
            self._indexed[longest] = 0
        self.selecting.forget()
        # Rows behind the committed ones are masked, but NaN times 0 is NaN.
        for cache in (self._cache, self._draft.cache):
            cache.data[self._slot, ..., cache.lengths[self._slot] :, :].zero_()

    def _load(self, sequence: SequenceState) -> None:
        """Take over a text from cycles that were not captured; nothing waits."""
        ids, features, reduced = sequence.pending.take_as_they_are(self._draft.reduce)
        self._keep_pending(ids, features, reduced=reduced)
        self._waiting = len(ids)
        self._count.fill_(len(ids))
        self._length.fill_(self._cache.lengths[self._slot])
        self._on_device.length.fill_(self._draft.lengths[self._slot])
        self._root.fill_(sequence.token_ids[-1])
        self._tokens = len(sequence.token_ids)

    def _keep_pending(self, ids: torch.Tensor, features: torch.Tensor, *, reduced: bool) -> None:
        if reduced not in self._pending:
            self._pending[reduced] = features.new_zeros(MOST_PENDING, features.shape[1])
        self._pending_ids[: len(ids)].copy_(ids)
        self._pending[reduced][: len(ids)].copy_(features)
        self._reduced = reduced

    def _extend(self, rows: int, reduced: bool) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self._pending[reduced][:rows]
        hidden = hidden if reduced else self._draft.reduce(hidden)
        first = self._on_device.extend(self._pending_ids[:rows], hidden, self._count)
        if self._first is None:
            self._first = first[0].clone(), first[1].clone()
        else:
            for kept, new in zip(self._first, first, strict=True):
                kept.copy_(new)
        return self._first

    @torch.inference_mode()
    def grow(self, params: TreeParams) -> DeviceTree:
        """Draft a tree of fixed size behind the rows of `extend`."""
        assert self._first is not None, "the accepted rows come first"
        key = ("grow", params, self._on_device.columns)
        self._key = key
        grow = partial(self._drafter.grow, self._root, *self._first, params, self._slot)
        return self.calls(key, grow)

    @torch.inference_mode()
    def grow_by_rule(
        self, draft: RuledDraft, depth: int, policy: BoundPolicy | None = None
    ) -> DeviceTree:
        """Draft behind the rows of `extend`; see `SelectingDrafter.grow`.

        Args:
            draft: the draft, of `selecting`, begun.
            depth: as it was begun with.
            policy: whose choice limits it; None for no limits.
        """
        assert self._first is not None, "the accepted rows come first"
        key = ("level", draft.sizes, self._on_device.columns, policy)
        looked_up = None
        if draft.sizes.lookup_tokens:
            assert self._table is not None, "`fits` has made it"
            looked_up = self._table.looked_up
        self.calls((*key, 0), partial(draft.take_first, *self._first, looked_up))
        for level in range(1, depth + 1):
            take = partial(draft.take_level, level, self._on_device, self._slot, looked_up)
            self.calls((*key, level), take, draft.goes_on)
        self._key = key
        return draft.tree(depth, skipped=self.calls.skips)

    @torch.inference_mode()
    def verify(self, tree: DeviceTree) -> TargetOutput:
        """Run the target over the rows of the last draft."""
        return self.calls(("verify", *self._key), partial(self._verify, tree))

    def _verify(self, tree: DeviceTree) -> TargetOutput:
        count, columns = len(tree.token_ids), self._on_device.columns
        rows = RowBatch(
            token_ids=tree.token_ids,
            positions=tree.levels + self._length,
            cache_rows=self._length + torch.arange(count, device=self._device),
            prefix_lengths=self._length.expand(count),
            block_length=count,
            mask=tree.mask,
            slot=self._slot,
            end=columns,
        )
        return self._target.forward(rows, self._cache, "all")

    @torch.inference_mode()
    def __call__(
        self,
        output: TargetOutput,
        tree: DraftTree | DeviceTree,
        cache: KVCache,
        slot: int,
        policy: BoundPolicy | None,
    ) -> Accepted:
        """Accept rows and tell the host, which waits only here; see `Acceptance`."""
        assert isinstance(tree, DeviceTree), "a session on a device drafts there"
        assert (cache, slot) == (self._cache, self._slot), "the graphs are those of one cache"
        verifier, policy_time = self._used_by
        accept = partial(self._accept, output, tree, policy, policy_time)
        settings = self._settings if policy is None or not policy.draws else None
        if settings is not None:
            assert isinstance(verifier, CapturableVerifier)
            choose = partial(verifier.choices_by, times=self._draw(verifier, output))
            key = ("accept", *self._key, tree.longest_path, policy, settings)
            found = self.calls(key, partial(accept, choose))
        else:
            found = accept(verifier.choices)
        numbers = found.report.cpu().tolist()
        self._waiting, self._reduced = numbers[0], policy is not None
        self._tokens += numbers[0]
        if self._table is not None:
            self._indexed[self._lookup] += numbers[0]
        self._cache.advance(numbers[0], self._slot)
        return read_accepted(found, numbers, output, tree, policy)

    def _draw(self, verifier: CapturableVerifier, output: TargetOutput) -> torch.Tensor | None:
        """Draw what the choices after the rows depend on, in memory that keeps its place.

        Not in the graph, which would keep the state of one generator: a text may have its own.
        """
        if not verifier.draws:
            return None
        assert output.logits is not None, "the verification asks for all logits"
        shape = output.logits.shape
        if shape not in self._times:
            self._times[shape] = torch.empty(shape, device=self._device)
        verifier.draw(self._times[shape])
        return self._times[shape]

    def _accept(
        self,
        output: TargetOutput,
        tree: DeviceTree,
        policy: BoundPolicy | None,
        policy_time: TotalTime,
        choose: Callable[[torch.Tensor], torch.Tensor],
    ) -> DeviceAccepted:
        longest = tree.longest_path
        accepted = self._accepted.get(longest)
        if accepted is None:
            accepted = AcceptedDrafts(1, longest, device=self._device)
            self._accepted[longest] = accepted
        found = accept_on_device(
            output, tree, choose, policy, policy_time, accepted=accepted, table=self._table
        )
        self._cache.move_behind(self._length, found.rows, self._slot)
        self._length.add_(found.count)
        self._count.copy_(found.count)
        self._root.copy_(found.token_ids.index_select(0, found.count - 1))
        self._keep_pending(found.token_ids, found.features, reduced=policy is not None)
        return found


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
