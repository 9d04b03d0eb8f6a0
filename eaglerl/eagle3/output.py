"""What `generate` returns: the sequences and what every cycle of them took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from eaglerl.eagle3.policy import StepResult
from eaglerl.eagle3.prompt_inputs import Prompts
from eaglerl.eagle3.stopping import FinishReason


@dataclass(frozen=True, slots=True)
class DecodingStatistics:
    """Cycles and times of one sequence, or of several added up.

    Attributes:
        cycles: result of every cycle, in order.
        new_tokens: tokens of the output, the prompt excluded.
        prefill_seconds: time of reading the prompt, the first token included.
        decode_seconds: time of everything after it.
        waited_seconds: time that passed between, while other generations of the same target had
            their turn; part of none of the others.
    """

    cycles: tuple[StepResult, ...]
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    waited_seconds: float = 0.0

    @property
    def num_cycles(self) -> int:
        """Passes of the target after the prompt."""
        return len(self.cycles)

    @property
    def seconds(self) -> float:
        """Prefill and decoding together."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """All new tokens over all seconds, prefill included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Mean number of tokens that a cycle yields: accepted drafted tokens and the bonus."""
        if not self.cycles:
            return 0.0
        return sum(cycle.accepted + 1 for cycle in self.cycles) / len(self.cycles)

    @property
    def policy_seconds(self) -> float:
        """Time of the policy in all cycles; see `StepResult`."""
        return sum(cycle.policy_seconds for cycle in self.cycles)

    @classmethod
    def total(cls, parts: Iterable[DecodingStatistics]) -> DecodingStatistics:
        """Add up the statistics of several sequences."""
        parts = list(parts)
        return cls(
            cycles=tuple(cycle for part in parts for cycle in part.cycles),
            new_tokens=sum(part.new_tokens for part in parts),
            prefill_seconds=sum(part.prefill_seconds for part in parts),
            decode_seconds=sum(part.decode_seconds for part in parts),
            waited_seconds=sum(part.waited_seconds for part in parts),
        )


class DecodedSequence(Protocol):
    """What `GenerateOutput` reads of a `Generation`."""

    @property
    def new_ids(self) -> list[int]:
        """Tokens of the output."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended."""

    @property
    def statistics(self) -> DecodingStatistics:
        """Its cycles and times."""


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """Result of `SpeculativeDecoder.generate`.

    Attributes:
        sequences: (B, length) int64, each prompt as it was given, padding included, and its output;
            shorter rows are padded on the right. On the device of the prompts. Of prompts of one
            width n, ``sequences[:, n:]`` is the output.
        finish_reasons: why each sequence ended.
        per_sequence: statistics of each sequence.
        new_ids: the output of each sequence, the end-of-sequence token included, without padding.
        prompt_lengths: tokens of each prompt that were read, without padding.
    """

    sequences: torch.Tensor
    finish_reasons: tuple[FinishReason, ...]
    per_sequence: tuple[DecodingStatistics, ...]
    new_ids: tuple[list[int], ...]
    prompt_lengths: tuple[int, ...]

    @classmethod
    def of(
        cls, prompts: Prompts, generations: Sequence[DecodedSequence], pad_token_id: int
    ) -> GenerateOutput:
        """Put the generations of several prompts together.

        Args:
            prompts: the prompts.
            generations: one of each, ended.
            pad_token_id: fills rows up.
        """
        rows = [
            [*prompt.row, *generation.new_ids]
            for prompt, generation in zip(prompts, generations, strict=True)
        ]
        longest = max(map(len, rows))
        rows = [row + [pad_token_id] * (longest - len(row)) for row in rows]
        return cls(
            sequences=torch.tensor(rows, device=prompts.device),
            finish_reasons=tuple(map(_reason_of, generations)),
            per_sequence=tuple(generation.statistics for generation in generations),
            new_ids=tuple(generation.new_ids for generation in generations),
            prompt_lengths=tuple(len(prompt.token_ids) for prompt in prompts),
        )

    @property
    def statistics(self) -> DecodingStatistics:
        """Statistics of all sequences added up."""
        return DecodingStatistics.total(self.per_sequence)


def _reason_of(generation: DecodedSequence) -> FinishReason:
    reason = generation.finish_reason
    assert reason is not None, "an output is made of sequences that have ended"
    return reason
