"""Decoding one sequence, one cycle at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from eaglerl.eagle3.acceptance import Acceptance, Accepted, DeviceAcceptance, HostAcceptance
from eaglerl.eagle3.cache.cache_owner import CacheOwner
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.logprobs import LogprobRecorder
from eaglerl.eagle3.pending_rows import PendingRows
from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    StagedPolicy,
    StepResult,
    TreeParams,
    TreePolicy,
    as_plan,
)
from eaglerl.eagle3.sampling import RowVerifier, Verifier
from eaglerl.eagle3.stopwatch import Stopwatch, TotalTime
from eaglerl.eagle3.target.target_model import TargetModel, TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree, DeviceTreeDrafter
from eaglerl.eagle3.tree.merge import merge_looked_up, merge_looked_up_on_device
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup, Lookup
from eaglerl.eagle3.tree.tree_drafter import DraftContext, TreeDrafter, check_top_k
from eaglerl.ops import DraftTree

#: Log-probabilities of a draft pass that a policy may look at.
_CONFIDENCES = 8


class DecodingSession(CacheOwner):
    """The state of one sequence and the cycle that extends it: draft, verify, accept.

    The last token, the root of the next tree, has no row in the target's cache yet. The draft's
    stable rows may lag behind the target's: a cycle that drafts nothing leaves the features of its
    tokens pending, and the next cycle that drafts takes them in with one pass.

    For a target on the CPU the tree is kept on the host. On a device it never leaves it: one copy a
    cycle tells the host what was accepted, and what a `FusedPolicy` chose next.

    Sessions of one target take turns, cycle by cycle, whatever threads they are on. Use one session
    on one thread at a time.

    Attributes:
        tree_policy: the policy that this session's trees are to be asked from, where it was made
            for one: the one given or a fork of it.
        waited_seconds: time that passed until it was this session's turn; part of no other time.
        policy_time: of the policy since the last cycle; the next one's result takes it. Whoever
            asks the policy adds to it.
        logprobs: told the log-probabilities of every token that comes; None for nobody.
    """

    def __init__(
        self,
        target: TargetModel,
        draft: DraftRunner | None,
        verifier: Verifier,
        cache: KVCache,
        *,
        slot: int = 0,
        policy: BoundPolicy | None = None,
        on_device: bool | None = None,
    ) -> None:
        """Start an empty sequence.

        Args:
            target: the target.
            draft: the draft's runner; None allows plain decoding only.
            verifier: greedy or sampling.
            cache: the target's KV cache, with room for the sequence and for the widest tree.
            slot: the slot of both caches that belongs to this sequence; it is emptied.
            policy: decides the next tree within the cycle; `state.decision` holds it.
            on_device: whether the tree stays on the target's device; by default where that is not
                the CPU. Such a session needs a draft that runs there as a module.

        Raises:
            ValueError: a policy without a draft.
        """
        if policy is not None and draft is None:
            raise ValueError("policy needs a draft: it reads the features that the draft reduces")
        super().__init__(target.turns)
        self.target = target
        self.draft = draft
        self.verifier = verifier
        self.cache = cache
        self.slot = slot
        self.token_ids: list[int] = []
        self.policy_time = TotalTime()
        self.logprobs: LogprobRecorder | None = None
        self.waited_seconds = 0.0
        self.tree_policy: TreePolicy | None = None
        self._device = target.embed_tokens.device
        self._policy = policy
        self._pending = PendingRows()
        self._last: StepResult | None = None
        self._last_features: torch.Tensor | None = None
        self._decision: TreeParams | None = None
        self._text: ContextLookup | None = None
        self._first_logits: torch.Tensor | None = None
        self._prompt: list[int] = []
        self._prompt_features: list[torch.Tensor] = []
        self._tree: DraftTree | DeviceTree | None = None
        self._drafter: TreeDrafter | DeviceTreeDrafter
        self._accept: Acceptance
        if self._device.type != "cpu" if on_device is None else on_device:
            self._drafter = DeviceTreeDrafter(draft, self._device)
            self._accept = self._accept_on_device(verifier)
            self._merge = merge_looked_up_on_device
        else:
            self._drafter = TreeDrafter(draft)
            self._accept = HostAcceptance(verifier, self.policy_time)
            self._merge = merge_looked_up
        cache.truncate(0, slot)
        if draft is not None:
            draft.reset(slot)

    def _let_go(self, *, fit: bool) -> None:
        super()._let_go(fit=fit)
        self._pending.clear()
        self._prompt_features.clear()
        # Whoever keeps the session for its text keeps no caches with it.
        self._drafter = self.cache = self.draft = None

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Read the prompt and choose the first token.

        Other sessions may have their turn between two chunks of it.

        Args:
            prompt_ids: at least one token id.

        Returns:
            The first new token; it is the root of the first tree.

        Raises:
            ValueError: see `begin_prompt`.
        """
        self.begin_prompt(prompt_ids)
        while (first := self.read_chunk()) is None:
            pass
        return first

    def begin_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Set out to read a prompt, chunk by chunk with `read_chunk`.

        Args:
            prompt_ids: at least one token id.

        Raises:
            ValueError: an empty prompt, more tokens than the cache can take, or a session that is
                closed or has begun a sequence already.
        """
        if not prompt_ids:
            raise ValueError("prompt_ids must hold at least one token")
        self.check_open()
        if self.token_ids or self._prompt:
            raise ValueError(
                "this session has a prompt already, behind which its caches would go on: make a "
                "new session for another one"
            )
        self.cache.check_room(len(prompt_ids), self.slot)
        self._prompt, self._prompt_features = [*prompt_ids], []
        self.verifier.begin(prompt_ids)

    def read_chunk(self, most_rows: int | None = None) -> int | None:
        """Read the next chunk of the prompt.

        Args:
            most_rows: tokens of the chunk at most; None for the target's `chunk_size`.

        Returns:
            The first new token if that was the last chunk, else None.

        Raises:
            ValueError: a session that is closed.
        """
        with self.target.turns as waited, self._working():
            self.waited_seconds += waited
            start = len(self._prompt) - self.unread
            size = min(self.target.chunk_size, most_rows or self.target.chunk_size)
            chunk = self._prompt[start : start + size]
            last = start + len(chunk) == len(self._prompt)
            rows = RowBatch.causal(chunk, start, self.slot)
            output = self.target.forward(rows, self.cache, "last" if last else "none")
            self.cache.commit(range(len(chunk)), self.slot)
            # The next chunk overwrites them.
            self._prompt_features.append(output.features.clone())
            return self._finish_prompt(output.logits) if last else None

    @property
    def unread(self) -> int:
        """Tokens of the prompt that have yet to be read."""
        return len(self._prompt) - sum(len(part) for part in self._prompt_features)

    def _finish_prompt(self, logits: torch.Tensor) -> int:
        """Choose the first token from (1, V) logits; the session can draft then."""
        prompt_ids, features = self._prompt, self._prompt_features
        self._prompt, self._prompt_features = [], []
        first = self.verifier.next_token(logits[0])
        if self.logprobs is not None:
            self.logprobs.add(logits, (first,))
        self.token_ids = [*prompt_ids, first]
        self._text = self._tree = self._first_logits = None
        self._last_features = features[-1][-1]
        self._pending.clear()
        if self.draft is not None:
            after = torch.tensor(self.token_ids[1:]).to(self._device)
            self._pending.add(after, torch.cat(features), reduced=False)
        if self._policy is not None:
            first_row = torch.zeros(1, dtype=torch.int64).to(self._device)
            _, params = self._policy.encode(self._last_features[None], first_row, first_row)
            self._decision = TreeParams(*params[0].cpu().tolist())
        return first

    @property
    def state(self) -> CycleState:
        """What a policy may look at before the next cycle."""
        return CycleState(
            self._last_features,
            len(self.token_ids),
            self._last,
            self._decision,
            self._indexed_text,
            self._confidence,
        )

    @property
    def tree(self) -> DraftTree | DeviceTree | None:
        """What the last cycle verified, a looked-up chain included; None before the first."""
        return self._tree

    def step(self, plan: TreeParams | DraftPlan, staged: StagedPolicy | None = None) -> StepResult:
        """Run one cycle.

        Args:
            plan: the tree to draft and verify, or a plan with other sources of drafts.
            staged: decides between the draft's passes when the tree is done; the tree of `plan` is
                its limit.

        Returns:
            What it emitted and what it took. The tokens are part of the sequence already.

        Raises:
            ValueError: no prompt was read, the tree does not fit the cache or the draft's
                vocabulary, a tree was asked for without a draft, a staged policy on a device, or
                a session that is closed.
        """
        plan = as_plan(plan)
        with self.target.turns as waited:
            self.waited_seconds += waited
            self._check_step(plan, staged)
            with self._working():
                return self._cycle(plan, staged)

    def _check_step(self, plan: DraftPlan, staged: StagedPolicy | None) -> None:
        params = plan.params
        self.check_open()
        if not self.token_ids:
            raise ValueError("step() needs a prompt: call prefill() first")
        if self.draft is None and params.total_tokens > 1:
            raise ValueError(
                f"this session has no draft: total_tokens must be 1, got {params.total_tokens}"
            )
        if staged is not None and isinstance(self._drafter, DeviceTreeDrafter):
            raise ValueError("a staged policy decides on the host; this session drafts on a device")
        if self.draft is not None:
            check_top_k(params, self.draft.draft_vocab_size)
        if self._caches is None:
            self.cache.check_room(plan.most_rows, self.slot)

    def _cycle(self, plan: DraftPlan, staged: StagedPolicy | None) -> StepResult:
        if self._caches is not None:
            self._make_room(plan)
        watch = Stopwatch(self._device)
        watch.mark()
        lookup = NO_LOOKUP
        if plan.lookup_tokens:
            lookup = self._indexed_text().propose(plan.lookup_tokens)
        self._tree, params = self._draft_tree(plan.params, staged, lookup)
        watch.mark()
        output = self._verify_tree(self._tree)
        accepted = self._accept(output, self._tree, self.cache, self.slot, self._policy)
        if self.logprobs is not None:
            self.logprobs.add(output.logits[accepted.rows], accepted.emitted)
        self._keep(accepted)
        watch.mark()
        draft_seconds, verify_seconds = watch.laps()
        self._last = StepResult(
            token_ids=accepted.emitted,
            params=params,
            accepted=len(accepted.emitted) - 1,
            draft_seconds=draft_seconds,
            verify_seconds=verify_seconds,
            features=self._last_features,
            context_length=len(self.token_ids),
            lookup=lookup,
            lookup_accepted=_common_length(lookup.token_ids, accepted.emitted[:-1]),
            rows=len(self._tree.token_ids),
            policy_seconds=self.policy_time.take(),
        )
        return self._last

    def _make_room(self, plan: DraftPlan) -> None:
        """Let the caches grow where a plan is wider than what is free."""
        # Once it has caught up, the draft has as many stable rows as the target has committed ones.
        rows = max(plan.most_rows, plan.params.depth * plan.params.top_k)
        capacity = self.cache.lengths[self.slot] + rows
        if capacity > self.cache.capacity:
            self._caches.grow(capacity)
            self.cache = self._caches.target

    def _confidence(self) -> np.ndarray | None:
        """See `CycleState`."""
        if self._first_logits is None:
            return None
        log_probs = torch.log_softmax(self._first_logits.float(), dim=-1)
        return log_probs.topk(min(_CONFIDENCES, len(log_probs))).values.cpu().numpy()

    def _indexed_text(self) -> ContextLookup:
        """The index of the sequence, root included, brought up to date."""
        if self._text is None:
            self._text = ContextLookup()
        self._text.extend(self.token_ids[len(self._text) :])
        return self._text

    def _accept_on_device(self, verifier: Verifier) -> Acceptance:
        if isinstance(verifier, RowVerifier):
            return DeviceAcceptance(verifier, self.policy_time)
        warnings.warn(
            "logits processors that read the text run on the host: the device waits for it after "
            "every verification",
            stacklevel=4,
        )
        return HostAcceptance(verifier, self.policy_time)

    def _keep(self, accepted: Accepted) -> None:
        self.token_ids.extend(accepted.emitted)
        self._last_features = accepted.last_features
        self._decision = accepted.decision
        if self.draft is not None:
            self._pending.add(accepted.token_ids, accepted.features, reduced=accepted.reduced)

    def _draft_tree(
        self,
        params: TreeParams,
        staged: StagedPolicy | None = None,
        lookup: Lookup = NO_LOOKUP,
    ) -> tuple[DraftTree | DeviceTree, TreeParams]:
        """The tree with the lookup merged into it, and the parameters of the head's part."""
        root = self.token_ids[-1]
        if params.total_tokens == 1:
            tree = self._drafter.root_only(root)
        else:
            token_ids, hidden = self._pending.take(self.draft.reduce)
            hidden, logits = self.draft.extend(token_ids, hidden, self.slot, reduced=True)
            self._first_logits = logits
            if staged is not None:
                moment = DraftContext(len(self.token_ids), lookup, self.policy_time)
                return self._drafter.grow_in_stages(
                    root, hidden, logits, params, staged, moment, self.slot
                )
            tree = self._drafter.grow(root, hidden, logits, params, self.slot)
        if lookup.token_ids:
            tree = self._merge(tree, lookup.token_ids)
        return tree, params

    def _verify_tree(self, tree: DraftTree | DeviceTree) -> TargetOutput:
        start = self.cache.lengths[self.slot]
        rows = RowBatch.tree(tree.token_ids, tree.levels, tree.mask, start, self.slot)
        return self.target.forward(rows, self.cache, "all")


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
