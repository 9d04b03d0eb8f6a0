"""The runner of a mode that decodes several questions at once, and times what each waits for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from eaglerl.eagle3.batch.batch_policy import BatchPolicy
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.sampling import seeded_generator
from eaglerl.eagle3.session_factory import TREE_ROOM
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.verifier import Verifier
from eaglerl.evaluation.modes.runners import Decoding, cycles_of
from eaglerl.evaluation.modes.split_policies import SplitPolicies
from eaglerl.evaluation.questions.question_files import Question, chat_ids
from eaglerl.evaluation.results.records import Turn


class _Clock:
    """A clock that can be stopped, for what is no part of decoding."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def now(self) -> float:
        return time.perf_counter() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._stopped += time.perf_counter() - began


@dataclass(eq=False)
class _Answer:
    """One answer of a conversation, from its joining to its end.

    Attributes:
        question: the conversation.
        turn: index of the answer.
        prompt: token ids.
        joined: when it joined the batch.
        arrivals: when its tokens came: a time per step with new ones.
        sequence: its sequence; None before it joins.
    """

    question: Question
    turn: int
    prompt: list[int]
    joined: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    sequence: BatchedSequence | None = None

    def ended(self) -> BatchedSequence:
        assert self.sequence is not None, "only answers that joined have ended"
        return self.sequence

    def gaps(self) -> tuple[float, ...]:
        """Return, for every cycle, the time since the tokens before.

        A first cycle in the step that read the prompt's end comes with the first token.
        """
        cycles = len(self.ended().cycles)
        times = [self.arrivals[0]] * (cycles + 1 - len(self.arrivals)) + self.arrivals
        return tuple(b - a for a, b in pairwise(times))

    def to_turn(self, scale: float) -> Turn:
        """Return the record; `scale` turns seconds of cycles into seconds on the clock."""
        sequence = self.ended()
        statistics = sequence.statistics
        cycles = replace(cycles_of(statistics.cycles, None), gap_seconds=self.gaps())
        return Turn(
            prompt_tokens=len(self.prompt),
            output_ids=tuple(sequence.new_ids),
            finish_reason=str(sequence.finish_reason),
            prefill_seconds=statistics.prefill_seconds,
            decode_seconds=statistics.decode_seconds * scale,
            cycles=cycles,
            first_token_seconds=self.arrivals[0] - self.joined,
        )


class BatchRunner:
    """Runner of one mode with several questions at once.

    Every mode has a batch of its own, whose slots take memory only while sequences are in them.

    Attributes:
        slots: questions at once.
    """

    def __init__(
        self, decoder: SpeculativeDecoder, slots: int, longest: int, policies: BatchPolicy
    ) -> None:
        """Open the batch.

        Args:
            decoder: the decoder.
            slots: questions at once.
            longest: tokens of the longest conversation, answers included.
            policies: decides for all of them.

        Raises:
            ValueError: the target is not on the CPU.
        """
        self._decoder = decoder
        self.slots = slots
        self._policies = policies
        self._session = BatchSession(
            decoder.target,
            decoder.draft_runner,
            policies,
            slots=slots,
            capacity=longest + TREE_ROOM,
        )

    def answer(self, questions: Sequence[Question], decoding: Decoding, seed: int) -> Answers:
        """Answer conversations, each as soon as there is a slot for it.

        A slot is that of a client, who asks the next turn, or the next question, when an answer has
        ended. The clock stands still while prompts are encoded and options read, which the times
        of one question after another leave out, too.

        Args:
            questions: the conversations.
            decoding: settings of decoding.
            seed: seed of the first turn; each later turn's is larger by one.

        Raises:
            Exception: what ended a sequence, and with it all others.
        """
        group = _Group(self._decoder, questions, decoding, seed)
        session = self._session
        try:
            while group.waiting or session.sequences:
                while group.waiting and session.free_slots:
                    answer = group.waiting.popleft()
                    if isinstance(self._policies, SplitPolicies):
                        self._policies.split = answer.question.split
                    group.join(session, answer)
                group.step(session)
        finally:
            session.close()
        return group.answers()

    def cache_counts(self) -> None:
        """Return None: of a batch, cached decisions are not counted."""


#: The answers of every question, by its id.
Answers = Mapping[str, list[Turn]]


class _Group:
    """Conversations that are answered together, as far as they have come."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        questions: Sequence[Question],
        decoding: Decoding,
        seed: int,
    ) -> None:
        self._decoder, self._decoding, self._seed = decoder, decoding, seed
        # Transformers' own types allow anything.
        self._tokenizer: Any = decoder.tokenizer
        self._done: dict[str, list[_Answer]] = {question.id: [] for question in questions}
        self._at_work: dict[BatchedSequence, _Answer] = {}
        self.waiting = deque(self._next(question) for question in questions)
        self._clock = _Clock()
        self._began = self._clock.now()

    def _next(self, question: Question) -> _Answer:
        """Return the next answer of a conversation, with its prompt."""
        texts = [
            self._tokenizer.decode(one.ended().new_ids, skip_special_tokens=True)
            for one in self._done[question.id]
        ]
        turn = len(texts)
        return _Answer(question, turn, chat_ids(self._tokenizer, question.turns[: turn + 1], texts))

    def join(self, session: BatchSession, answer: _Answer) -> None:
        """Let an answer begin."""
        with self._clock.stopped():
            verifier, rules = self._rules(answer)
        answer.joined = self._clock.now()
        answer.sequence = session.join(answer.prompt, verifier, rules)
        self._at_work[answer.sequence] = answer

    def _rules(self, answer: _Answer) -> tuple[Verifier, StoppingRules]:
        target, decoding = self._decoder.target, self._decoding
        settings = self._decoder.read_options(
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            # Overrides the target's generation config, so that all runners sample alike.
            top_k=0,
        )
        return settings.start(
            answer.prompt,
            target.max_positions - len(answer.prompt),
            generator=seeded_generator(self._seed + answer.turn, target.device),
            tokenizer=self._tokenizer,
        )

    def step(self, session: BatchSession) -> None:
        """Run one cycle; a conversation whose answer has ended waits with its next turn."""
        changed = session.step()
        now = self._clock.now()
        for sequence, new in changed:
            if sequence.error is not None:
                raise sequence.error
            answer = self._at_work[sequence]
            if new:
                answer.arrivals.append(now)
            if sequence.ended:
                del self._at_work[sequence]
                self._done[answer.question.id].append(answer)
                if answer.turn + 1 < len(answer.question.turns):
                    with self._clock.stopped():
                        self.waiting.appendleft(self._next(answer.question))

    def answers(self) -> Answers:
        """Return all answers, whose seconds add up to the time on the clock."""
        seconds = self._clock.now() - self._began
        ended = [one.ended().statistics for each in self._done.values() for one in each]
        prefills = sum(one.prefill_seconds for one in ended)
        cycles = sum(one.decode_seconds for one in ended)
        scale = max(seconds - prefills, 0.0) / cycles if cycles else 1.0
        return {
            name: [answer.to_turn(scale) for answer in each] for name, each in self._done.items()
        }
