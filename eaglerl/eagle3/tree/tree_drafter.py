"""Draft trees that grow on the host: the draft head's passes between two verifications."""

from __future__ import annotations

from typing import NamedTuple

import torch

from eaglerl._ext import C
from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.policy import (
    DraftProgress,
    PlannedPolicy,
    SelectingPolicy,
    StagedPolicy,
    TreeParams,
)
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.merge import merge_looked_up
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class DraftContext(NamedTuple):
    """What a policy sees between the passes of a draft, apart from the draft itself.

    Attributes:
        context_length: tokens before the tree, the root included.
        lookup: the tokens that were looked up in the text.
        policy_time: adds up the policy's time, including that of preparing its input.
    """

    context_length: int
    lookup: Lookup
    policy_time: TotalTime


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
        self._selecting: SelectingPolicy | None = None
        self._planner: C.OnlineCycle | None = None

    def root_only(self, root: int) -> DraftTree:
        """Return the tree of the root alone, which drafts nothing."""
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
        self._ask(policy)
        if self._planner is not None:
            return self._grow_planned(root, hidden, logits, limit, self._planner, context, slot)
        hidden = self._begin(root, hidden, logits, limit.top_k)
        depth = 0
        while True:
            with context.policy_time:
                progress = self._progress(limit.top_k, depth, context)
                should_continue = depth < limit.depth and policy.should_continue(progress)
            if not should_continue:
                break
            hidden = self._expand(hidden, depth, slot)
            depth += 1
        looked_up = context.lookup.token_ids
        selecting = self._selecting
        if selecting is not None:
            with context.policy_time:
                selection = selecting.select(progress)
            # The builder merges them itself: it still has the pool, so no tree of the candidates
            # alone is made first.
            wanted = looked_up[: selection.lookup_tokens]
            tree = self._builder.finish_selected(selection.nodes, wanted)
            return tree, TreeParams(1 + len(selection.nodes), depth, limit.top_k)
        with context.policy_time:
            params = TreeParams(policy.choose_total_tokens(progress), depth, limit.top_k)
        return merge_looked_up(self._builder.finish(params.total_tokens), looked_up), params

    def _grow_planned(
        self,
        root: int,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        limit: TreeParams,
        planner: C.OnlineCycle,
        context: DraftContext,
        slot: int,
    ) -> tuple[DraftTree, TreeParams]:
        """Do what `grow_in_stages` does, with a planner that looks at the builder itself."""
        hidden = self._begin(root, hidden, logits, limit.top_k)
        builder, (match, looked_up) = self._builder, context.lookup
        depth = 0
        while True:
            with context.policy_time:
                go_on = builder.look(planner, context.context_length, match, looked_up)
            if not go_on or depth == limit.depth:
                break
            hidden = self._expand(hidden, depth, slot)
            depth += 1
        tree, candidates = builder.finish_planned(planner, looked_up)
        return tree, TreeParams(candidates, depth, limit.top_k)

    def _ask(self, policy: StagedPolicy) -> None:
        """Find out how a policy decides."""
        # isinstance() against a protocol looks up every method by name, tens of microseconds in
        # Python 3.11, so the answer is kept for as long as the policy stays the same.
        if policy is self._asked:
            return
        self._asked = policy
        self._selecting = policy if isinstance(policy, SelectingPolicy) else None
        self._planner = policy.native_cycle if isinstance(policy, PlannedPolicy) else None

    def _progress(self, top_k: int, depth: int, context: DraftContext) -> DraftProgress:
        lookup = context.lookup
        scores, nodes = self._builder.progress(lookup.token_ids, depth + 1)
        return DraftProgress(top_k, depth, scores, context.context_length, lookup, nodes)

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
