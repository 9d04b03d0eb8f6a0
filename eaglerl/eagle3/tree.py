"""Growing one draft tree: the passes of the draft head between two verifications."""

from __future__ import annotations

from typing import Protocol

import torch

from eaglerl.eagle3.params import TreeParams
from eaglerl.ops import DraftTree, DraftTreeBuilder


class DraftRunner(Protocol):
    """Inference with a draft head over its own KV cache, one sequence per slot."""

    lengths: list[int]
    draft_to_target: torch.Tensor | None
    draft_vocab_size: int

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map (R, 3k) target features to (R, h)."""

    def extend(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        slot: int = 0,
        *,
        reduced: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in R new rows with real features; (h,) output and (Vd,) logits of the last."""

    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass over K frontier nodes; (K, h) outputs and (K, Vd) logits."""

    def reset(self, slot: int = 0) -> None:
        """Forget a sequence."""

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget the rows from `length` on."""


class TreeDrafter:
    """Grows EAGLE-3's dynamic tree (EAGLE-2, section 4; EAGLE-3, section 3) with a draft head."""

    def __init__(self, draft: DraftRunner | None) -> None:
        """Set up; without a draft there is only `root_only`."""
        self.draft = draft
        self._builder = DraftTreeBuilder()
        # The bookkeeping runs on the host, wherever the draft does.
        table = None if draft is None else draft.draft_to_target
        self._draft_to_target = None if table is None else table.cpu()

    def root_only(self, root: int) -> DraftTree:
        """The tree that drafts nothing: row 0 alone."""
        return DraftTree(
            token_ids=torch.tensor([root]),
            parents=torch.tensor([-1], dtype=torch.int32),
            levels=torch.tensor([0], dtype=torch.int32),
            mask=torch.tensor([[1]]),
            scores=torch.zeros(1),
        )

    def grow(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        params: TreeParams,
        slot: int = 0,
    ) -> DraftTree:
        """Draft ``params.depth`` rounds from the last stable row and choose the best nodes.

        Args:
            root: the target's next token, already known.
            hidden: (h,) output of the draft at the last stable row, which holds the root's
                embedding.
            logits: (Vd,) draft logits there.
            params: the tree; total_tokens over 1, top_k within the draft's vocabulary.
            slot: the sequence.

        Returns:
            The tree.

        """
        builder, draft = self._builder, self.draft
        builder.begin(root, params.top_k)
        builder.first(logits.float().cpu(), self._draft_to_target)
        hidden = hidden[None]
        for round_index in range(params.depth):
            token_ids, parents, mask = builder.frontier()
            hidden, logits = draft.expand(token_ids, hidden[parents], round_index, mask, slot)
            builder.expand(logits.float().cpu(), self._draft_to_target)
        return builder.finish(params.total_tokens)


def check_top_k(params: TreeParams, draft_vocab_size: int) -> None:
    """Make sure that a tree is not wider than the draft's vocabulary.

    Raises:
        ValueError: it is.
    """
    if params.total_tokens > 1 and params.top_k > draft_vocab_size:
        raise ValueError(
            f"top_k={params.top_k} is larger than the draft's vocabulary of "
            f"{draft_vocab_size} tokens"
        )
