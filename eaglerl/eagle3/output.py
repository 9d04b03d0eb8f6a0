"""The output of `generate`: the sequences, with the results and times of their cycles."""

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
        prefill_seconds: time to read the prompt and choose the first token.
        decode_seconds: time of the cycles after that.
        waited_seconds: time spent waiting while other generations of the same target had their
            turn. No other time includes it.
    """

    cycles: tuple[StepResult, ...]
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    waited_seconds: float = 0.0

    @property
    def num_cycles(self) -> int:
        """Number of cycles: passes of the target after the prompt."""
        return len(self.cycles)

    @property
    def seconds(self) -> float:
        """Time of prefill and decoding, without waiting."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, prefill included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per cycle: the accepted drafted tokens and the bonus."""
        if not self.cycles:
            return 0.0
        return sum(cycle.accepted + 1 for cycle in self.cycles) / len(self.cycles)

    @property
    def policy_seconds(self) -> float:
        """Time of the policy over all cycles; see `StepResult`."""
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
    """The part of a `Generation` that `GenerateOutput` reads."""

    @property
    def new_ids(self) -> list[int]:
        """Tokens of the output."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended; None if it has not."""

    @property
    def statistics(self) -> DecodingStatistics:
        """Cycles and times of the sequence."""


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """Result of `SpeculativeDecoder.generate`.

    Attributes:
        sequences: (B, length) int64 on the device of the prompts: each prompt as it was given,
            padding included, then its output. Shorter rows are padded on the right. If all prompts
            have width n, ``sequences[:, n:]`` is the output.
        finish_reasons: why each sequence ended.
        per_sequence: statistics of each sequence.
        new_ids: output of each sequence, the end-of-sequence token included, without padding.
        prompt_lengths: number of tokens that were read of each prompt, without padding.
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
        """Combine the generations of several prompts.

        Args:
            prompts: the prompts.
            generations: one per prompt, each at its end.
            pad_token_id: pads shorter rows.
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
    assert reason is not None, "only sequences that have ended make an output"
    return reason
