"""A sequence in a batch writes what it writes alone, whoever is beside it."""

import random

import pytest

from eaglerl.eagle3 import ConstantPolicy, SpeculativeDecoder
from eaglerl.eagle3.batch.batch_policy import SlotState
from eaglerl.eagle3.batch.batch_verification import BatchVerification
from eaglerl.eagle3.policy import CycleState, DraftPlan, TreeParams

from .batches import (
    Request,
    by_transformers,
    join,
    make_decoder,
    make_model,
    make_requests,
    new_session,
    run_alone,
    run_together,
)

REQUESTS = make_requests()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def decoder(model):
    return make_decoder(model)


@pytest.fixture(scope="module")
def alone(decoder):
    return run_alone(decoder, REQUESTS)


@pytest.fixture(scope="module")
def transformers_texts(model):
    """By the request's index; transformers' own text of every greedy request."""
    return {
        index: by_transformers(model, request)
        for index, request in enumerate(REQUESTS)
        if request.greedy
    }


@pytest.mark.parametrize("slots", [1, 2, 8, 16])
def test_every_text_is_its_own(decoder, alone, transformers_texts, slots) -> None:
    draw = random.Random(slots)
    found = run_together(new_session(decoder, slots), decoder, REQUESTS, draw)
    assert found.new_ids == alone.new_ids
    assert found.reasons == alone.reasons
    assert len(transformers_texts) == 12
    for index, text in transformers_texts.items():
        assert found.new_ids[index] == text
    assert found.together > slots // 2
    assert sum(cycle.accepted for s in found.sequences for cycle in s.cycles) > 20


@pytest.mark.parametrize("seed", range(4))
def test_texts_do_not_depend_on_the_moments_of_joining(decoder, alone, seed) -> None:
    session = new_session(decoder, 5)
    found = run_together(session, decoder, REQUESTS, random.Random(100 + seed))
    assert found.new_ids == alone.new_ids
    # The same slots again: they keep nothing of the sequences before.
    again = run_together(session, decoder, REQUESTS, random.Random(200 + seed))
    assert again.new_ids == alone.new_ids


@pytest.mark.parametrize(
    "head", [{"sliding_window": 16}, {"norm_before_residual": True}], ids=["window", "residual"]
)
def test_other_heads(model, alone, head) -> None:
    decoder = make_decoder(model, **head)
    found = run_together(new_session(decoder, 6), decoder, REQUESTS, random.Random(1))
    assert found.new_ids == alone.new_ids


def test_int8_heads(model, alone) -> None:
    decoder = make_decoder(model, dtype="int8")
    found = run_together(new_session(decoder, 6), decoder, REQUESTS, random.Random(1))
    assert found.new_ids == alone.new_ids


def test_a_target_that_mixes_no_slots(model) -> None:
    """It runs one after another, and the text is the same."""
    decoder = make_decoder(model, backend="transformers")
    requests = REQUESTS[:12]
    with pytest.warns(UserWarning, match="one after another"):
        session = new_session(decoder, 4)
    found = run_together(session, decoder, requests, random.Random(1))
    assert found.new_ids == run_alone(decoder, requests).new_ids


def test_prompts_are_read_in_bounded_pieces(decoder, model) -> None:
    """A long prompt delays the others by `prompt_rows` rows a step, and loses no token."""
    session = new_session(decoder, 3, prompt_rows=40)
    short, long = (next(r for r in REQUESTS if len(r.prompt) == n and r.greedy) for n in (7, 65))
    first = join(session, decoder, short)
    session.step()
    assert first.new_ids
    second = join(session, decoder, long)
    before = len(first.new_ids)
    session.step()
    assert (second.unread, second.new_ids) == (25, [])
    assert len(first.new_ids) > before
    third = join(session, decoder, short)
    session.step()
    # 25 rows of the long prompt, then the short one's 7.
    assert second.unread == third.unread == 0
    assert len(second.new_ids) > 1
    while session.sequences:
        session.step()
    assert second.new_ids == by_transformers(model, long)
    assert third.new_ids == first.new_ids == by_transformers(model, short)


def test_statistics_and_logprobs(decoder) -> None:
    """Every cycle is accounted for; the log-probabilities are those of a single generation."""
    session = new_session(decoder, 3)
    request = REQUESTS[9]
    sequences = [join(session, decoder, r, top_logprobs=2) for r in (request, *REQUESTS[:2])]
    while session.sequences:
        session.step()
    alone = decoder.start(request.prompt, top_logprobs=2, seed=request.seed, **request.options)
    while alone.finish_reason is None:
        alone.advance()
    assert sequences[0].logprobs == alone.logprobs
    for sequence in sequences:
        statistics = sequence.statistics
        assert statistics.new_tokens == len(sequence.new_ids)
        assert statistics.prefill_seconds > 0 < statistics.decode_seconds
        assert sum(c.seconds for c in statistics.cycles) <= statistics.decode_seconds
        assert 1 + sum(c.accepted + 1 for c in statistics.cycles) >= statistics.new_tokens
        assert sequence.policy_seconds > 0


def test_a_plan_is_cut_to_the_room_that_there_is() -> None:
    state = CycleState(None, 10, None)
    plan = DraftPlan(TreeParams(12, 3, 4), 5)
    assert SlotState(0, state, 100, 17, 1).cut(plan) is plan
    assert SlotState(0, state, 100, 16, 1).cut(plan) == DraftPlan()
    assert SlotState(0, state, 2, 100, 1).cut(plan) == DraftPlan(TreeParams(5, 0, 4), 1)
    assert SlotState(0, state, 1, 100, 1).cut(plan).most_rows == 1
    # Three rounds of 10 rows each, although only 4 are verified.
    assert SlotState(0, state, 100, 29, 1).cut(DraftPlan(TreeParams(4, 3, 10))) == DraftPlan()


def test_a_draft_without_a_head() -> None:
    model = make_model()
    decoder = SpeculativeDecoder(make_decoder(model).target, None)
    session = new_session(decoder, 2)
    request = next(r for r in REQUESTS if r.greedy)
    settings = decoder.read_options(**request.options)
    verifier, rules = settings.start(request.prompt, 100)
    sequence = session.join(request.prompt, verifier, rules, ConstantPolicy(DraftPlan(None, 3)))
    other = session.join(request.prompt, *settings.start(request.prompt, 100))
    while session.sequences:
        session.step()
    assert sequence.new_ids == by_transformers(model, request)
    assert "no draft" in str(other.error)


def test_trees_are_those_of_a_single_sequence(decoder, monkeypatch) -> None:
    """But for ties that the rounding of a shared pass breaks otherwise."""
    shapes = [TreeParams(12, 3, 3), TreeParams(6, 2, 4), TreeParams(5, 3, 1)]
    requests = [
        Request([n, 2, 5], {"max_new_tokens": 60}, None, lambda shape=shapes[n % 3]: shape)
        for n in range(9)
    ]
    trees: dict[object, list[list[list[int]]]] = {}
    verify = BatchVerification.verify

    def recorded(self, parts) -> None:
        for part in parts:
            trees.setdefault(part.sequence, []).append(rows_of(part.tree))
        verify(self, parts)

    monkeypatch.setattr(BatchVerification, "verify", recorded)
    found = run_together(new_session(decoder, 9), decoder, requests, random.Random(1))
    pairs = []
    for request, sequence in zip(requests, found.sequences, strict=True):
        alone = decoder.start(request.prompt, request.new_policy(), **request.options)
        alone.advance()
        for tree in trees[sequence]:
            alone.advance()
            pairs.append((tree, rows_of(alone.session.tree)))
        assert alone.new_ids == sequence.new_ids
    assert len(pairs) > 200
    assert sum(ours == theirs for ours, theirs in pairs) >= 0.98 * len(pairs)


def rows_of(tree) -> list[list[int]]:
    return [tree.token_ids.tolist(), tree.parents.tolist()]
