"""Prompts that begin in a batch with the options of `generate`."""

from __future__ import annotations

import pytest

from eaglerl.eagle3 import NO_DRAFT, BatchedSequence, DecoderBatch
from eaglerl.eagle3.batch.mixed_policies import MixedPolicies
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies

from .batches import TREE, Deepening, make_decoder, make_model, make_requests


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(make_model())


def finish(batch: DecoderBatch) -> None:
    while batch.sequences:
        batch.step()


def test_every_sequence_has_options_and_a_policy_of_its_own(decoder) -> None:
    requests = make_requests(12, longest=200)
    expected = [
        decoder.generate([r.prompt], NO_DRAFT, seed=r.seed, **r.options).new_ids[0]
        for r in requests
    ]
    choices = [None, "auto", TREE, NO_DRAFT, Deepening()]
    with decoder.start_batch(slots=3) as batch:
        assert isinstance(batch.session.policies, MixedPolicies)
        found: list[BatchedSequence] = []
        for place, request in enumerate(requests):
            while not batch.free_slots:
                batch.step()
            # A policy that cannot fork serves one sequence at a time.
            choice = choices[place % 5] if place < 5 else choices[place % 4]
            found.append(
                batch.start([request.prompt], choice, seed=request.seed, **request.options)
            )
        finish(batch)
    assert [sequence.new_ids for sequence in found] == expected
    assert batch.free_slots == batch.slots == 3


def test_the_batch_decides_for_those_that_bring_no_policy(decoder) -> None:
    with decoder.start_batch(slots=2, policy=TREE) as batch:
        assert isinstance(batch.session.policies, PerSlotPolicies)
        drafted = batch.start([1, 2, 3], max_new_tokens=9)
        plain = batch.start([1, 2, 3], NO_DRAFT, max_new_tokens=9)
        finish(batch)
    assert drafted.new_ids == plain.new_ids
    assert any(cycle.rows > 1 for cycle in drafted.cycles)
    assert all(cycle.rows == 1 for cycle in plain.cycles)


def test_a_text_ends_at_the_longest_length(decoder) -> None:
    with decoder.start_batch(slots=1, max_length=20) as batch:
        sequence = batch.start(list(range(10)), max_new_tokens=50)
        finish(batch)
        assert (len(sequence.token_ids), sequence.finish_reason) == (20, "context")
        with pytest.raises(
            ValueError, match="has 20 tokens; a sequence of this batch has at most 20"
        ):
            batch.start([1] * 20)
        assert batch.free_slots == 1


def test_what_cannot_begin_takes_no_slot(decoder) -> None:
    with decoder.start_batch(slots=1, max_length=50) as batch:
        for arguments, reason in (
            (([[1], [2]],), "a batch's start takes one prompt at a time, got 2"),
            (([1], "fastest"), 'policy must be "auto"'),
            (([99],), "token"),
        ):
            with pytest.raises(ValueError, match=reason):
                batch.start(*arguments)
        first = batch.start([1, 2])
        with pytest.raises(ValueError, match="all 1 slots of this batch are taken"):
            batch.start([1, 2])
        batch.leave(first)
        assert first.left == "it was cancelled"
        second = batch.start([1, 2], max_new_tokens=3)
    assert second.left == "the batch was closed"


def test_prompts_take_turns(decoder) -> None:
    """A short prompt waits for one chunk of each of the others, not for all of theirs."""
    with decoder.start_batch(slots=3) as batch:
        long = [batch.start([index, *[1, 2, 3] * 200], max_new_tokens=5) for index in range(2)]
        short = batch.start([4, 5], max_new_tokens=5)
        for _ in range(3):
            batch.step()
        assert short.new_ids
        # The others' first chunks were read, of 64 rows each.
        assert [sequence.unread for sequence in long] == [601 - 64] * 2
        finish(batch)
    for sequence in (*long, short):
        ids = sequence.token_ids[: -len(sequence.new_ids)]
        expected = decoder.generate([ids], NO_DRAFT, max_new_tokens=5).new_ids[0]
        assert sequence.new_ids == expected
