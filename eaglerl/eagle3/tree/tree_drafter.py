"""Draft trees that grow on the host: the draft head's passes between two verifications."""

from __future__ import annotations

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.policy import StagedPolicy, TreeParams
from eaglerl.eagle3.tree.draft_decisions import DraftContext, DraftDecisions
from eaglerl.ops import DraftTree, DraftTreeBuilder


class TreeDrafter:
    """Grows EAGLE-3's dynamic tree (EAGLE-2, section 4; EAGLE-3, section 3) with a draft head.

    The first pass proposes the K children of the root. Every further round expands the K best
    nodes of the last one into K children each, so that D rounds leave a pool of K + D K^2
    candidates: 710 for EAGLE's default tree (total_tokens 60, depth 7, top_k 10). The best
    total_tokens - 1 of them, by the sum of the log-probabilities from the root, are verified. A
    score never rises from parent to child, so the chosen nodes always form a tree.

    The native `DraftTreeBuilder` keeps the pool on the host, wherever the head runs.
    """

    def __init__(self, draft: DraftRunner | None) -> None:
        """Set up; without a draft there is only `root_only`."""
        self.draft = draft
        self._builder = DraftTreeBuilder()
        table = None if draft is None else draft.draft_to_target
        self._draft_to_target = None if table is None else table.cpu()
        self._asked: StagedPolicy | None = None

    def root_only(self, root: int) -> DraftTree:
        """Return the tree of the root alone, which drafts nothing."""
        return root_only(root)

    def grow(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        params: TreeParams,
        slot: int = 0,
    ) -> DraftTree:
        """Draft ``params.depth`` rounds from the last stable row, and keep the best nodes.

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
        hidden = self._begin(root, hidden, logits, params.top_k)
        for round_index in range(params.depth):
            hidden = self._expand(hidden, round_index, slot)
        return self._builder.finish(params.total_tokens)

    def grow_in_stages(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        limit: TreeParams,
        policy: StagedPolicy,
        context: DraftContext,
        slot: int = 0,
    ) -> tuple[DraftTree, TreeParams]:
        """Draft until a policy stops it, and keep the nodes that the policy chooses.

        Args:
            root: see `grow`.
            hidden: see `grow`.
            logits: see `grow`.
            limit: the largest tree.
            policy: asked after every pass.
            context: what the policy sees apart from the draft.
            slot: the sequence.

        Returns:
            The tree, and the parameters of the head's part of it. A `SelectingPolicy` says how many
            of the looked-up tokens are merged in; with other policies it is all of them.

        Raises:
            ValueError: the policy chose more rows than the pool has, or nodes that are not in it.
        """
        if policy is not self._asked:
            self._asked, self._decisions = policy, DraftDecisions(policy)
        decisions = self._decisions
        decisions.begin(limit)
        hidden = self._begin(root, hidden, logits, limit.top_k)
        depth = 0
        while decisions.look(self._builder, depth, context):
            hidden = self._expand(hidden, depth, slot)
            depth += 1
        with context.policy_time:
            decisions.select()
        return decisions.finish(self._builder)

    def _begin(
        self, root: int, hidden: torch.Tensor, logits: torch.Tensor, top_k: int
    ) -> torch.Tensor:
        """Propose the root's children from `logits`; return the root's feature as (1, h)."""
        self._builder.begin(root, top_k)
        self._builder.first(logits.float().cpu(), self._draft_to_target)
        return hidden[None]

    def _expand(self, hidden: torch.Tensor, round_index: int, slot: int) -> torch.Tensor:
        """Run one more round.

        Args:
            hidden: (M, h) features of the nodes that the round before expanded.
            round_index: number of the round, from 0.
            slot: the sequence.

        Returns:
            (K, h) features of the nodes that this round expanded.
        """
        assert self.draft is not None, "a tree is grown by a draft head"
        token_ids, parents, mask = self._builder.frontier()
        # The K best nodes may share parents, and some rows of the round before have no child among
        # them: the features are gathered by parent, K rows whatever the shape of the tree.
        hidden, logits = self.draft.expand(token_ids, hidden[parents], round_index, mask, slot)
        self._builder.expand(logits.float().cpu(), self._draft_to_target)
        return hidden


# Everything but the token, which no one writes to: five tensors take 10 us, of every sequence.
_ROOT = (
    torch.tensor([-1], dtype=torch.int32),
    torch.tensor([0], dtype=torch.int32),
    torch.tensor([[1]]),
    torch.zeros(1),
)


def root_only(root: int) -> DraftTree:
    """Return the tree of the root alone."""
    return DraftTree(torch.tensor([root]), *_ROOT)


def check_top_k(params: TreeParams, draft_vocab_size: int) -> None:
    """Check that a tree is not wider than the draft's vocabulary.

    Raises:
        ValueError: it is wider.
    """
    if params.total_tokens > 1 and params.top_k > draft_vocab_size:
        raise ValueError(
            f"top_k={params.top_k} is larger than the draft's vocabulary of "
            f"{draft_vocab_size} tokens"
        )
