"""The task that decodes the answers of one request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eaglerl.eagle3 import DecodingStatistics, Generation, TreePolicy
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.server.engine import Task
from eaglerl.server.modes import Mode
from eaglerl.server.service import Service
from eaglerl.server.text import AnswerText, PlacedToken

#: Rows of the prompt that are read in one step: a fraction of a second for a small model on one
#: core. Larger chunks are hardly faster, because matrix products reach their peak with fewer rows.
PROMPT_ROWS = 128


@dataclass(frozen=True, slots=True)
class Piece:
    """A new part of an answer's text.

    Attributes:
        index: index of the answer.
        text: the text; empty if its tokens have none yet.
        logprobs: log-probabilities of the tokens that begin in it, with their offsets in the
            answer's text, if they were asked for.
    """

    index: int
    text: str
    logprobs: tuple[PlacedToken, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The end of an answer.

    Attributes:
        index: index of the answer.
        reason: "stop" or "length".
        speculative: statistics of drafting, with the last answer only.
    """

    index: int
    reason: str
    speculative: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of all answers; follows the last `AnswerEnd`.

    Attributes:
        completion_tokens: tokens of all answers, including those of a stop text or an end token.
        statistics: statistics of drafting.
    """

    completion_tokens: int
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed."""

    error: Exception


Event = Piece | AnswerEnd | Finished | Failed


@dataclass
class _Answer:
    """The answer that is being decoded."""

    index: int
    policy: TreePolicy
    generation: Generation
    text: AnswerText


class CompletionTask(Task):
    """Decodes the answers of a request one after another, and emits events as they come.

    The events are emitted from the engine's thread.
    """

    def __init__(
        self,
        service: Service,
        mode: Mode,
        prompt_ids: Sequence[int],
        emit: Callable[[Event], None],
        *,
        answers: int = 1,
        stops: Sequence[str] = (),
        seed: int | None = None,
        **sampling: Any,
    ) -> None:
        """Set up.

        Args:
            service: the service with the decoder.
            mode: mode of drafting.
            prompt_ids: token ids of the prompt.
            emit: called with every event; the last one is `Finished` or `Failed`.
            answers: number of answers.
            stops: texts that end an answer.
            seed: seed of the first answer; the others' are derived from it.
            sampling: options of `SpeculativeDecoder.start`.
        """
        self._service = service
        self._mode = mode
        self._prompt_ids = prompt_ids
        self._emit = emit
        self._answers = answers
        self._stops = stops
        self._seed = seed
        self._sampling = sampling
        self._answer: _Answer | None = None
        self._done: list[DecodingStatistics] = []
        self._policy_seconds = 0.0
        self._tokens = 0
        self._measured = service.metrics.request(mode.name, len(prompt_ids))

    @property
    def ready(self) -> bool:
        """Always true: a completion never waits for its client."""
        return True

    def advance(self) -> bool:
        """Read a part of the prompt or run one cycle; return whether that was the last step."""
        answer = self._answer or self._begin()
        if answer.generation.read_chunk(PROMPT_ROWS):
            return False
        kept = answer.generation.advance()
        self._measured.advanced(answer.generation, len(kept))
        answer.text.push(kept, answer.generation)
        piece = Piece(answer.index, *answer.text.take())
        if piece.text or piece.logprobs:
            self._emit(piece)
        if answer.text.finish_reason is None:
            return False
        return self._end(answer)

    def close(self, error: Exception | None) -> None:
        """Give policy and caches back."""
        self._give_back()
        if error is not None:
            self._measured.failed(error)
            self._emit(Failed(error))

    def _begin(self) -> _Answer:
        self._measured.begun()
        index = len(self._done)
        decoder, policy = self._service.decoder, self._mode.take()
        seed = derived_seed(self._seed, index)
        generation = decoder.start(all_read(self._prompt_ids), policy, seed=seed, **self._sampling)
        text = AnswerText(decoder.tokenizer, self._stops)
        self._answer = _Answer(index, policy, generation, text)
        return self._answer

    def _end(self, answer: _Answer) -> bool:
        reason = answer.text.finish_reason
        assert reason is not None
        self._tokens += answer.text.tokens
        self._done.append(answer.generation.statistics)
        self._policy_seconds += answer.generation.policy_seconds
        self._measured.answered(reason, answer.generation)
        self._give_back()
        last = len(self._done) == self._answers
        statistics = self._statistics() if last else None
        self._emit(AnswerEnd(answer.index, reason, statistics))
        if statistics is not None:
            self._measured.finished()
            self._emit(Finished(self._tokens, statistics))
        return last

    def _give_back(self) -> None:
        if self._answer is not None:
            self._answer.generation.close()
            self._mode.give_back(self._answer.policy)
        self._answer = None

    def _statistics(self) -> dict[str, Any]:
        statistics = DecodingStatistics.total(self._done)
        cycles = statistics.cycles
        return {
            "mode": self._mode.name,
            "cycles": len(cycles),
            "mean_acceptance_length": statistics.mean_acceptance_length,
            "verified_rows": sum(cycle.rows for cycle in cycles),
            "drafted_tokens": sum(cycle.rows - 1 for cycle in cycles),
            "accepted_tokens": sum(cycle.accepted for cycle in cycles),
            "lookup_accepted_tokens": sum(cycle.lookup_accepted for cycle in cycles),
            "tokens_per_second": statistics.tokens_per_second,
            "queue_seconds": self._measured.queue_seconds,
            "prefill_seconds": statistics.prefill_seconds,
            "decode_seconds": statistics.decode_seconds,
            "draft_seconds": sum(cycle.draft_seconds for cycle in cycles),
            "verify_seconds": sum(cycle.verify_seconds for cycle in cycles),
            "policy_seconds": self._policy_seconds,
        }


def derived_seed(seed: int | None, index: int) -> int | None:
    """Derive the seed of one of several answers; the first has the request's own.

    Args:
        seed: seed of the request; None for none.
        index: index of the answer.
    """
    if seed is None or index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
