"""One sequence of several that are decoded in lockstep on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.continuation import Continuation
from eaglerl.eagle3.policy import DraftPlan, TreeParams, TreePolicy, as_plan
from eaglerl.eagle3.prompt_reader import PromptReader
from eaglerl.eagle3.sequence_state import SequenceState
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.eagle3.verifier import Verifier


class SlotSequence(Continuation):
    """A prompt in a slot, and its continuation so far.

    Attributes:
        verifier: chooses the first token.
        state: the text, and what the next cycle needs.
        policy: decides for this sequence.
        policy_time: the policy's time since the last cycle.
        plan: of the current cycle.
        lookup: its looked-up tokens.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        verifier: Verifier,
        rules: StoppingRules,
        policy: TreePolicy,
        end_use: Callable[[], None],
    ) -> None:
        """Take a prompt.

        Args:
            prompt_ids: at least one token id.
            verifier: chooses the first token.
            rules: end the sequence.
            policy: see `SlotSequence`.
            end_use: ends the use of the policy.
        """
        super().__init__(prompt_ids, rules, None)
        self.verifier, self.policy, self.end_use = verifier, policy, end_use
        self.state = SequenceState(drafts=True, on_device=True)
        self.policy_time = TotalTime()
        self.plan = DraftPlan()
        self.lookup: Lookup = NO_LOOKUP
        self._waited = 0.0

    @property
    def waited_seconds(self) -> float:
        """Time spent waiting while others had their turn at the target."""
        return self._waited

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for the target."""
        self._waited += seconds

    @property
    def drafts(self) -> bool:
        """Whether the current cycle's plan has a tree of the head."""
        return self.plan.params.total_tokens > 1

    def read_prompt(self, target: TargetModel, cache: KVCache, slot: int) -> None:
        """Read the prompt and choose the first token.

        Other sequences of the target may take their turn between two chunks.

        Args:
            target: the target.
            cache: its KV cache.
            slot: the sequence's slot there.
        """
        prompt = PromptReader(self.token_ids)
        logits = None
        while logits is None:
            with target.turns as waited:
                started = time.perf_counter()
                logits = prompt.read_chunk(target, cache, slot, None)
                self.prefill_seconds += time.perf_counter() - started
                self.wait(waited)
        started = time.perf_counter()
        first = self.verifier.next_token(logits[0])
        self.state.begin([*prompt.token_ids, first], prompt.take_features())
        self._append((first,))
        self.prefill_seconds += time.perf_counter() - started

    def choose(self) -> None:
        """Let the policy choose the next cycle's plan, and look up what it asks for."""
        with self.policy_time:
            plan = as_plan(self.policy.choose(self.state.cycle_state))
            self.plan = plan.limited_to(self.tokens_left - 1)
        self.lookup = self.state.look_up(self.plan.lookup_tokens)

    def keep(
        self, accepted: Accepted, rows: int, params: TreeParams, seconds: tuple[float, float]
    ) -> None:
        """Append what a cycle has accepted, and tell the policy.

        Args:
            accepted: what was accepted.
            rows: rows of the sequence that the target verified.
            params: the head's part of the tree.
            seconds: the sequence's share of the time of draft and verification.
        """
        self.state.keep(accepted)
        given = (rows, params, self.lookup, seconds, self.policy_time.take())
        result = self.state.result(accepted, *given)
        with self.policy_time:
            self.policy.observe(result)
        self.cycles.append(result)
        self._append(result.token_ids)
