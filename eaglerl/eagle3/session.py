"""The decoding of one sequence, one cycle at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from eaglerl._renamed import renamed_arguments
from eaglerl.eagle3.acceptance import make_acceptance
from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.cache_owner import CacheOwner
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.captured.captured_cycle import CapturedCycle
from eaglerl.eagle3.captured.graphed_calls import Graph
from eaglerl.eagle3.captured.session_graphs import make_session_graphs
from eaglerl.eagle3.fused_policy import BoundPolicy, decision_of
from eaglerl.eagle3.head.draft_runner import DraftRunner
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.logprobs import LogprobRecorder
from eaglerl.eagle3.policy import (
    ConstantPolicy,
    CycleState,
    DraftPlan,
    StagedPolicy,
    StepResult,
    TreeParams,
    TreePolicy,
    as_plan,
)
from eaglerl.eagle3.prompt_reader import PromptReader
from eaglerl.eagle3.ruled_policy import RuledPolicy
from eaglerl.eagle3.sequence_state import SequenceState
from eaglerl.eagle3.stopwatch import TotalTime, clock_of, seconds_between
from eaglerl.eagle3.target.target_model import TargetModel, TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree, DeviceTreeDrafter
from eaglerl.eagle3.tree.draft_decisions import DraftContext
from eaglerl.eagle3.tree.make_tree_drafter import make_tree_drafter
from eaglerl.eagle3.tree.merge import merge_lookup
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.eagle3.tree.selecting_drafter import SelectingDrafter, SlotDraft
from eaglerl.eagle3.tree.tree_drafter import check_top_k
from eaglerl.eagle3.verifier import Verifier
from eaglerl.ops import DraftTree


class DecodingSession(CacheOwner):
    """The state of one sequence, and the cycle that extends it: see `step`.

    The root of the next tree is the last token, which has no row in the target's cache yet. The
    draft's cache may lag behind the target's: a cycle that drafts nothing leaves the features of
    its tokens pending, and the next cycle that drafts processes them in one pass.

    With a target on a device the tree never leaves it: one copy per cycle tells the host what was
    accepted, and what a `FusedPolicy` chose next.

    Sessions of one target take turns, one cycle each, on any threads. A single session must be used
    from one thread at a time.

    Attributes:
        tree_policy: the policy that `step` asks if it is given no plan; None without one.
        waited_seconds: time spent waiting for this session's turn; no other time includes it.
        policy_time: the policy's time since the last cycle, which the next `StepResult` reports.
        logprobs: records the log-probability of every emitted token; None records nothing.
    """

    @renamed_arguments(policy="bound_policy")
    def __init__(
        self,
        target: TargetModel,
        draft: DraftRunner | None,
        verifier: Verifier,
        cache: KVCache,
        *,
        slot: int = 0,
        bound_policy: BoundPolicy | None = None,
        tree_policy: TreePolicy | None = None,
        on_device: bool | None = None,
        new_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """Start an empty sequence.

        Args:
            target: the target.
            draft: the draft's runner; None allows plain decoding only.
            verifier: greedy or sampling.
            cache: the target's KV cache, with room for the sequence and for the widest tree.
            slot: slot of this sequence in both caches; it is emptied.
            bound_policy: chooses the next tree within the cycle, see `CycleState.decision`.
            tree_policy: see `DecodingSession`.
            on_device: whether tree and draft stay on the target's device; None for all but the CPU.
            new_graph: makes the graphs of cycles on a device; None captures nothing.

        Raises:
            ValueError: `bound_policy` is given without `draft`.
        """
        if bound_policy is not None and draft is None:
            raise ValueError("bound_policy needs draft, which reduces the features that it reads")
        super().__init__(target.turns)
        self.target, self.draft, self.verifier = target, draft, verifier
        self.cache, self.slot = cache, slot
        self.tree_policy = tree_policy
        self.policy_time = TotalTime()
        self.logprobs: LogprobRecorder | None = None
        self.waited_seconds = 0.0
        self._fused = bound_policy
        self._staged = tree_policy if isinstance(tree_policy, StagedPolicy) else None
        self._selecting: SelectingDrafter | None = None
        self._captured: CapturedCycle | None = None
        self._graphs = make_session_graphs(target, verifier, self.policy_time, new_graph)
        self._device = target.device
        self._now = clock_of(self._device)
        self._prompt = PromptReader()
        self._tree: DraftTree | DeviceTree | None = None
        if on_device is None:
            on_device = self._device.type != "cpu"
        self._sequence = SequenceState(drafts=draft is not None, on_device=on_device)
        self._drafter = make_tree_drafter(draft, self._device if on_device else None)
        self._accept_rows = make_acceptance(verifier, self.policy_time, on_device=on_device)
        cache.truncate(0, slot)
        if draft is not None:
            draft.reset(slot)

    def _let_go(self, *, fit: bool) -> None:
        super()._let_go(fit=fit)
        self._sequence.pending.clear()
        self._prompt.clear()
        # A closed session may be kept for its text; it must not keep the caches alive.
        vars(self).update(
            _drafter=None, _selecting=None, _captured=None, _graphs=None, cache=None, draft=None
        )

    @property
    def token_ids(self) -> list[int]:
        """Prompt and tokens so far; the last one has no row in the target's cache yet."""
        return self._sequence.token_ids

    @token_ids.setter
    def token_ids(self, token_ids: list[int]) -> None:
        self._sequence.token_ids = token_ids

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Read the prompt and choose the first token.

        Other sessions may take their turn between two chunks.

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
        """Begin a prompt, which `read_chunk` reads chunk by chunk.

        Args:
            prompt_ids: at least one token id.

        Raises:
            ValueError: the prompt is empty or does not fit the cache, or the session is closed or
                has a prompt already.
        """
        if not prompt_ids:
            raise ValueError("prompt_ids must hold at least one token")
        self.check_open()
        if self.token_ids or self._prompt.token_ids:
            raise ValueError(
                "this session has a prompt already, and its caches hold that sequence: make a new "
                "session for another prompt"
            )
        self.cache.check_room(len(prompt_ids), self.slot)
        self._prompt = PromptReader(prompt_ids)
        self.verifier.begin(prompt_ids)

    def read_chunk(self, most_rows: int | None = None) -> int | None:
        """Read the next chunk of the prompt.

        Args:
            most_rows: most tokens of the chunk; None for the target's `chunk_size`.

        Returns:
            The first new token if this was the last chunk, else None.

        Raises:
            ValueError: the session is closed.
        """
        with self.target.turns as waited, self._working():
            self.waited_seconds += waited
            logits = self._prompt.read_chunk(self.target, self.cache, self.slot, most_rows)
            return None if logits is None else self._finish_prompt(logits)

    @property
    def unread(self) -> int:
        """Number of prompt tokens that have not been read."""
        return self._prompt.unread

    def _finish_prompt(self, logits: torch.Tensor) -> int:
        """Choose the first token from (1, V) logits and prepare the first cycle."""
        prompt_ids, features = self._prompt.token_ids, self._prompt.take_features()
        self._prompt = PromptReader()
        first = self.verifier.next_token(logits[0])
        if self.logprobs is not None:
            self.logprobs.add(logits, (first,))
        self._tree = None
        self._sequence.begin([*prompt_ids, first], features)
        if self._fused is not None:
            first_row = torch.zeros(1, dtype=torch.int64).to(self._device)
            _, params = self._fused.encode(self._sequence.last_features[None], first_row, first_row)
            self._sequence.decision = decision_of(params[0].cpu().tolist())
        return first

    @property
    def state(self) -> CycleState:
        """The policy's input before the next cycle."""
        return self._sequence.cycle_state

    @property
    def tree(self) -> DraftTree | DeviceTree | None:
        """The tree that the last cycle verified, looked-up tokens included; None before that."""
        return self._tree

    def step(
        self,
        plan: TreeParams | DraftPlan | None = None,
        staged: StagedPolicy | None = None,
        *,
        most_tokens: int | None = None,
    ) -> StepResult:
        """Run one cycle: choose, look up, draft, verify, accept, observe.

        Args:
            plan: the tree to draft and verify, or a plan that may add looked-up tokens. Without it
                `tree_policy` chooses, and observes the result.
            staged: decides between the passes of the draft how far the tree of `plan` grows.
            most_tokens: most tokens to emit; the chosen tree is cut to it.

        Returns:
            The emitted tokens, which are part of the sequence already, and the cycle's times.

        Raises:
            ValueError: no prompt was read, the tree does not fit the cache or the draft's
                vocabulary, a tree needs a draft and there is none, a staged policy is given on a
                device, there is neither a plan nor a policy, or the session is closed.
        """
        with self.target.turns as waited:
            self.waited_seconds += waited
            policy, staged = self._deciding(plan, staged)
            chosen = self._choose(policy, most_tokens)
            self._check_plan(chosen, staged)
            with self._working():
                self._make_room(chosen, staged)
                started = self._now()
                # Before the draft: a staged policy sees the looked-up tokens between its passes.
                lookup = self._sequence.look_up(chosen.lookup_tokens)
                tree, params = self._draft_tree(chosen.params, staged, lookup, most_tokens)
                drafted = self._now()
                output = self._verify_tree(tree)
                accepted = self._accept(output, tree)
                seconds = seconds_between(started, drafted, self._now())
                if accepted.draft is not None:
                    params = accepted.draft.params
                    assert isinstance(staged, RuledPolicy)
                    assert self._selecting is not None
                    self._selecting.learn(accepted.draft)
                    with self.policy_time:
                        staged.take_draft(accepted.draft)
                result = self._sequence.result(
                    accepted, len(tree.token_ids), params, lookup, seconds, self.policy_time.take()
                )
            with self.policy_time:
                policy.observe(result)
            return result

    def _deciding(
        self, plan: TreeParams | DraftPlan | None, staged: StagedPolicy | None
    ) -> tuple[TreePolicy, StagedPolicy | None]:
        """Check that a cycle can run; return the policies of its tree and of its draft passes."""
        self.check_open()
        if not self.token_ids:
            raise ValueError("step() needs a prompt: call prefill() first")
        if plan is not None:
            return ConstantPolicy(plan), staged
        if self.tree_policy is None:
            raise ValueError("step() needs a plan: this session was opened without a policy")
        return self.tree_policy, self._staged

    def _choose(self, policy: TreePolicy, most_tokens: int | None) -> DraftPlan:
        with self.policy_time:
            plan = as_plan(policy.choose(self.state))
            return plan if most_tokens is None else plan.limited_to(most_tokens - 1)

    def _check_plan(self, plan: DraftPlan, staged: StagedPolicy | None) -> None:
        params = plan.params
        # `choose` may have closed the session.
        self.check_open()
        if self.draft is None and params.total_tokens > 1:
            raise ValueError(
                f"this session has no draft: total_tokens must be 1, got {params.total_tokens}"
            )
        on_device = isinstance(self._drafter, DeviceTreeDrafter)
        if staged is not None and on_device and not isinstance(staged, RuledPolicy):
            raise ValueError("a staged policy decides on the host; this session drafts on a device")
        if self.draft is not None:
            check_top_k(params, self.draft.draft_vocab_size)
        if self._caches is None:
            self.cache.check_room(plan.most_rows, self.slot)

    def _make_room(self, plan: DraftPlan, staged: StagedPolicy | None) -> None:
        """Let the session's caches grow if the plan needs more rows than are free."""
        if isinstance(self._drafter, DeviceTreeDrafter) and isinstance(staged, RuledPolicy):
            plan = DraftPlan(staged.limit, staged.lookup_tokens)
        # For both caches: a target row per node, top_k draft rows per round, behind equal prefixes.
        rows = max(plan.most_rows, plan.params.depth * plan.params.top_k)
        if self._caches is not None:
            self.cache = self._caches.with_room(self.cache.lengths[self.slot] + rows)

    def _draft_tree(
        self, params: TreeParams, staged: StagedPolicy | None = None, lookup: Lookup = NO_LOOKUP,
        most_tokens: int | None = None,
    ) -> tuple[DraftTree | DeviceTree, TreeParams]:  # fmt: skip
        """Return the tree, looked-up tokens included, and the size of the head's part."""
        root, slot = self.token_ids[-1], self.slot
        if params.total_tokens == 1:
            self._captured = None
            return merge_lookup(self._drafter.root_only(root), lookup), params
        # `_check_plan` refuses a tree without a draft, and other staged policies on a device.
        assert self.draft is not None
        self._captured = captured = self._captured_cycle(params, staged, lookup)
        if captured is not None:
            captured.take_over([self._sequence])
            hidden, logits = (part[0] for part in captured.extend())
        else:
            token_ids, hidden = self._sequence.pending.take(self.draft.reduce)
            hidden, logits = self.draft.extend(token_ids, hidden, slot, reduced=True)
        self._sequence.first_logits = logits
        if staged is None:
            if captured is not None:
                return captured.grow(params).only, params
            tree = self._drafter.grow(root, hidden, logits, params, slot)
            return merge_lookup(tree, lookup), params
        if not isinstance(self._drafter, DeviceTreeDrafter):
            context = DraftContext(len(self.token_ids), lookup, self.policy_time)
            return self._drafter.grow_in_stages(root, hidden, logits, params, staged, context, slot)
        assert isinstance(staged, RuledPolicy)
        if captured is not None:
            self._selecting = captured.selecting
        elif self._selecting is None:
            self._selecting = SelectingDrafter(self.draft, self._device)
        levels = None if most_tokens is None else most_tokens - 1
        wanted = SlotDraft(root, staged, params.depth, lookup, self.policy_time, levels)
        limits = None if self._fused is None else self._fused.limits
        draft, depth = self._selecting.begin([wanted], limits)
        if captured is not None:
            return captured.grow_by_rule(draft, depth, self._fused).only, params
        return self._selecting.grow(draft, hidden, logits, depth, slot), params

    def _captured_cycle(
        self, params: TreeParams, staged: StagedPolicy | None, lookup: Lookup
    ) -> CapturedCycle | None:
        """Return what runs this cycle in graphs; None if it runs call by call."""
        if self._graphs is None or (staged is None and lookup.token_ids):
            return None
        captured = self._graphs.of(self._caches, self.draft, self.cache, self.slot)
        limit, longest = params, 0
        if isinstance(staged, RuledPolicy):
            limit, longest = staged.limit, staged.lookup_tokens
        waiting = len(self._sequence.pending)
        return captured if captured.fits(waiting, limit, longest) else None

    def _verify_tree(self, tree: DraftTree | DeviceTree) -> TargetOutput:
        if self._captured is not None:
            return self._captured.verify()
        start = self.cache.lengths[self.slot]
        rows = RowBatch.tree(tree.token_ids, tree.levels, tree.mask, start, self.slot)
        return self.target.forward(rows, self.cache, "all")

    def _accept(self, output: TargetOutput, tree: DraftTree | DeviceTree) -> Accepted:
        if self._captured is None:
            accepted = self._accept_rows(output, tree, self.cache, self.slot, self._fused)
        else:
            (own,) = self._captured.accept(output, self._fused)
            assert own is not None, "the text goes on"
            accepted = own
        if self.logprobs is not None:
            assert output.logits is not None  # The verification asks for all logits.
            self.logprobs.add(output.logits[accepted.rows], accepted.emitted)
        self._tree = tree
        self._keep(accepted)
        return accepted

    def _keep(self, accepted: Accepted) -> None:
        self._sequence.keep(accepted)
