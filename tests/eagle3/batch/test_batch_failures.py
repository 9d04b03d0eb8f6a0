"""A slot that fails, or leaves, does so alone; its slot serves the next sequence as if new."""

import random

import pytest
import torch
from transformers import LogitsProcessorList

from eaglerl.eagle3 import ConstantPolicy, DraftPlan, TreeParams
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.policy_use import _IN_USE
from eaglerl.eagle3.sampling import GreedyVerifier, ProcessingVerifier, SamplingVerifier
from eaglerl.eagle3.stopping import StoppingRules

from .batches import (
    POLICIES,
    TREE,
    Deepening,
    Halving,
    by_transformers,
    join,
    make_decoder,
    make_model,
    make_requests,
    new_session,
    run_alone,
    run_together,
)

REQUESTS = make_requests(longest=200)
OTHERS = REQUESTS[:5]
PLAIN, TREES = ConstantPolicy(DraftPlan()), ConstantPolicy(TREE)
CHAIN = ConstantPolicy(TreeParams(4, 2, 1))


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(make_model())


@pytest.fixture(scope="module")
def alone(decoder):
    return run_alone(decoder, REQUESTS)


def rules(limit: int = 60, **arguments) -> StoppingRules:
    return StoppingRules(eos_token_ids=None, max_new_tokens=limit, room=1000, **arguments)


def check_slots_are_as_new(session, decoder, alone) -> None:
    """Nothing is in use, and all requests still get their texts."""
    assert session.free_slots == session.slots
    assert session.cache.lengths == session.draft.lengths == [0] * session.slots
    assert session.policies._slots == {}
    run_narrow_beside_wide(session)
    found = run_together(session, decoder, REQUESTS, random.Random(3))
    assert found.new_ids == alone.new_ids


def run_narrow_beside_wide(session) -> None:
    """Every slot drafts a chain beside trees, whose passes reach behind the chain's own rows."""
    for policies in ((CHAIN, TREES), (TREES, CHAIN)):
        sequences = [
            session.join([slot], GreedyVerifier(), rules(12), policies[slot % 2])
            for slot in range(session.slots)
        ]
        assert [s.slot for s in sequences] == list(range(session.slots))
        while session.sequences:
            session.step()
        assert [s.error for s in sequences] == [None] * session.slots


class Raising:
    """A processor, or a criterion, that raises at its nth call."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, ids, scores):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("a processor is broken")
        return scores if scores is not None else torch.zeros(1, dtype=torch.bool)


class Broken(Halving):
    """A staged policy whose method of a given name raises in the third cycle."""

    def __init__(self, name: str) -> None:
        self.cycles = 0
        self.name = name

    def __getattribute__(self, name: str):
        if name == object.__getattribute__(self, "__dict__").get("name") and self.cycles > 2:

            def fail(*_):
                raise RuntimeError(f"{name} is broken")

            return fail
        return object.__getattribute__(self, name)

    def choose(self, state) -> TreeParams:
        self.cycles += 1
        return TreeParams(8, 2, 3)


class BrokenChoice(Deepening):
    def choose(self, state):
        raise RuntimeError("choose is broken")


class WrongTree(Deepening):
    def choose(self, state) -> TreeParams:
        return TreeParams(30, 1, 13)


def poison(cache, slot: int) -> None:
    cache.data[slot] = torch.nan


def greedy_with(policy):
    return lambda session: session.join([1, 2, 3], GreedyVerifier(), rules(), policy)


def processing(calls: int):
    def begin(session):
        processors = LogitsProcessorList([Raising(calls)])
        verifier = ProcessingVerifier(processors, do_sample=False)
        return session.join([1, 2, 3], verifier, rules(), ConstantPolicy(TREE))

    return begin


def stopping(calls: int):
    return lambda session: session.join(
        [1, 2, 3], GreedyVerifier(), rules(criteria=[Raising(calls)]), ConstantPolicy(TREE)
    )


FAILURES = {
    "processor at the prompt": (processing(0), None, "a processor is broken"),
    "processor": (processing(4), None, "a processor is broken"),
    "criterion": (stopping(3), None, "a processor is broken"),
    "unknown token": (
        lambda session: session.join([1, 99], GreedyVerifier(), rules()),
        None,
        "token_ids",
    ),
    "choose": (greedy_with(BrokenChoice()), None, "choose is broken"),
    "wrong tree": (greedy_with(WrongTree()), None, "draft's vocabulary"),
    **{
        name: (lambda session, name=name: greedy_with(Broken(name))(session), None, f"{name} is")
        for name in ("should_continue", "choose_total_tokens", "observe")
    },
    "NaN of the target": (
        greedy_with(PLAIN),
        lambda session, slot: poison(session.cache, slot),
        "hold NaN",
    ),
    "NaN while sampling": (
        lambda session: session.join([1], SamplingVerifier(1.0, 1.0, 0), rules(), TREES),
        lambda session, slot: poison(session.cache, slot),
        "",
    ),
    "NaN of the draft": (
        greedy_with(TREES),
        lambda session, slot: poison(session.draft.cache, slot),
        "not a number",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_slot_that_fails_fails_alone(decoder, alone, name) -> None:
    begin, harm, message = FAILURES[name]
    session = new_session(decoder, 6)
    others = [join(session, decoder, request) for request in OTHERS[:2]]
    failing = begin(session)
    others += [join(session, decoder, request) for request in OTHERS[2:]]
    steps = 0
    while session.sequences:
        told = dict(session.step())
        if failing.error is not None and steps >= 0:
            assert failing in told
            assert session.free_slots >= 1
            steps = -1000
        steps += 1
        if steps == 2 and harm is not None:
            harm(session, failing.slot)
    assert message in str(failing.error)
    assert failing.finish_reason is None
    assert [s.error for s in others] == [None] * 5
    assert [s.new_ids for s in others] == alone.new_ids[:5]
    check_slots_are_as_new(session, decoder, alone)


def test_a_full_context_ends_one_sequence(decoder, alone) -> None:
    session = new_session(decoder, 6, capacity=260)
    request = next(r for r in REQUESTS if len(r.prompt) == 200 and r.greedy)
    prompt = request.prompt
    policy = ConstantPolicy(TreeParams(20, 2, 4))
    full = session.join(prompt, GreedyVerifier(), rules(500), policy)
    # It outlasts the full one: at the end, the full one's slot has no room for its tree.
    beside = session.join([5], GreedyVerifier(), rules(200), policy)
    others = [join(session, decoder, r) for r in OTHERS[:4]]
    while session.sequences:
        session.step()
    assert "the context is full" in str(full.error)
    # Every row was used: the last token is the root of a tree that found no row.
    assert len(full.token_ids) == 261
    assert [s.new_ids for s in others] == alone.new_ids[:4]
    for sequence, count in ((full, 61), (beside, 200)):
        start = sequence.token_ids[: -len(sequence.new_ids)]
        assert sequence.new_ids == decoder.generate(start, TREE, max_new_tokens=count).new_ids[0]
    with pytest.raises(ValueError, match="has 260 tokens; a slot of this batch has room for 259"):
        session.join([1] * 260, GreedyVerifier(), rules())


def test_an_exception_of_a_shared_pass_fails_its_sequences(decoder, alone, monkeypatch) -> None:
    session = new_session(decoder, 6)
    policy = ConstantPolicy(TreeParams(20, 2, 4))
    sequences = [session.join([n, 2, 3], GreedyVerifier(), rules(), policy) for n in range(5)]
    session.step()
    forward = type(decoder.target).forward

    def broken(target, rows, cache, logits="all"):
        if rows.slots is not None and 3 in rows.slots.tolist():
            raise RuntimeError("a pass is broken")
        return forward(target, rows, cache, logits)

    monkeypatch.setattr(type(decoder.target), "forward", broken)
    session.step()
    monkeypatch.undo()
    # Passes of 64 rows at most: three trees of 20 rows, then two.
    assert [s.error is not None for s in sequences] == [False, False, False, True, True]
    while session.sequences:
        session.step()
    assert [len(s.new_ids) for s in sequences[:3]] == [60] * 3
    check_slots_are_as_new(session, decoder, alone)


def test_an_interruption_ends_all_sequences(decoder, alone, monkeypatch) -> None:
    session = new_session(decoder, 3)
    sequences = [join(session, decoder, request) for request in OTHERS[:3]]
    session.step()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(decoder.target), "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.step()
    monkeypatch.undo()
    assert all(isinstance(s.error, KeyboardInterrupt) for s in sequences)
    check_slots_are_as_new(session, decoder, alone)


def test_what_cannot_join_is_refused(decoder, alone) -> None:
    session = new_session(decoder, 2)
    with pytest.raises(ValueError, match="at least one token"):
        session.join([], GreedyVerifier(), rules())
    with pytest.raises(ValueError, match="has 1000 tokens; a slot of this batch has room for 999"):
        session.join([1] * 1000, GreedyVerifier(), rules())
    own = Deepening()
    verifier = ProcessingVerifier(LogitsProcessorList(), do_sample=False)
    first = session.join([1], verifier, rules(), own)
    with pytest.raises(ValueError, match="in use by another"):
        session.join([1], GreedyVerifier(), rules(), own)
    with pytest.raises(ValueError, match="verifier of its own"):
        session.join([1], verifier, rules())
    assert session.free_slots == 1
    second = session.join([1], GreedyVerifier(), rules())
    with pytest.raises(ValueError, match="all 2 slots of this batch are taken"):
        session.join([1], GreedyVerifier(), rules())
    assert {first.slot, second.slot} == {0, 1}
    session.close()
    assert first.left == second.left == "the batch was closed"
    check_slots_are_as_new(session, decoder, alone)


def test_wrong_arguments(decoder) -> None:
    with pytest.raises(ValueError, match="slots must be at least 1"):
        new_session(decoder, 0)
    with pytest.raises(ValueError, match="prompt_rows must be at least 1, got 0"):
        new_session(decoder, 1, prompt_rows=0)
    with pytest.raises(TypeError, match="policy must be"):
        PerSlotPolicies("auto")


def test_a_joint_policy_takes_no_policy_of_a_sequence(decoder) -> None:
    session = new_session(decoder, 1)
    # A policy of the same methods that is no `PerSlotPolicies`.
    session.policies = object()
    with pytest.raises(ValueError, match="decides for all sequences together"):
        session.join([1], GreedyVerifier(), rules(), Deepening())


def test_500_cancelled_requests_leak_nothing(decoder, alone) -> None:
    used = len(_IN_USE)
    session = new_session(decoder, 7)
    draw = random.Random(5)
    cancelled = 0
    while cancelled < 500:
        while session.free_slots and draw.random() < 0.7:
            request = draw.choice(REQUESTS)
            join(session, decoder, request)
        if draw.random() < 0.5:
            session.step()
        for sequence in session.sequences:
            if draw.random() < 0.5:
                session.leave(sequence)
                session.leave(sequence)
                assert sequence.left == "it was cancelled"
                cancelled += 1
    session.close()
    assert len(_IN_USE) == used
    check_slots_are_as_new(session, decoder, alone)


@pytest.mark.parametrize("moment", ["choose", "observe", "criterion"])
def test_leaving_in_the_middle_of_a_cycle(decoder, alone, moment) -> None:
    session = new_session(decoder, 6)
    others = [join(session, decoder, request) for request in OTHERS]
    calls = []

    def leave_at_third(name: str) -> None:
        calls.append(name)
        if name == moment and calls.count(name) == 3:
            session.leave(leaving, "in between")
            session.leave(others[0])
            with pytest.raises(ValueError, match="in the middle of a cycle"):
                session.step()
            with pytest.raises(ValueError, match="in the middle of a cycle"):
                session.join([1], GreedyVerifier(), rules())

    class Leaving(Deepening):
        def choose(self, state):
            leave_at_third("choose")
            return TREE

        def observe(self, result):
            leave_at_third("observe")

    def criterion(ids, scores, **_):
        leave_at_third("criterion")
        return torch.zeros(1, dtype=torch.bool)

    leaving = session.join([1, 2], GreedyVerifier(), rules(criteria=[criterion]), Leaving())
    while session.sequences:
        session.step()
    assert leaving.left == "in between"
    assert leaving.error is None
    text = by_transformers_of(leaving.token_ids[:2], len(leaving.new_ids))
    assert leaving.new_ids == text
    assert [s.new_ids for s in others[1:]] == alone.new_ids[1:5]
    assert others[0].new_ids == alone.new_ids[0][: len(others[0].new_ids)]
    check_slots_are_as_new(session, decoder, alone)


def by_transformers_of(prompt: list[int], count: int) -> list[int]:
    request = make_requests(1)[0].__class__(prompt, {"max_new_tokens": count}, None, POLICIES[0])
    return by_transformers(make_model(), request)
