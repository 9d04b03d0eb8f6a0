"""Random calls of a batch, by hypothesis: texts and slots are right after every one of them."""

from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from eaglerl.eagle3 import NO_DRAFT

from .batches import join as join_request
from .batches import make_decoder, make_model, make_requests, new_session

REQUESTS = make_requests(longest=200)


@cache
def decoder():
    return make_decoder(make_model())


@cache
def text_of(index: int) -> list[int]:
    """The whole text of a request, decoded alone and plainly."""
    request = REQUESTS[index]
    output = decoder().generate([request.prompt], NO_DRAFT, seed=request.seed, **request.options)
    return output.new_ids[0]


class Batch(RuleBasedStateMachine):
    """A model of the batch: which request each sequence belongs to, and what became of it."""

    joined = Bundle("joined")

    @initialize(slots=st.integers(1, 4), prompt_rows=st.sampled_from([None, 200]))
    def begin(self, slots: int, prompt_rows: int | None) -> None:
        self.slots = slots
        self.session = new_session(decoder(), slots, prompt_rows=prompt_rows)
        self.requests: dict[object, int] = {}
        self.live: set[object] = set()
        self.lengths: dict[object, int] = {}

    def full(self) -> bool:
        return len(self.live) == self.slots

    @precondition(lambda self: not self.full())
    @rule(target=joined, index=st.integers(0, len(REQUESTS) - 1))
    def join(self, index: int):
        sequence = join_request(self.session, decoder(), REQUESTS[index])
        assert sequence.slot not in {other.slot for other in self.live}
        self.requests[sequence] = index
        self.live.add(sequence)
        return sequence

    @precondition(full)
    @rule(index=st.integers(0, len(REQUESTS) - 1))
    def join_when_full(self, index: int) -> None:
        with pytest.raises(ValueError, match="slots of this batch are taken"):
            join_request(self.session, decoder(), REQUESTS[index])

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            before = {sequence: len(sequence.new_ids) for sequence in self.live}
            for sequence, tokens in self.session.step():
                assert sequence.new_ids[before[sequence] :] == list(tokens)
                before[sequence] += len(tokens)
                if sequence.ended:
                    self.live.remove(sequence)
            assert all(len(s.new_ids) == count for s, count in before.items())

    @rule(sequence=consumes(joined))
    def leave(self, sequence) -> None:
        before = sequence.left
        self.session.leave(sequence)
        assert sequence.left == ("it was cancelled" if sequence in self.live else before)
        self.live.discard(sequence)

    @rule()
    def close(self) -> None:
        self.session.close()
        self.live.clear()

    @invariant()
    def texts_are_right(self) -> None:
        for sequence, index in self.requests.items():
            text = text_of(index)
            assert sequence.error is None
            assert sequence.new_ids == text[: len(sequence.new_ids)]
            if sequence.finish_reason is not None:
                assert sequence.new_ids == text
            assert sequence.ended == (sequence not in self.live)

    @invariant()
    def slots_are_right(self) -> None:
        session = self.session
        assert set(session.sequences) == self.live
        assert session.free_slots == self.slots - len(self.live)
        taken = {sequence.slot for sequence in self.live}
        assert set(session.policies._slots) == taken
        for slot in range(self.slots):
            if slot not in taken:
                assert session.cache.lengths[slot] == session.draft.lengths[slot] == 0
        for sequence in self.live:
            read = len(sequence.token_ids) - 1 if sequence.new_ids else 0
            if sequence.new_ids:
                assert session.cache.lengths[sequence.slot] == read

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.close()


TestBatch = Batch.TestCase
TestBatch.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
