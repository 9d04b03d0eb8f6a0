"""A policy that decides on a device, by a rule, and learns from the cycle's one copy."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from eaglerl.eagle3.policy import TreeParams
from eaglerl.ops.node_selection import (
    ADDED,
    INSIDE,
    LEVELS,
    NODES,
    RECORD_WORDS,
    NodeSelection,
    SelectionSizes,
)


class DeviceDraft(NamedTuple):
    """What a device has drafted and chosen in a cycle, as the host learns it afterwards.

    Attributes:
        top_k: width K of the draft.
        levels: levels that were drafted before the draft ended.
        passes: passes of the head that were computed, the first one included; those behind the end
            of the draft changed nothing.
        scores: (P,) float32 cumulative log-probabilities of the candidates; those of the drafted
            levels count.
        nodes: the candidates among the verified rows, ascending.
        added: number of looked-up tokens among them that no candidate holds.
        lookup_tokens: number of leading looked-up tokens that were verified, if any of them was no
            candidate; else 0.
        lookup_nodes: (D + 1,) int64 candidates that hold the looked-up tokens; -1 for none.
    """

    top_k: int
    levels: int
    passes: int
    scores: np.ndarray
    nodes: list[int]
    added: int
    lookup_tokens: int
    lookup_nodes: np.ndarray

    @property
    def rows(self) -> int:
        """Verified rows that are used, the root included."""
        return 1 + len(self.nodes) + self.added

    @property
    def params(self) -> TreeParams:
        """The head's part of the verified tree."""
        return TreeParams(1 + len(self.nodes), self.levels - 1, self.top_k)

    def pool_size(self, level: int) -> int:
        """Return the number of candidates up to a level, from 0."""
        return self.top_k + level * self.top_k**2

    def narrowed_to(self, top_k: int) -> DeviceDraft:
        """Return the draft without what was ignored because of a limit of top_k.

        Args:
            top_k: the limit; no more than the draft's width.

        Returns:
            The draft as one of this width.
        """
        if top_k == self.top_k:
            return self
        best = np.arange(top_k)
        kept = [best] + [
            self.pool_size(level) + np.add.outer(best * self.top_k, best).ravel()
            for level in range(self.levels - 1)
        ]
        places = {int(node): place for place, node in enumerate(np.concatenate(kept))}
        # Levels behind the end of the draft hold what was there before.
        held = [places.get(int(node), -1) for node in self.lookup_nodes]
        return self._replace(
            top_k=top_k,
            scores=self.scores[np.concatenate(kept)],
            nodes=[places[node] for node in self.nodes],
            lookup_nodes=np.array(held, np.int64),
        )


@runtime_checkable
class RuledPolicy(Protocol):
    """A `StagedPolicy` that can be stated as a rule in whole numbers, see `select_draft_nodes`.

    On a device the rule decides, without the host: it stops the draft and chooses the rows. The
    host learns what happened with the copy that says how many tokens were accepted.

    Attributes:
        limit: the largest tree.
        lookup_tokens: most looked-up tokens.
        most_rows: most rows that the cycle which `choose` has begun may verify, all included.
    """

    limit: TreeParams
    lookup_tokens: int

    @property
    def most_rows(self) -> int:
        """See above."""

    def selection_rule(self, sizes: SelectionSizes) -> np.ndarray:
        """Return the (words,) int32 rule of the cycle that `choose` has begun."""

    def take_draft(self, draft: DeviceDraft) -> None:
        """Receive what was drafted and chosen; before `observe`."""


def report_of(selection: NodeSelection) -> torch.Tensor:
    """Return what `read_report` reads of every slot, as one (S, N) int64 tensor on the device.

    Args:
        selection: the drafts of S slots.
    """
    parts = (selection.record, selection.row_nodes, selection.lookup_nodes)
    scores = selection.scores.view(torch.int32)
    return torch.cat([part.long() for part in (*parts, scores)], dim=1)


def report_size(sizes: SelectionSizes) -> int:
    """Return the number of words of a report."""
    return RECORD_WORDS + sizes.rows + sizes.depth + 1 + sizes.pool_size


def read_report(numbers: list[int], sizes: SelectionSizes, passes: int | None) -> DeviceDraft:
    """Read a report that was copied to the host.

    Args:
        numbers: of one slot, see `report_of`.
        sizes: of the selection.
        passes: see `DeviceDraft`; None for those of the drafted levels alone.
    """
    words = RECORD_WORDS
    rows, levels = words + sizes.rows, words + sizes.rows + sizes.depth + 1
    record, pool = numbers[:words], sizes.pool_size
    added = record[ADDED]
    return DeviceDraft(
        top_k=sizes.top_k,
        levels=record[LEVELS],
        passes=record[LEVELS] if passes is None else passes,
        scores=np.array(numbers[levels:], np.int32).view(np.float32),
        nodes=[node for node in numbers[words + 1 : rows] if 0 <= node < pool][: record[NODES]],
        added=added,
        lookup_tokens=record[INSIDE] + added if added else 0,
        lookup_nodes=np.array(numbers[rows:levels], np.int64),
    )
