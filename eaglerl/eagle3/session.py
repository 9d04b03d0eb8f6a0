"""Decoding one sequence, one cycle at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaglerl.eagle3.kv_cache import KVCache
from eaglerl.eagle3.params import CycleState, TreeParams
from eaglerl.eagle3.rows import RowBatch
from eaglerl.eagle3.target import TargetModel, TargetOutput
from eaglerl.eagle3.tree import DraftRunner, TreeDrafter, check_top_k, root_only
from eaglerl.eagle3.verify import Verifier
from eaglerl.ops import DraftTree


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one cycle gave.

    Attributes:
        token_ids: emitted tokens: the accepted ones, then the bonus.
        params: the tree as it was drafted (a policy's choice may have been cut to what was left).
        accepted: accepted drafted tokens; the acceptance length of the cycle is this + 1.
        draft_seconds: time of the draft passes, the first pass over newly accepted rows included.
        verify_seconds: time of the target's pass, the acceptance and the cache's compaction.
        features: (3 * hidden_size,) target features of the last accepted token.
        context_length: tokens after the cycle, the bonus included.
    """

    token_ids: tuple[int, ...]
    params: TreeParams
    accepted: int
    draft_seconds: float
    verify_seconds: float
    features: torch.Tensor
    context_length: int

    @property
    def seconds(self) -> float:
        """Duration of the cycle."""
        return self.draft_seconds + self.verify_seconds


class DecodingSession:
    """The state of one sequence and the cycle that extends it: draft, verify, accept.

    The last token, the root of the next tree, has no row in the target's cache yet. The draft's
    stable rows may lag behind the target's: a cycle that drafts nothing leaves the features of its
    tokens pending, and the next cycle that drafts takes them in with one pass.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: DraftRunner | None,
        verifier: Verifier,
        cache: KVCache,
        *,
        slot: int = 0,
    ) -> None:
        """Start an empty sequence.

        Args:
            target: the target.
            draft: the draft's runner; None allows plain decoding only.
            verifier: greedy or sampling.
            cache: the target's KV cache, with room for the sequence and for the widest tree.
            slot: the slot of both caches that belongs to this sequence; it is emptied.
        """
        self.target = target
        self.draft = draft
        self.verifier = verifier
        self.cache = cache
        self.slot = slot
        self.token_ids: list[int] = []
        self._drafter = None if draft is None else TreeDrafter(draft)
        self._pending: list[torch.Tensor] = []
        self._last: StepResult | None = None
        self._last_features: torch.Tensor | None = None
        cache.truncate(0, slot)
        if draft is not None:
            draft.reset(slot)

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Read the prompt and choose the first token.

        Args:
            prompt_ids: at least one token id.

        Returns:
            The first new token; it is the root of the first tree.

        Raises:
            ValueError: an empty prompt, or more tokens than the cache can take.
        """
        if not prompt_ids:
            raise ValueError("prompt_ids must hold at least one token")
        self.cache.check_room(len(prompt_ids), self.slot)
        self.token_ids = list(prompt_ids)
        output = None
        for start in range(0, len(prompt_ids), self.target.chunk_size):
            chunk = prompt_ids[start : start + self.target.chunk_size]
            last = start + len(chunk) == len(prompt_ids)
            rows = RowBatch.causal(chunk, start, self.slot)
            output = self.target.forward(rows, self.cache, "last" if last else "none")
            self.cache.commit(range(len(chunk)), self.slot)
            self._keep_features(output.features)
        self._last_features = output.features[-1].clone()
        first = self.verifier.next_token(output.logits[0])
        self.token_ids.append(first)
        return first

    @property
    def state(self) -> CycleState:
        """What a policy may look at before the next cycle."""
        return CycleState(self._last_features, len(self.token_ids), self._last)

    def step(self, params: TreeParams) -> StepResult:
        """Run one cycle.

        Args:
            params: the tree to draft and verify.

        Returns:
            What it emitted and what it took. The tokens are part of the sequence already.

        Raises:
            ValueError: no prompt was read, the tree does not fit the cache or the draft's
                vocabulary, or a tree was asked for without a draft.
        """
        if not self.token_ids:
            raise ValueError("step() needs a prompt: call prefill() first")
        if self.draft is None and params.total_tokens > 1:
            raise ValueError(
                f"this session has no draft: total_tokens must be 1, got {params.total_tokens}"
            )
        if self.draft is not None:
            check_top_k(params, self.draft.draft_vocab_size)
        self.cache.check_room(params.total_tokens, self.slot)
        started = time.perf_counter()
        tree = self._draft_tree(params)
        drafted = time.perf_counter()
        output = self._verify_tree(tree)
        rows, bonus = self.verifier.accept(output.logits, tree)
        self._last_features = output.features[rows[-1]].clone()
        self._keep_features(output.features[rows])
        self.cache.commit(rows, self.slot)
        emitted = (*tree.token_ids[rows[1:]].tolist(), bonus)
        self.token_ids.extend(emitted)
        self._last = StepResult(
            token_ids=emitted,
            params=params,
            accepted=len(rows) - 1,
            draft_seconds=drafted - started,
            verify_seconds=time.perf_counter() - drafted,
            features=self._last_features,
            context_length=len(self.token_ids),
        )
        return self._last

    def _keep_features(self, features: torch.Tensor) -> None:
        if self.draft is not None:
            self._pending.append(features.clone())

    def _draft_tree(self, params: TreeParams) -> DraftTree:
        root = self.token_ids[-1]
        if params.total_tokens == 1:
            return root_only(root)
        stable = self.draft.lengths[self.slot]
        features = self._pending[0] if len(self._pending) == 1 else torch.cat(self._pending)
        self._pending.clear()
        token_ids = torch.tensor(self.token_ids[stable + 1 :])
        hidden, logits = self.draft.extend(token_ids, features, self.slot)
        return self._drafter.grow(root, hidden, logits, params, self.slot)

    def _verify_tree(self, tree: DraftTree) -> TargetOutput:
        start = self.cache.lengths[self.slot]
        rows = RowBatch.tree(tree.token_ids, tree.levels, tree.mask, start, self.slot)
        return self.target.forward(rows, self.cache, "all")
