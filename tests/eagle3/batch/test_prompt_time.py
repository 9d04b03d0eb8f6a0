"""Chunks of prompts whose time is bounded: fewer rows where rows take longer, and the same text."""

from __future__ import annotations

import time

import pytest

from eaglerl.eagle3 import NO_DRAFT
from eaglerl.eagle3.target.block_target import BlockTarget

from .batches import TREE, Request, join, make_decoder, make_model, new_session, run_alone

PROMPT = [(5 * i * i + i) % 12 for i in range(200)]
ROW_SECONDS = 0.002


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def decoder(model):
    return make_decoder(model)


@pytest.fixture
def chunks(decoder, monkeypatch) -> list[int]:
    """The rows of every pass of the target, each of which takes a while."""
    found: list[int] = []
    forward = type(decoder.target).forward

    def slow(self, rows, *arguments):
        found.append(len(rows))
        time.sleep(ROW_SECONDS * len(rows))
        return forward(self, rows, *arguments)

    monkeypatch.setattr(type(decoder.target), "forward", slow)
    return found


def request(policy=lambda: NO_DRAFT, count: int = 1) -> Request:
    return Request(PROMPT, {"max_new_tokens": count}, None, policy)


def test_chunks_shrink_to_their_time(decoder, chunks) -> None:
    assert isinstance(decoder.target, BlockTarget)
    session = new_session(decoder, 2, prompt_rows=64, prompt_seconds=20.5 * ROW_SECONDS)
    join(session, decoder, request())
    steps = 0
    while session.sequences:
        session.step()
        steps += 1
    # The first one's time was not known.
    assert chunks[0] == 64
    assert sum(chunks) == 200
    assert steps == len(chunks)
    # A pass takes a little more than its sleep.
    assert all(8 <= rows <= 20 for rows in chunks[1:-1])


def test_a_chunk_has_eight_rows_at_least(decoder, chunks) -> None:
    session = new_session(decoder, 2, prompt_rows=64, prompt_seconds=ROW_SECONDS)
    join(session, decoder, request())
    while session.sequences:
        session.step()
    assert chunks == [64, *[8] * 17]


def test_others_wait_for_one_chunk_at_most(decoder, chunks) -> None:
    """Short prompts share a step only as long as there is time."""
    session = new_session(decoder, 4, prompt_rows=64, prompt_seconds=15 * ROW_SECONDS)
    for _ in range(4):
        short = Request(PROMPT[:16], {"max_new_tokens": 9}, None, lambda: NO_DRAFT)
        join(session, decoder, short)
    session.step()
    # A chunk, after which the time is over, and a cycle.
    assert chunks == [16, 1]


def test_the_text_does_not_depend_on_the_chunks(decoder, chunks) -> None:
    expected = run_alone(decoder, [request(lambda: TREE, 40)]).new_ids[0]
    for seconds in (None, 9.5 * ROW_SECONDS, 33.5 * ROW_SECONDS):
        session = new_session(decoder, 1, prompt_rows=64, prompt_seconds=seconds)
        sequence = join(session, decoder, request(lambda: TREE, 40))
        while session.sequences:
            session.step()
        assert sequence.new_ids == expected


def test_wrong_arguments(model, decoder) -> None:
    for rows, seconds in ((65, 1.0), (512, 1.0), (64, 0.0), (64, -1.0)):
        with pytest.raises(ValueError, match=f"prompt_seconds must be positive.*rows={rows}"):
            new_session(decoder, 1, prompt_rows=rows, prompt_seconds=seconds)
    slow = make_decoder(model, backend="transformers")
    warning = pytest.warns(UserWarning, match="one after another")
    with warning, pytest.raises(ValueError, match="None for a TransformersTarget"):
        new_session(slow, 1, prompt_rows=64, prompt_seconds=1.0)
