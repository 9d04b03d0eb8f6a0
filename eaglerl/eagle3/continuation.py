"""A prompt and its continuation so far: the part that all ways of decoding share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from eaglerl.eagle3.logprobs import LogprobRecorder, TokenLogprobs
from eaglerl.eagle3.output import DecodingStatistics
from eaglerl.eagle3.policy import StepResult
from eaglerl.eagle3.stopping import FinishReason, StoppingRules


class Continuation(ABC):
    """The output of one sequence so far, cut where its stopping rules end it.

    Attributes:
        token_ids: prompt and output so far.
        cycles: results of the cycles so far.
        prefill_seconds: time to read the prompt and choose the first token.
        decode_seconds: time of the cycles so far, the policy's included.
    """

    def __init__(
        self, prompt_ids: Sequence[int], rules: StoppingRules, top_logprobs: int | None
    ) -> None:
        self._rules = rules
        self._logprobs = None if top_logprobs is None else LogprobRecorder(top_logprobs)
        self.token_ids = list(prompt_ids)
        self.cycles: list[StepResult] = []
        self.prefill_seconds = self.decode_seconds = 0.0
        self._prompt_length = len(self.token_ids)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended; None if it has not."""
        return self._rules.finish_reason

    @property
    def new_ids(self) -> list[int]:
        """Tokens of the output so far."""
        return self.token_ids[self._prompt_length :]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of `new_ids`, in order; empty without `top_logprobs`."""
        if self._logprobs is None:
            return []
        # The last cycle may have emitted tokens beyond the end of the text.
        return self._logprobs.tokens[: len(self.token_ids) - self._prompt_length]

    @property
    @abstractmethod
    def waited_seconds(self) -> float:
        """Time spent waiting while others had their turn at the target."""

    @property
    def statistics(self) -> DecodingStatistics:
        """Results and times of the cycles so far."""
        return DecodingStatistics(
            cycles=tuple(self.cycles),
            new_tokens=len(self.token_ids) - self._prompt_length,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            waited_seconds=self.waited_seconds,
        )

    @property
    def tokens_left(self) -> int:
        """Most tokens until the rules end the sequence."""
        return self._rules.limit - (len(self.token_ids) - self._prompt_length)

    def _append(self, emitted: Sequence[int]) -> tuple[int, ...]:
        """Append the tokens of a cycle as far as the sequence goes; return those."""
        count = self._rules.accept(self.token_ids, self._prompt_length, emitted)
        kept = tuple(emitted[:count])
        self.token_ids.extend(kept)
        return kept
