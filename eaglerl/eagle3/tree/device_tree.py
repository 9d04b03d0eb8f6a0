"""Growing a draft tree on a device, without asking it anything.

All shapes follow from (total_tokens, depth, top_k), which the host knows; what the tree holds stays
on the device until the cycle's one copy to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.policy import TreeParams


class TreeRows(NamedTuple):
    """What a walk down a tree needs of it.

    Attributes:
        token_ids: (T,) int64 target ids.
        parents: (T,) int64 row of the parent; -1 where there is none.
    """

    token_ids: torch.Tensor
    parents: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeviceTree:
    """The rows that the target verifies, ancestors first; row 0 is the root.

    Attributes:
        token_ids: (T,) int64 target ids.
        parents: (T,) int64 row of the parent; the root's is 0.
        levels: (T,) int64 distance from the root.
        ancestors: (T, T) bool, whether column j is row i itself or an ancestor of it.
        scores: (T,) float32 cumulative log-probability under the draft; 0 for the root.
        enabled: (T,) bool, rows that a path may lead through.
        longest_path: rows that a path can have at most, the root included.
    """

    token_ids: torch.Tensor
    parents: torch.Tensor
    levels: torch.Tensor
    ancestors: torch.Tensor
    scores: torch.Tensor
    enabled: torch.Tensor
    longest_path: int

    @property
    def mask(self) -> torch.Tensor:
        """What `RowBatch.tree` takes as the mask."""
        return self.ancestors

    def on_host(self) -> TreeRows:
        """Tokens and parents, with one copy to the host.

        The parent of the root, and of rows that no path may lead through, is -1.
        """
        parents = torch.where(self.enabled, self.parents, -1)
        token_ids, parents = torch.stack((self.token_ids, parents)).cpu()
        parents[0] = -1
        return TreeRows(token_ids, parents)


@dataclass(slots=True)
class _Pool:
    """Candidates so far, pass by pass: scores, target ids and pool index of the parent."""

    scores: list[torch.Tensor]
    token_ids: list[torch.Tensor]
    parents: list[torch.Tensor]


class DeviceTreeDrafter:
    """Grows EAGLE-3's dynamic tree (EAGLE-2, section 4; EAGLE-3, section 3) on the draft's device.

    The tree is that of `TreeDrafter`, up to logits of the draft that are equal at the border of a
    top-k, of which either may be taken.
    """

    def __init__(self, draft: DraftRunner | None, device: torch.device) -> None:
        """Set up; without a draft there is only `root_only`."""
        self.draft = draft
        self._device = device
        table = None if draft is None else draft.draft_to_target
        self._draft_to_target = None if table is None else table.to(device)

    def root_only(self, root: int) -> DeviceTree:
        """The tree that drafts nothing."""
        return self._tree(root, torch.empty(0, dtype=torch.int64, device=self._device), None, None)

    def grow(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        params: TreeParams,
        slot: int = 0,
    ) -> DeviceTree:
        """See `TreeDrafter.grow`."""
        top_k = params.top_k
        token_ids, scores = self._children(logits[None], top_k)
        token_ids, scores = token_ids[0], scores[0]
        # The parent of the first pass is the root, index -1.
        frontier = torch.arange(top_k, device=self._device)
        pool = _Pool([scores], [token_ids], [torch.full_like(frontier, -1)])
        own = torch.eye(top_k, dtype=torch.bool, device=self._device)
        visible, hidden = own, hidden[None].expand(top_k, -1)
        for round_index in range(params.depth):
            hidden, logits = self.draft.expand(token_ids, hidden, round_index, visible, slot)
            children, gains = self._children(logits, top_k)
            flat = (scores[:, None] + gains).flatten()
            pool.scores.append(flat)
            pool.token_ids.append(children.flatten())
            pool.parents.append(frontier[:, None].expand(-1, top_k).flatten())
            best = flat.sort(descending=True, stable=True).indices[:top_k]
            rank = best.div(top_k, rounding_mode="floor")
            token_ids, scores = pool.token_ids[-1][best], flat[best]
            frontier = best + (top_k + round_index * top_k**2)
            hidden = hidden[rank]
            visible = torch.cat((visible[rank], own), dim=1)
        return self._choose(root, pool, params)

    def _children(self, logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable children of each row: target ids and log-probabilities (M, K)."""
        top = logits.float().log_softmax(-1).topk(top_k, dim=-1)
        ids = top.indices if self._draft_to_target is None else self._draft_to_target[top.indices]
        # Rounding must not make a child more probable than its parent: it would be chosen alone.
        return ids, top.values.clamp(max=0)

    def _choose(self, root: int, pool: _Pool, params: TreeParams) -> DeviceTree:
        """Take the best T - 1 candidates, the earlier drafted one where scores tie."""
        scores, ids = torch.cat(pool.scores), torch.cat(pool.token_ids)
        best = scores.sort(descending=True, stable=True).indices[: params.total_tokens - 1]
        chosen = best.sort().values
        rows = torch.arange(1, params.total_tokens, device=self._device)
        row_of = torch.zeros(len(scores) + 1, dtype=torch.int64, device=self._device)
        row_of = row_of.scatter(0, chosen + 1, rows)
        parents = row_of[torch.cat(pool.parents)[chosen] + 1]
        return self._tree(root, ids[chosen], parents, scores[chosen], params.depth + 1)

    def _tree(
        self,
        root: int,
        token_ids: torch.Tensor,
        parents: torch.Tensor | None,
        scores: torch.Tensor | None,
        levels: int = 0,
    ) -> DeviceTree:
        """Put the root before the drafted rows and follow the parents upwards."""
        first = torch.full((1,), root, dtype=torch.int64, device=self._device)
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        parents = zero if parents is None else torch.cat((zero, parents))
        scores = zero.float() if scores is None else torch.cat((zero.float(), scores))
        rows = torch.arange(len(parents), device=self._device)
        ancestors, above = rows[:, None] == rows, parents
        for _ in range(levels):
            ancestors = ancestors | (above[:, None] == rows)
            above = parents[above]
        return DeviceTree(
            token_ids=torch.cat((first, token_ids)),
            parents=parents,
            levels=ancestors.sum(-1) - 1,
            ancestors=ancestors,
            scores=scores,
            enabled=rows >= 0,
            longest_path=min(len(parents), levels + 1),
        )
