"""Draft trees that grow on a device without a synchronisation with the host.

A synchronisation after every draft pass would leave the device idle while the host chooses the
nodes and launches the next pass. It is not needed: all shapes follow from (total_tokens, depth,
top_k), which the host knows, and which nodes they hold does not change a launch. The tree's tokens
and parents stay on the device until the cycle's one copy to the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner, ExpandingSlots, OneSlot
from eaglerl.eagle3.policy import TreeParams
from eaglerl.ops import NodeSelection


class TreeRows(NamedTuple):
    """The part of a tree that a walk from the root needs.

    Attributes:
        token_ids: (T,) int64 target ids.
        parents: (T,) int64 row of the parent; -1 where there is none.
    """

    token_ids: torch.Tensor
    parents: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceTree:
    """The rows that the target verifies, ancestors first; row 0 is the root.

    Trees of S sequences, of T rows each, have a leading dimension S more.

    Attributes:
        token_ids: (T,) int64 target ids.
        parents: (T,) int64 row of the parent; the root's is 0.
        levels: (T,) int64 distance from the root.
        ancestors: (T, T) bool, whether column j is row i itself or an ancestor of it.
        scores: (T,) float32 cumulative log-probability under the draft; 0 for the root.
        enabled: (T,) bool, rows that a path may lead through; see `merge_looked_up_on_device`.
        longest_path: the most rows that a path can have, the root included.
        selection: the draft that a rule has chosen the rows from; None without one.
        passes: passes of the head that made it, where there is a `selection`; None for those up to
            the end of the draft.
    """

    token_ids: torch.Tensor
    parents: torch.Tensor
    levels: torch.Tensor
    ancestors: torch.Tensor
    scores: torch.Tensor
    enabled: torch.Tensor
    longest_path: int
    selection: NodeSelection | None = None
    passes: int | None = 0

    @property
    def rows(self) -> int:
        """Number of rows T."""
        return self.token_ids.shape[-1]

    @property
    def only(self) -> DeviceTree:
        """The tree of the only one of S = 1 sequences."""
        return replace(
            self,
            token_ids=self.token_ids[0],
            parents=self.parents[0],
            levels=self.levels[0],
            ancestors=self.ancestors[0],
            scores=self.scores[0],
            enabled=self.enabled[0],
        )

    @property
    def mask(self) -> torch.Tensor:
        """The tree's attention mask, as `RowBatch.tree` takes it."""
        return self.ancestors

    def on_host(self) -> TreeRows:
        """Copy tokens and parents to the host, in one transfer.

        The parent of the root, and of rows that no path may lead through, is -1.
        """
        parents = torch.where(self.enabled, self.parents, -1)
        token_ids, parents = torch.stack((self.token_ids, parents)).cpu()
        parents[0] = -1
        return TreeRows(token_ids, parents)


@dataclass(slots=True)
class _Pool:
    """The candidates so far of S sequences, one tensor (S, n) per pass.

    The root's children have the pool indices 0 to K - 1. Round i, from 0, appends K^2 candidates
    from index K + i K^2 on: the K children of each of its K frontier nodes, node by node.

    Attributes:
        scores: float32 cumulative log-probabilities.
        token_ids: int64 target ids.
        parents: int64 pool index of the parent; -1 for the root.
    """

    scores: list[torch.Tensor]
    token_ids: list[torch.Tensor]
    parents: list[torch.Tensor]


class DeviceTreeDrafter:
    """Grows EAGLE-3's dynamic tree (EAGLE-2, section 4; EAGLE-3, section 3) on the draft's device.

    The tree is that of `TreeDrafter`, except that of equal draft logits at the border of a top-k
    either may be taken: torch's `topk` does not define which.
    """

    def __init__(self, draft: DraftRunner | None, device: torch.device) -> None:
        """Set up; without a draft there is only `root_only`."""
        self.draft = draft
        self._device = device
        table = None if draft is None else draft.draft_to_target
        self._draft_to_target = None if table is None else table.to(device)

    def root_only(self, root: int) -> DeviceTree:
        """Return the tree of the root alone, which drafts nothing."""
        roots = torch.full((1,), root, dtype=torch.int64, device=self._device)
        return self.roots_only(roots).only

    def roots_only(self, roots: torch.Tensor) -> DeviceTree:
        """Return trees of the roots alone, (S,) int64."""
        none = roots.new_zeros(len(roots), 0)
        return self._tree(roots, none, none, none.float(), 0)

    def grow(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        params: TreeParams,
        slot: int = 0,
    ) -> DeviceTree:
        """Grow a tree; see `TreeDrafter.grow`."""
        assert self.draft is not None, "a tree is grown by a draft head"
        roots = torch.full((1,), root, dtype=torch.int64, device=self._device)
        draft = OneSlot(self.draft, slot)
        return self.grow_slots(roots, hidden[None], logits[None], params, draft).only

    def grow_slots(
        self,
        roots: torch.Tensor,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        params: TreeParams,
        draft: ExpandingSlots,
    ) -> DeviceTree:
        """Grow a tree in each of S slots; see `TreeDrafter.grow`.

        Args:
            roots: (S,) int64.
            hidden: (S, h).
            logits: (S, Vd).
            params: of every tree.
            draft: runs the head over the slots.
        """
        top_k, slots = params.top_k, len(roots)
        token_ids, scores = children_of(logits, top_k, self._draft_to_target)
        # Pool indices of the nodes that the next pass expands; the root's is -1.
        frontier = torch.arange(top_k, device=self._device).expand(slots, -1)
        pool = _Pool([scores], [token_ids], [torch.full_like(frontier, -1)])
        # Which scratch rows the frontier sees: K more columns every round, of which the last K are
        # the frontier itself and the others its ancestors. As bool and not as bit words: the head
        # runs as a module on a device, and its attention takes a bool mask.
        own = torch.eye(top_k, dtype=torch.bool, device=self._device).expand(slots, -1, -1)
        visible, hidden = own, hidden[:, None].expand(-1, top_k, -1)
        for round_index in range(params.depth):
            hidden, logits = draft.expand_slots(token_ids, hidden, round_index, visible)
            children, gains = children_of(logits, top_k, self._draft_to_target)
            flat = (scores[:, :, None] + gains).flatten(1)
            pool.scores.append(flat)
            pool.token_ids.append(children.flatten(1))
            pool.parents.append(frontier[:, :, None].expand(-1, -1, top_k).flatten(1))
            # A stable sort takes the first of equal scores, as the native builder does; `topk` may
            # take either.
            best = flat.sort(descending=True, stable=True).indices[:, :top_k]
            # Children lie node by node, K each: which frontier node a child belongs to.
            rank = best.div(top_k, rounding_mode="floor")
            token_ids, scores = pool.token_ids[-1].gather(1, best), flat.gather(1, best)
            frontier = best + (top_k + round_index * top_k**2)
            hidden = rows_of(hidden, rank)
            visible = torch.cat((rows_of(visible, rank), own), dim=2)
        return self._choose(roots, pool, params)

    def _choose(self, roots: torch.Tensor, pool: _Pool, params: TreeParams) -> DeviceTree:
        """Keep the best T - 1 candidates; of equal scores, the one drafted first.

        No candidate scores above its parent and parents are drafted first, so the parent of every
        kept candidate is kept, too.
        """
        scores, ids = torch.cat(pool.scores, dim=1), torch.cat(pool.token_ids, dim=1)
        best = scores.sort(descending=True, stable=True).indices[:, : params.total_tokens - 1]
        # In the order of the pool, in which parents stand before their children.
        chosen = best.sort().values
        rows = torch.arange(1, params.total_tokens, device=self._device)
        # Row of every pool index, shifted by one: place 0 is for the parent -1, the root's row 0.
        row_of = ids.new_zeros(len(scores), scores.shape[1] + 1)
        row_of = row_of.scatter(1, chosen + 1, rows.expand(len(scores), -1))
        parents = row_of.gather(1, torch.cat(pool.parents, dim=1).gather(1, chosen) + 1)
        drafted = (ids.gather(1, chosen), parents, scores.gather(1, chosen))
        return self._tree(roots, *drafted, params.depth + 1)

    def _tree(
        self,
        roots: torch.Tensor,
        token_ids: torch.Tensor,
        parents: torch.Tensor,
        scores: torch.Tensor,
        levels: int,
    ) -> DeviceTree:
        """Put the roots in front of the drafted rows, and derive ancestors and levels."""
        zero = torch.zeros_like(roots)[:, None]
        parents = torch.cat((zero, parents), dim=1)
        scores = torch.cat((zero.float(), scores), dim=1)
        count = parents.shape[1]
        rows = torch.arange(count, device=self._device)
        # Compared and not made as an identity, so that every slot has memory of its own.
        ancestors, above = rows[:, None] == rows.expand(len(roots), 1, -1), parents
        # All rows go up one parent at a time. `levels` steps reach the root from anywhere, and the
        # root is its own parent, so that shallower rows stay there. EAGLE's default tree
        # takes 8 steps over 60 x 60 bools.
        for _ in range(levels):
            ancestors = ancestors | (above[:, :, None] == rows)
            above = parents.gather(1, above)
        return DeviceTree(
            token_ids=torch.cat((roots[:, None], token_ids), dim=1),
            parents=parents,
            levels=ancestors.sum(-1) - 1,
            ancestors=ancestors,
            scores=scores,
            enabled=torch.ones_like(parents, dtype=torch.bool),
            longest_path=min(count, levels + 1),
        )


def rows_of(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return some rows of every sequence, (S, K, n).

    Args:
        values: (S, M, n).
        rows: (S, K) int64.
    """
    return values.gather(1, rows[:, :, None].expand(-1, -1, values.shape[2]))


def children_of(
    logits: torch.Tensor, top_k: int, draft_to_target: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the K best children of M nodes: target ids and log-probabilities (..., M, K).

    Args:
        logits: (..., M, Vd) of the draft.
        top_k: number K of children.
        draft_to_target: (Vd,) target ids of the draft's tokens; None where both are the same.
    """
    top = logits.float().log_softmax(-1).topk(top_k, dim=-1)
    ids = top.indices if draft_to_target is None else draft_to_target[top.indices]
    # A log-probability that rounding lifts above 0 would make a child more probable than its
    # parent. The child could then be chosen without the parent.
    return ids, top.values.clamp(max=0)
