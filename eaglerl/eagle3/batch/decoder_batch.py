"""Sequences of one decoder that begin and end between the cycles of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, Unpack

from transformers import PreTrainedTokenizerBase

from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.batch.mixed_policies import MixedPolicies
from eaglerl.eagle3.generation_config.generation_options import GenerationOptions
from eaglerl.eagle3.named_policies import PolicyChoice
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.prompt_inputs import AttentionMask, PromptIds
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.verifier import Verifier

#: About how long a step reads prompts before the others go on. On two cores 64 rows behind 5,000
#: tokens take longer.
PROMPT_SECONDS = 0.25
#: What a sequence begins with: its prompt, the policy it asks for, its verifier and its rules.
Beginning = tuple[list[int], TreePolicy, Verifier, StoppingRules]


class DecoderBatch:
    """A batch of a decoder: sequences begin with the options of `generate`, and end, at any time.

    ``with decoder.start_batch(slots=8) as batch:`` ends the sequences that are left. The text of a
    sequence does not depend on the others. All methods may be called from any thread.

    Attributes:
        session: the slots, caches and cycles.
        max_length: tokens of the longest sequence, prompt included; a longer text ends there.
    """

    def __init__(
        self, session: BatchSession, begin: Callable[..., Beginning], max_length: int
    ) -> None:
        """Take a session; `SpeculativeDecoder.start_batch` does."""
        self.session = session
        self.max_length = max_length
        self._begin = begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """Most sequences at once."""
        return self.session.slots

    @property
    def free_slots(self) -> int:
        """Number of sequences that may begin now."""
        return self.session.free_slots

    @property
    def sequences(self) -> tuple[BatchedSequence, ...]:
        """The sequences that have not ended, in the order in which they began."""
        return self.session.sequences

    def start(
        self,
        input_ids: PromptIds | None = None,
        policy: PolicyChoice | None = None,
        *,
        inputs: PromptIds | None = None,
        attention_mask: AttentionMask | None = None,
        seed: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        top_logprobs: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> BatchedSequence:
        """Begin the continuation of one prompt in a free slot.

        Args:
            input_ids: one prompt, in any form that `generate` takes.
            policy: the sequence's own policy or tree; None leaves it to the batch's. "auto" is the
                batch's as well, where that decides for all sequences together.
            inputs: see `SpeculativeDecoder.generate`.
            attention_mask: see `SpeculativeDecoder.generate`.
            seed: see `SpeculativeDecoder.generate`.
            tokenizer: see `SpeculativeDecoder.generate`.
            top_logprobs: see `Generation`.
            options: see `GenerationOptions`.

        Returns:
            The sequence; every `step` extends it, until its `finish_reason` or `error` is set.

        Raises:
            ValueError: no slot is free, the prompt has `max_length` tokens or more, the policy is a
                `FusedPolicy`, or see `SpeculativeDecoder.generate`.
            TypeError: see `SpeculativeDecoder.generate`.
        """
        mixed = isinstance(self.session.policies, MixedPolicies)
        joint = policy is None or (mixed and isinstance(policy, str) and policy == "auto")
        prompt_ids, chosen, verifier, rules = self._begin(
            "a batch's start",
            input_ids,
            policy,
            inputs=inputs,
            attention_mask=attention_mask,
            seed=seed,
            tokenizer=tokenizer,
            longest=self.max_length,
            **options,
        )
        if len(prompt_ids) >= self.max_length:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens; a sequence of this batch has at most "
                f"{self.max_length}, and one of them is new"
            )
        own = None if joint else chosen
        return self.session.join(prompt_ids, verifier, rules, own, top_logprobs=top_logprobs)

    def step(self) -> list[tuple[BatchedSequence, tuple[int, ...]]]:
        """Read a part of the prompts and run one cycle; see `BatchSession.step`."""
        return self.session.step()

    def leave(self, sequence: BatchedSequence, reason: str = "it was cancelled") -> None:
        """End a sequence and free its slot; nothing happens if it has ended."""
        self.session.leave(sequence, reason)

    def close(self) -> None:
        """End all sequences."""
        self.session.close()
