"""Growing one draft tree: the passes of the draft head between two verifications."""

from __future__ import annotations

from typing import NamedTuple

import torch

from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.policy import DraftProgress, SelectingPolicy, StagedPolicy, TreeParams
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.tree.merge import merge_chain
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.ops import DraftTree, DraftTreeBuilder


class DraftContext(NamedTuple):
    """The moment at which a policy is asked between the passes of a draft.

    Attributes:
        context_length: tokens before the tree, the root included.
        lookup: the chain that was looked up in the text.
        policy_time: adds up what the policy takes, with what it is shown.
    """

    context_length: int
    lookup: Lookup
    policy_time: TotalTime


class TreeDrafter:
    """Grows EAGLE-3's dynamic tree (EAGLE-2, section 4; EAGLE-3, section 3) with a draft head."""

    def __init__(self, draft: DraftRunner | None) -> None:
        """Set up; without a draft there is only `root_only`."""
        self.draft = draft
        self._builder = DraftTreeBuilder()
        # The bookkeeping runs on the host, wherever the draft does.
        table = None if draft is None else draft.draft_to_target
        self._draft_to_target = None if table is None else table.cpu()
        self._asked: StagedPolicy | None = None
        self._asked_selects = False

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
        moment: DraftContext,
        slot: int = 0,
    ) -> tuple[DraftTree, TreeParams]:
        """Draft for as long as a policy goes on, and verify what it says.

        Args:
            root: see `grow`.
            hidden: see `grow`.
            logits: see `grow`.
            limit: the largest tree.
            policy: asked after every pass.
            moment: what it is told besides.
            slot: the sequence.

        Returns:
            The tree, with as much of the looked-up chain as a `SelectingPolicy` wants, or all of
            it; and the parameters of the head's part.

        Raises:
            ValueError: the policy asked for rows or nodes that the pool cannot give.
        """
        hidden = self._begin(root, hidden, logits, limit.top_k)
        depth = 0
        while True:
            with moment.policy_time:
                progress = self._progress(limit.top_k, depth, moment)
                should_continue = depth < limit.depth and policy.should_continue(progress)
            if not should_continue:
                break
            hidden = self._expand(hidden, depth, slot)
            depth += 1
        chain = moment.lookup.token_ids
        if self._selects(policy):
            with moment.policy_time:
                selection = policy.select(progress)
            tree = self._builder.finish_selected(selection.nodes, chain[: selection.chain_tokens])
            return tree, TreeParams(1 + len(selection.nodes), depth, limit.top_k)
        with moment.policy_time:
            params = TreeParams(policy.choose_total_tokens(progress), depth, limit.top_k)
        return merge_chain(self._builder.finish(params.total_tokens), chain), params

    def _selects(self, policy: StagedPolicy) -> bool:
        # Asking the protocol takes longer than a policy's decision.
        if policy is not self._asked:
            self._asked, self._asked_selects = policy, isinstance(policy, SelectingPolicy)
        return self._asked_selects

    def _progress(self, top_k: int, depth: int, moment: DraftContext) -> DraftProgress:
        scores = self._builder.scores().numpy()
        lookup, nodes = moment.lookup, None
        if lookup.token_ids:
            nodes = self._builder.chain_nodes(lookup.token_ids, depth + 1).numpy()
        return DraftProgress(top_k, depth, scores, moment.context_length, lookup, nodes)

    def _begin(
        self, root: int, hidden: torch.Tensor, logits: torch.Tensor, top_k: int
    ) -> torch.Tensor:
        self._builder.begin(root, top_k)
        self._builder.first(logits.float().cpu(), self._draft_to_target)
        return hidden[None]

    def _expand(self, hidden: torch.Tensor, round_index: int, slot: int) -> torch.Tensor:
        """One more round; the features of its frontier, from those of the one before."""
        token_ids, parents, mask = self._builder.frontier()
        hidden, logits = self.draft.expand(token_ids, hidden[parents], round_index, mask, slot)
        self._builder.expand(logits.float().cpu(), self._draft_to_target)
        return hidden


def check_top_k(params: TreeParams, draft_vocab_size: int) -> None:
    """Check that a tree is not wider than the draft's vocabulary.

    Raises:
        ValueError: it is.
    """
    if params.total_tokens > 1 and params.top_k > draft_vocab_size:
        raise ValueError(
            f"top_k={params.top_k} is larger than the draft's vocabulary of "
            f"{draft_vocab_size} tokens"
        )
