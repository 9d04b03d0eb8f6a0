"""A request for answers: how they are decoded, and the events that tell of them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eaglerl.eagle3 import BatchedSequence, DecodingStatistics, Generation, TreePolicy
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.prompt_inputs import all_read
from eaglerl.server.admission import Request
from eaglerl.server.metrics import AnswerMetrics
from eaglerl.server.modes import Mode
from eaglerl.server.service import Service
from eaglerl.server.text import AnswerText, PlacedToken

#: Rows of a prompt that are read in one step: a fraction of a second for a small model on one core.
#: The batch reads as many, and every row of them has the bits that it gets alone: no answer depends
#: on how it was decoded.
PROMPT_ROWS = MOST_EXACT_ROWS


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
        cached_tokens: tokens of the prompt that the first answer did not read again.
        statistics: statistics of drafting.
    """

    completion_tokens: int
    cached_tokens: int
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed."""

    error: Exception


Event = Piece | AnswerEnd | Finished | Failed


class _Answer:
    """One answer from its beginning to its end."""

    def __init__(self, request: CompletionRequest, index: int, measured: AnswerMetrics) -> None:
        self.request = request
        self.index = index
        self.text = request.new_text()
        # Taken for this answer alone; None if the joint policy of the batch decides.
        self.policy: TreePolicy | None = None
        self.continuation: BatchedSequence | Generation | None = None
        self._measured = measured

    def receive(self, kept: Sequence[int], *, beside: int = 0) -> bool:
        """Take new tokens and tell of them; see `Receiver`."""
        continuation = self.continuation
        assert continuation is not None
        if self.request.failure is not None:
            return True
        self._measured.advanced(continuation, len(kept), beside)
        self.text.push(kept, continuation)
        piece = Piece(self.index, *self.text.take())
        if piece.text or piece.logprobs:
            self.request.emit(piece)
        if self.text.finish_reason is None:
            return False
        self.request.end(self, continuation, self.text.finish_reason)
        return True

    def fail(self, error: Exception) -> None:
        """Fail the request."""
        self.request.failure = error


class CompletionRequest(Request):
    """Decodes the answers to a request and emits events as they come, from the engine's thread.

    Answers join the batch, where all requests share the passes. What cannot join it is decoded in
    turns with the batch: a policy that decides within the cycle of one sequence (`FusedPolicy`),
    and everything where there is no batch.
    """

    def __init__(
        self,
        service: Service,
        mode: Mode,
        prompt_ids: Sequence[int],
        emit: Callable[[Event], None],
        *,
        max_new_tokens: int,
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
            max_new_tokens: longest answer.
            answers: number of answers.
            stops: texts that end an answer.
            seed: seed of the first answer; the others' are derived from it.
            sampling: further options of `SpeculativeDecoder.start`.
        """
        super().__init__(tokens=service.reserved(prompt_ids, max_new_tokens), answers=answers)
        self.emit = emit
        self._service = service
        self._mode = mode
        self._prompt_ids = prompt_ids
        self._stops = stops
        self._seed = seed
        self._sampling = sampling | {"max_new_tokens": max_new_tokens}
        self._answers = answers
        # Those that have begun and not ended, and of these the ones with turns of their own.
        self._open: list[_Answer] = []
        self._turns: deque[_Answer] = deque()
        self._done: list[DecodingStatistics] = []
        self._policy_seconds = 0.0
        self._tokens = self._cached_tokens = 0
        self._measured = service.metrics.request(mode.name, len(prompt_ids))

    def new_text(self) -> AnswerText:
        """Return the empty text of an answer."""
        return AnswerText(self._service.tokenizer, self._stops)

    def begin(self) -> None:
        """Begin the next answer, in the batch if it can join that."""
        self._measured.begun()
        index = self._answers - self.unbegun - 1
        answer = _Answer(self, index, self._measured.answer())
        self._open.append(answer)
        options = self._sampling | {"seed": derived_seed(self._seed, index)}
        batch = self._service.batch
        if batch is None or not self._mode.joint:
            answer.policy = self._mode.take()
        if batch is not None and fused_part(answer.policy) is None:
            answer.continuation = batch.start(answer, self._prompt_ids, answer.policy, **options)
            return
        answer.continuation = self._service.decoder.start(
            all_read(self._prompt_ids), answer.policy, **options
        )
        self._turns.append(answer)

    @property
    def ready(self) -> bool:
        """Whether an answer has turns of its own: a completion never waits for its client."""
        return bool(self._turns)

    def advance(self) -> bool:
        """Read a part of the prompt of one answer, or run one cycle of it."""
        answer = self._turns.popleft()
        generation = answer.continuation
        assert isinstance(generation, Generation)
        if generation.read_chunk(PROMPT_ROWS) or not answer.receive(generation.advance()):
            self._turns.append(answer)
        return self.over

    def end(self, answer: _Answer, continuation: BatchedSequence | Generation, reason: str) -> None:
        """Tell of the end of an answer, and of that of all answers after the last one."""
        self._tokens += answer.text.tokens
        if answer.index == 0:
            self._cached_tokens = getattr(continuation, "reused_tokens", 0)
        self._done.append(continuation.statistics)
        self._policy_seconds += continuation.policy_seconds
        self._measured.answered(reason, continuation)
        self._give_back(answer)
        self.running -= 1
        statistics = self._statistics() if self.over else None
        self.emit(AnswerEnd(answer.index, reason, statistics))
        if statistics is not None:
            self._measured.finished()
            self.emit(Finished(self._tokens, self._cached_tokens, statistics))

    def close(self, error: Exception | None) -> None:
        """Give policies, slots and caches back."""
        for answer in [*self._open]:
            self._give_back(answer)
        self._turns.clear()
        if error is not None:
            self._measured.failed(error)
            self.emit(Failed(error))

    def _give_back(self, answer: _Answer) -> None:
        self._open.remove(answer)
        continuation = answer.continuation
        if isinstance(continuation, Generation):
            continuation.close()
        elif continuation is not None and self._service.batch is not None:
            self._service.batch.leave(continuation)
        if answer.policy is not None:
            self._mode.give_back(answer.policy)

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
