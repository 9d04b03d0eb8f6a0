"""A batch that keeps prefixes writes the same texts, from caches with the same bits."""

from __future__ import annotations

import random

import pytest
import torch

from eaglerl.eagle3 import NO_DRAFT, ConstantPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.cache.prefix_cache import BLOCK_ROWS
from eaglerl.eagle3.prompt_reader import PromptReader
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.policies.batch_auto import BatchAutoPolicy

from .batches import (
    TREE,
    VOCAB,
    Halving,
    Request,
    join,
    make_decoder,
    make_model,
    new_session,
    run_alone,
    run_together,
)

OPTIONS = [{}, {"temperature": 0.8}, {"repetition_penalty": 1.3}]
POLICIES = [lambda: TREE, lambda: NO_DRAFT, Halving, lambda: TreeParams(80, 3, 6)]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def decoder(model):
    return make_decoder(model)


def session_with(decoder, slots: int = 4, **arguments) -> BatchSession:
    settings = {"prompt_rows": 64, "prefix_tokens": 2000, "capacity": 600} | arguments
    return new_session(decoder, slots, **settings)


def system_prompt(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB) for _ in range(length)]


def with_common_beginnings(count: int = 24) -> list[Request]:
    """Requests behind three system prompts, some of which begin like others."""
    systems = [system_prompt(0, 100), system_prompt(0, 70), system_prompt(1, 33)]
    requests = []
    for index in range(count):
        options = OPTIONS[index % len(OPTIONS)] | {"max_new_tokens": 10 + 9 * (index % 5)}
        prompt = systems[index % 3] + system_prompt(index, 1 + 7 * (index % 6))
        seed = 50 + index if "temperature" in options else None
        requests.append(Request(prompt, options, seed, POLICIES[(index * 3) % len(POLICIES)]))
    return requests


def finish(session) -> None:
    while session.sequences:
        for sequence, _ in session.step():
            if sequence.error is not None:
                raise sequence.error


def ask(session, decoder, prompt: list[int], policy=lambda: TREE, count: int = 40):
    sequence = join(session, decoder, Request(prompt, {"max_new_tokens": count}, None, policy))
    finish(session)
    return sequence


@pytest.mark.parametrize("prefix_tokens", [2000, 3 * BLOCK_ROWS])
def test_every_text_is_its_own(decoder, prefix_tokens: int) -> None:
    requests = with_common_beginnings()
    alone = run_alone(decoder, requests)
    session = session_with(decoder, prefix_tokens=prefix_tokens)
    for seed in range(2):
        found = run_together(session, decoder, requests, random.Random(seed))
        assert found.new_ids == alone.new_ids
        assert found.reasons == alone.reasons
    assert session.prefixes.reused_tokens > 20 * BLOCK_ROWS
    assert session.prefixes.tokens <= prefix_tokens


def test_a_joint_policy(decoder) -> None:
    requests = with_common_beginnings()
    alone = run_alone(decoder, requests)
    session = BatchSession(
        decoder.target,
        decoder.draft_runner,
        BatchAutoPolicy(4),
        slots=4,
        capacity=600,
        prompt_rows=64,
        prefix_tokens=1000,
    )
    sequences = []
    for request in requests:
        verifier, rules = decoder.read_options(max_new_tokens=40).start(request.prompt, 400)
        sequences.append(session.join(request.prompt, verifier, rules))
        while not session.free_slots:
            session.step()
    finish(session)
    for sequence, request, text in zip(sequences, requests, alone.new_ids, strict=True):
        if request.seed is None and "repetition_penalty" not in request.options:
            assert sequence.new_ids[: len(text)] == text[:40]
    assert session.prefixes.reused_tokens > 10 * BLOCK_ROWS


def test_the_next_turn_of_a_conversation_reads_its_own_tokens_alone(decoder) -> None:
    session = session_with(decoder)
    talk, expected = system_prompt(3, 41), 0
    for turn in range(5):
        sequence = ask(session, decoder, talk)
        # All rows of the turn before, but for what is left of the last block.
        assert sequence.reused_tokens == expected
        if turn:
            assert len(talk) - sequence.reused_tokens <= BLOCK_ROWS + 8
        talk = [*sequence.token_ids, *system_prompt(turn, 7)]
        expected = (len(sequence.token_ids) - 1) // BLOCK_ROWS * BLOCK_ROWS
    asked = session.prefixes.asked_tokens
    assert session.prefixes.reused_tokens > 0.6 * asked


def test_a_prompt_is_known_to_the_next_request_as_soon_as_it_was_read(decoder) -> None:
    session, system = session_with(decoder), system_prompt(4, 64)
    first = join(session, decoder, Request([*system, 1], {"max_new_tokens": 50}, None, TREE_POLICY))
    while first.unread:
        session.step()
    second = join(session, decoder, Request([*system, 2], {}, None, TREE_POLICY))
    assert not first.ended
    assert second.reused_tokens == 64


TREE_POLICY = lambda: TREE  # noqa: E731


@pytest.mark.parametrize("policy", POLICIES[:3], ids=["tree", "plain", "staged"])
def test_rows_have_the_bits_of_a_fresh_prompt(decoder, policy) -> None:
    session = session_with(decoder, slots=1)
    talk = system_prompt(5, 75)
    for turn in range(3):
        sequence = join(session, decoder, Request(talk, {"max_new_tokens": 60}, None, policy))
        while not sequence.ended:
            rows, drafted = session.cache.lengths[0], session.draft.lengths[0]
            target, draft = session.cache.data.clone(), session.draft.cache.data.clone()
            text = list(sequence.state.token_ids)
            session.step()
        check_rows(decoder, text[:rows], target[0])
        if policy is POLICIES[0]:
            check_draft_rows(decoder, text[: drafted + 1], draft[0])
        assert bool(sequence.reused_tokens) == bool(turn)
        talk = [*sequence.token_ids, 1, 2, 3]


def read(decoder, text: list[int], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    cache, reader = decoder.target.new_cache(len(text), 1), PromptReader(text)
    while reader.unread:
        reader.read_chunk(decoder.target, cache, 0, rows)
    return cache.data[0], reader.take_features()


def check_rows(decoder, text: list[int], rows: torch.Tensor) -> None:
    # Whatever the chunks.
    for chunk in (64, 17):
        assert torch.equal(rows[..., : len(text), :], read(decoder, text, chunk)[0])


def check_draft_rows(decoder, text: list[int], rows: torch.Tensor) -> None:
    """Compare with a draft that reads the text at once, which sums in another order."""
    features = read(decoder, text, 64)[1]
    draft = decoder.draft_runner.with_own_cache(len(text))
    draft.extend(torch.tensor(text[1:]), features[:-1])
    expected = draft.cache.data[0, ..., : len(text) - 1, :]
    torch.testing.assert_close(rows[..., : len(text) - 1, :], expected, rtol=0, atol=1e-5)


def test_rows_of_passes_with_more_than_64_rows_are_not_kept(decoder) -> None:
    session = session_with(decoder)
    prompt = system_prompt(6, 64)
    wide = ask(session, decoder, prompt, lambda: TreeParams(80, 3, 6), 80)
    assert max(cycle.rows for cycle in wide.cycles) > 64
    assert session.prefixes.tokens == 64
    ask(session, decoder, prompt, lambda: TREE, 80)
    assert session.prefixes.tokens == 128


class Raising:
    """Fails in its third cycle."""

    def reset(self) -> None:
        self.cycles = 0

    def choose(self, state) -> TreeParams:
        self.cycles += 1
        if self.cycles == 3:
            raise RuntimeError("the third cycle")
        return TREE

    def observe(self, result) -> None:
        pass


def test_of_a_sequence_that_fails_or_leaves_the_prompt_is_kept(decoder) -> None:
    session = session_with(decoder)
    failing = join(
        session, decoder, Request(system_prompt(7, 40), {"max_new_tokens": 90}, None, Raising)
    )
    while not failing.ended:
        session.step()
    assert failing.error is not None
    assert session.prefixes.tokens == BLOCK_ROWS
    leaving = join(
        session, decoder, Request(system_prompt(8, 40), {"max_new_tokens": 90}, None, TREE_POLICY)
    )
    for _ in range(20):
        session.step()
    session.leave(leaving)
    assert session.prefixes.tokens == 2 * BLOCK_ROWS
    again = ask(session, decoder, [*system_prompt(7, 40), 1])
    assert again.reused_tokens == BLOCK_ROWS
    assert (
        again.new_ids
        == decoder.generate([again.token_ids[:41]], TREE, max_new_tokens=40).new_ids[0]
    )


def test_without_a_head(model) -> None:
    decoder = SpeculativeDecoder(make_target(model, backend="packed"), None)
    session = session_with(decoder)
    prompt = system_prompt(9, 70)
    texts = []
    for _ in range(2):
        verifier, rules = decoder.read_options(max_new_tokens=40).start(prompt, 400)
        texts.append(session.join(prompt, verifier, rules, ConstantPolicy(NO_DRAFT)))
        finish(session)
    assert [text.reused_tokens for text in texts] == [0, 64]
    assert texts[0].new_ids == texts[1].new_ids


def test_what_cannot_keep_prefixes_is_refused(model, decoder) -> None:
    with pytest.raises(ValueError, match=r"prefix_tokens must be 0 .* prompt_rows=65"):
        session_with(decoder, prompt_rows=65)
    with pytest.raises(ValueError, match=r"prefix_tokens must be 0 .* prompt_rows=512"):
        session_with(decoder, prompt_rows=None)
    with pytest.raises(ValueError, match="max_tokens must be at least 32"):
        session_with(decoder, prefix_tokens=5)
    with (
        pytest.warns(UserWarning, match="one after another"),
        pytest.raises(ValueError, match=r"prefix_tokens must be 0 for a TransformersTarget"),
    ):
        session_with(make_decoder(model, backend="transformers"))
