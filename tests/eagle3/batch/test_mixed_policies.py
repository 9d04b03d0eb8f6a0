"""Sequences that are decided for together, beside others that have policies of their own."""

from __future__ import annotations

import random

import pytest

from eaglerl.eagle3 import NO_DRAFT, TreeParams
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.mixed_policies import MixedPolicies
from eaglerl.policies.batch_auto import BatchAutoPolicy

from .batches import Request, join, make_decoder, make_model, make_requests, run_alone, run_together

SLOTS = 8
REQUESTS = make_requests(longest=130)


class Recording(BatchAutoPolicy):
    """Keeps what it observes."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.observed: list[tuple[set[int], int, float, float]] = []

    def observe(self, results, rows, draft_seconds, verify_seconds) -> None:
        slots = {slot for slot, _ in results}
        self.observed.append((slots, rows, draft_seconds, verify_seconds))
        super().observe(results, rows, draft_seconds, verify_seconds)


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(make_model())


@pytest.fixture
def session(decoder):
    policies = MixedPolicies(Recording(SLOTS))
    return BatchSession(decoder.target, decoder.draft_runner, policies, slots=SLOTS, capacity=1000)


def start(session, decoder, prompt: list[int], policy=None, count: int = 40):
    request = Request(prompt, {"max_new_tokens": count}, None, lambda: NO_DRAFT)
    verifier, rules = decoder.read_options(**request.options).start(prompt, 1000)
    return session.join(prompt, verifier, rules, policy)


def finish(session) -> None:
    while session.sequences:
        for sequence, _ in session.step():
            if sequence.error is not None:
                raise sequence.error


@pytest.mark.parametrize("seed", range(3))
def test_every_text_is_its_own(decoder, session, seed) -> None:
    alone = run_alone(decoder, REQUESTS)
    draw = random.Random(seed)
    shared = {index for index in range(len(REQUESTS)) if draw.random() < 0.5}
    own_join, numbers = session.join, iter(range(len(REQUESTS)))

    def join_some(prompt, verifier, rules, policy):
        left_out = next(numbers) in shared
        return own_join(prompt, verifier, rules, None if left_out else policy)

    session.join = join_some
    found = run_together(session, decoder, REQUESTS, draw)
    assert found.new_ids == alone.new_ids
    assert found.reasons == alone.reasons
    assert session.policies.joint.observed


def test_a_sequence_has_the_policy_that_it_joined_with(decoder, session) -> None:
    tree = TreeParams(4, 1, 3)
    own = join(session, decoder, Request([1, 2, 3], {"max_new_tokens": 30}, None, lambda: tree))
    joint = start(session, decoder, [4, 5, 6])
    finish(session)
    # The last cycles have no room for a whole tree.
    assert {cycle.params for cycle in own.cycles[:-4]} == {tree}
    observed = session.policies.joint.observed
    # The plain slot is not told of; the rows are those of both.
    assert {frozenset(slots) for slots, *_ in observed} == {frozenset([joint.slot])}
    both = observed[0]
    assert both[1] == own.cycles[0].rows + joint.cycles[0].rows
    # The own sequence drafted in the same passes: their time says nothing of the joint drafts.
    assert both[2] == 0.0
    assert both[3] > 0.0


def test_times_of_joint_drafts_are_learned_beside_plain_sequences(decoder, session) -> None:
    own = join(session, decoder, Request([1, 2], {"max_new_tokens": 9}, None, lambda: NO_DRAFT))
    start(session, decoder, [4, 5, 6], count=9)
    finish(session)
    assert own.cycles
    assert all(draft > 0.0 for _, _, draft, _ in session.policies.joint.observed)


def test_trees_of_several_passes_have_no_verification_time(decoder, session) -> None:
    wide = TreeParams(60, 3, 6)
    join(session, decoder, Request([1, 2], {"max_new_tokens": 90}, None, lambda: wide))
    for prompt in ([3], [4], [5], [6], [7]):
        start(session, decoder, prompt, count=90)
    finish(session)
    many = [seconds for _, rows, _, seconds in session.policies.joint.observed if rows > 64]
    few = [seconds for _, rows, _, seconds in session.policies.joint.observed if rows <= 64]
    assert many
    assert few
    assert set(many) == {0.0}
    assert all(few)


def test_slots_change_their_kind(decoder, session) -> None:
    """A slot that had its own policy is the joint policy's afterwards, and the other way round."""
    tree = TreeParams(4, 1, 3)
    for _ in range(3):
        own = join(session, decoder, Request([1, 2], {"max_new_tokens": 9}, None, lambda: tree))
        finish(session)
        joint = start(session, decoder, [1, 2], count=9)
        finish(session)
        assert own.slot == joint.slot
        assert own.new_ids == joint.new_ids
