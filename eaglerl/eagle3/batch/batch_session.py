"""The decoding of several sequences at once, one cycle at a time."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence

from eaglerl.eagle3.batch.batch_cycle import BatchCycle
from eaglerl.eagle3.batch.batch_policy import BatchPolicy
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.batch.mixed_policies import MixedPolicies
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.batch.session_prefixes import SessionPrefixes
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.policy_use import use_verifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.thread_limit import begin_cycle, end_cycle
from eaglerl.eagle3.verifier import Verifier


class BatchSession:
    """Slots for sequences of one target, which join and leave between cycles.

    A cycle extends all sequences: their drafts share the head's passes, and their trees share the
    target's. A sequence's text does not depend on the others. One that fails (NaN in its logits, a
    policy, processor or criterion that raises, no room in its slot) ends alone, with its `error`;
    an exception in a shared pass ends the sequences of that pass.

    All methods may be called from any thread; they wait for the target's turn. During a cycle, on
    its own thread, only `leave` may be called, and it takes effect at the cycle's end.

    Attributes:
        policies: decides for all slots.
        cache: the target's KV cache.
        draft: the draft's runner with its cache; None without a draft.
        prompt_rows: most rows of prompts that one `step` reads.
        prompt_seconds: about how long reading them may take; None for no bound.
        prefixes: rows of texts that were read before; None if none are kept.
    """

    def __init__(
        self,
        target: TargetModel,
        draft_runner: CachedDraft | None,
        policies: BatchPolicy,
        *,
        slots: int,
        capacity: int,
        prompt_rows: int | None = None,
        prompt_seconds: float | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        """Allocate the caches of all slots.

        Args:
            target: the target, on the CPU.
            draft_runner: a runner of the draft head, whose weights are shared; None without a head.
            policies: decides for all slots.
            slots: most sequences at once.
            capacity: rows per slot: a sequence, prompt included, and the tree of its next cycle.
                Where the tree does not fit, a cycle emits one token; where the sequence has no row
                left, it fails.
            prompt_rows: most rows of prompts that one `step` reads; the target's `chunk_size` if
                None. Prompts are read in chunks of this many rows, at most `chunk_size`.
            prompt_seconds: about how long a step may read prompts; a chunk has fewer rows if the
                one before took longer, as behind a long text. It needs small `prompt_rows`, too.
            prefix_tokens: most tokens whose rows are kept when their sequence has ended, for
                prompts that begin with them; 0 for none. The text is the same. It needs
                `prompt_rows` of at most `MOST_EXACT_ROWS`, up to which a row does not depend on
                how a prompt is divided.

        Raises:
            ValueError: the target is not on the CPU; `slots`, `capacity` or `prompt_rows` is
                less than 1; `prompt_seconds` is not positive; or chunks are to be bounded by time,
                or prefixes kept, with larger `prompt_rows` or a target whose rows depend on how a
                prompt is divided.
        """
        if target.device.type != "cpu":
            raise ValueError(f"a batch decodes on the CPU, the target is on {target.device}")
        self.prompt_rows = target.chunk_size if prompt_rows is None else prompt_rows
        if self.prompt_rows < 1:
            raise ValueError(f"prompt_rows must be at least 1, got {prompt_rows}")
        if not target.mixes_slots:
            warnings.warn(
                f"a {type(target).__name__} takes the tree of one sequence per pass: the batch "
                "verifies them one after another, which is slower",
                stacklevel=2,
            )
        exact = target.mixes_slots and self.prompt_rows <= MOST_EXACT_ROWS
        if prompt_seconds is not None and not (exact and prompt_seconds > 0):
            raise ValueError(
                f"prompt_seconds must be positive, and None for a {type(target).__name__} with "
                f"prompt_rows={self.prompt_rows}, got {prompt_seconds}"
            )
        self.prompt_seconds = prompt_seconds
        if prefix_tokens and not exact:
            raise ValueError(
                f"prefix_tokens must be 0 for a {type(target).__name__} with "
                f"prompt_rows={self.prompt_rows}; prefixes are kept where prompts are read by a "
                f"target that mixes slots, in chunks of at most {MOST_EXACT_ROWS}"
            )
        self.policies = policies
        self.cache = target.new_cache(capacity, slots)
        self.draft = None if draft_runner is None else draft_runner.with_own_cache(capacity, slots)
        self.prefixes: SessionPrefixes | None = None
        if prefix_tokens:
            width = len(target.feature_layers) * target.hidden_size
            self.prefixes = SessionPrefixes(prefix_tokens, self.cache, self.draft, width)
        self._target = target
        self._cycle = BatchCycle(target, self.draft, policies, self.cache)
        # In the order in which they joined.
        self._sequences: list[BatchedSequence] = []
        # Those whose prompts are not read, the one whose turn it is first.
        self._readers: deque[BatchedSequence] = deque()
        self._end_uses: dict[int, Callable[[], None]] = {}
        self._at_work = False

    @property
    def slots(self) -> int:
        """Most sequences at once."""
        return self.cache.slots

    @property
    def capacity(self) -> int:
        """Rows per slot."""
        return self.cache.capacity

    @property
    def sequences(self) -> tuple[BatchedSequence, ...]:
        """The sequences that have not ended, in the order in which they joined."""
        return tuple(self._sequences)

    @property
    def free_slots(self) -> int:
        """Number of sequences that may join."""
        return self.slots - len(self._sequences)

    def join(
        self,
        prompt_ids: Sequence[int],
        verifier: Verifier,
        rules: StoppingRules,
        policy: TreePolicy | None = None,
        *,
        top_logprobs: int | None = None,
    ) -> BatchedSequence:
        """Give a sequence a slot; `step` reads its prompt and decodes.

        Args:
            prompt_ids: at least one token id.
            verifier: greedy or sampling, for this sequence alone if it reads the text.
            rules: decide when the sequence ends.
            policy: the sequence's own policy, where `policies` are `PerSlotPolicies` or
                `MixedPolicies`.
            top_logprobs: see `Generation`.

        Returns:
            The sequence, which every `step` extends.

        Raises:
            ValueError: all slots are taken, the prompt is empty or does not fit a slot, another
                sequence uses the verifier or the policy, `policies` take no policy of a sequence,
                or a cycle is running.
        """
        with self._target.turns as waited:
            self._check_idle()
            if not prompt_ids:
                raise ValueError("prompt_ids must hold at least one token")
            # The root of the next tree needs a row, too.
            if len(prompt_ids) >= self.capacity:
                raise ValueError(
                    f"the prompt has {len(prompt_ids)} tokens; a slot of this batch has room for "
                    f"{self.capacity - 1}"
                )
            taken = {sequence.slot for sequence in self._sequences}
            slot = next((slot for slot in range(self.slots) if slot not in taken), None)
            if slot is None:
                raise ValueError(f"all {self.slots} slots of this batch are taken")
            sequence = BatchedSequence(
                slot,
                prompt_ids,
                verifier,
                rules,
                drafts=self.draft is not None,
                top_logprobs=top_logprobs,
            )
            end_use = use_verifier(verifier)
            try:
                verifier.begin(prompt_ids)
                self._join_policy(slot, policy)
            except BaseException:
                end_use()
                raise
            if self.prefixes is not None:
                self.prefixes.reuse(sequence)
            sequence.wait(waited)
            self._end_uses[slot] = end_use
            self._sequences.append(sequence)
            self._readers.append(sequence)
            return sequence

    def step(self) -> list[tuple[BatchedSequence, tuple[int, ...]]]:
        """Read up to `prompt_rows` rows of prompts, then run one cycle over all that are read.

        Returns:
            The sequences that have ended or have new tokens, in the order in which they joined,
            with those tokens. A sequence that ends in this step has its `finish_reason` or `error`
            set, and its slot is free.

        Raises:
            ValueError: a cycle is running on this thread.
        """
        with self._target.turns as waited:
            self._check_idle()
            for sequence in self._sequences:
                sequence.wait(waited)
            stepped = self.sequences
            new: dict[BatchedSequence, tuple[int, ...]] = {}
            self._at_work = True
            try:
                begin_cycle()
                self._read_prompts(new)
                self._run_cycle(new)
            except BaseException as error:
                for sequence in self._sequences:
                    sequence.fail(error)
                raise
            finally:
                end_cycle()
                self._at_work = False
                self._settle()
            return [
                (sequence, new.get(sequence, ()))
                for sequence in stepped
                if sequence.ended or sequence in new
            ]

    def leave(self, sequence: BatchedSequence, reason: str = "it was cancelled") -> None:
        """End a sequence and free its slot; nothing happens if it has ended.

        A call during a cycle, as from a policy, takes effect at the cycle's end.
        """
        with self._target.turns:
            if sequence in self._sequences and not sequence.ended:
                sequence.leave(reason)
                if not self._at_work:
                    self._settle()

    def close(self) -> None:
        """End all sequences."""
        for sequence in self.sequences:
            self.leave(sequence, "the batch was closed")

    def _check_idle(self) -> None:
        if self._at_work:
            raise ValueError("this batch is in the middle of a cycle, which has to end first")

    def _join_policy(self, slot: int, policy: TreePolicy | None) -> None:
        if policy is None:
            self.policies.join(slot)
        elif isinstance(self.policies, PerSlotPolicies | MixedPolicies):
            self.policies.join(slot, policy)
        else:
            raise ValueError(
                "policy must be None: the policy of this batch decides for all sequences together"
            )

    def _read_prompts(self, new: dict[BatchedSequence, tuple[int, ...]]) -> None:
        # Chunks begin where the prompt alone says, whatever was read before it in this step; or, if
        # their time is bounded, anywhere, which changes no bit of their rows.
        chunk, left = min(self._target.chunk_size, self.prompt_rows), self.prompt_rows
        bound, started = self.prompt_seconds, time.perf_counter()
        while self._readers and (rows := self._readers[0].next_chunk(chunk, bound)) <= left:
            # The prompts take turns, so that a long one holds up no other by more than a chunk.
            sequence = self._readers.popleft()
            if sequence.ended:
                continue
            left -= rows
            try:
                if first := sequence.read_chunk(self._target, self.cache, rows):
                    new[sequence] = first
                elif self.draft is not None:
                    sequence.draft_ahead(self.draft)
                self._keep_prefix(sequence)
            except Exception as error:
                sequence.fail(error)
            if sequence.unread and not sequence.ended:
                self._readers.append(sequence)
            # Another chunk may take as long as this one.
            if bound is not None and time.perf_counter() - started > bound / 2:
                break

    def _run_cycle(self, new: dict[BatchedSequence, tuple[int, ...]]) -> None:
        ready = [s for s in self._sequences if not s.ended and not s.unread]
        if not ready:
            return
        started = time.perf_counter()
        shares = self._cycle.run(ready)
        seconds = time.perf_counter() - started
        # What is left is mostly the policy's time, which is divided evenly as well.
        rest = (seconds - sum(share.seconds for share in shares)) / len(ready)
        for sequence, share in zip(ready, shares, strict=True):
            sequence.decode_seconds += share.seconds + rest
            if share.result is None:
                continue
            try:
                kept = sequence.add_cycle(share.result)
                if sequence.ended:
                    self._keep_prefix(sequence)
            except Exception as error:
                sequence.fail(error)
            else:
                new[sequence] = (*new.get(sequence, ()), *kept)

    def _keep_prefix(self, sequence: BatchedSequence) -> None:
        if self.prefixes is not None:
            self.prefixes.keep(sequence)

    def _settle(self) -> None:
        """Free the slots of the sequences that have ended."""
        for sequence in [s for s in self._sequences if s.ended]:
            self._sequences.remove(sequence)
            if sequence in self._readers:
                self._readers.remove(sequence)
            slot = sequence.slot
            sequence.let_go()
            self._end_uses.pop(slot)()
            # Zeros: a NaN of a failed sequence would spread where its weight is 0.
            self.cache.release(slot)
            if self.draft is not None:
                self.draft.cache.release(slot)
            self.policies.leave(slot)
