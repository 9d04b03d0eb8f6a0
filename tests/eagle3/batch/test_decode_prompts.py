"""`generate` with several prompts: together where that gives the same texts, else in turn."""

import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import LogitsProcessorList

from eaglerl.eagle3 import NO_DRAFT, DraftPlan, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.batch import decode_prompts
from eaglerl.eagle3.batch.decode_prompts import MOST_BYTES, slots_for
from eaglerl.eagle3.sampling import GreedyVerifier, SamplingVerifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.policies.auto_policy import make_auto_policy

from .batches import TREE, VOCAB, Deepening, make_decoder, make_model, make_requests

PROMPTS = [request.prompt for request in make_requests(20, longest=200)]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def decoder(model):
    return make_decoder(model)


@pytest.fixture
def sessions(monkeypatch) -> list:
    """The batches that were made."""
    made = []

    class Recorded(decode_prompts.BatchSession):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(decode_prompts, "BatchSession", Recorded)
    return made


def one_by_one(decoder, policy, **options) -> list[list[int]]:
    return [decoder.generate([prompt], policy, **options).new_ids[0] for prompt in PROMPTS]


@pytest.mark.parametrize("policy", [TREE, NO_DRAFT, DraftPlan(TREE, 5), None, "auto"], ids=str)
@pytest.mark.parametrize("options", [{}, {"eos_token_id": [3, 7]}], ids=["length", "eos"])
def test_together(decoder, sessions, policy, options) -> None:
    options = options | {"max_new_tokens": 30}
    expected = [decoder.generate([prompt], policy, **options) for prompt in PROMPTS]
    assert sessions == []
    output = decoder.generate(PROMPTS, policy, **options)
    assert [session.slots for session in sessions] == [16]
    assert sessions[0].sequences == ()
    assert list(output.new_ids) == [alone.new_ids[0] for alone in expected]
    assert list(output.finish_reasons) == [alone.finish_reasons[0] for alone in expected]
    assert ("stop" in output.finish_reasons) == ("eos_token_id" in options)
    lengths = [len(text) for text in output.new_ids]
    assert [statistics.new_tokens for statistics in output.per_sequence] == lengths
    total = output.statistics
    assert total.new_tokens == sum(lengths)
    assert total.decode_seconds > 0 < total.prefill_seconds
    if policy is NO_DRAFT:
        assert total.num_cycles == sum(lengths) - len(PROMPTS)


def test_auto_learns_apart_from_single_sequences(decoder, sessions) -> None:
    decoder.generate(PROMPTS, max_new_tokens=8)
    named = decoder._named
    assert named._batch_auto is not named._auto
    before = named._batch_auto
    decoder.generate(PROMPTS[:2], max_new_tokens=8)
    assert named._batch_auto is before
    assert [session.slots for session in sessions] == [16, 2]
    first, second = (session.policies for session in sessions)
    assert first is not second
    assert first.cost is second.cost is before.cost


def test_two_batches_at_once(decoder, sessions) -> None:
    """Each has its own slots; what they learn is common."""
    expected = [decoder.generate([prompt], max_new_tokens=40).new_ids[0] for prompt in PROMPTS]
    found: list[list[list[int]]] = [[], []]

    def run(index: int) -> None:
        for _ in range(3):
            found[index] = list(decoder.generate(PROMPTS, max_new_tokens=40).new_ids)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]
    assert len(sessions) == 6


def test_without_a_head(model, sessions) -> None:
    plain = SpeculativeDecoder(make_decoder(model).target, None)
    output = plain.generate(PROMPTS, max_new_tokens=12)
    assert list(output.new_ids) == one_by_one(plain, None, max_new_tokens=12)
    assert len(sessions) == 1


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (TREE, {"temperature": 0.8, "seed": 3}),
        (TREE, {"repetition_penalty": 1.3}),
        (TREE, {"logits_processor": LogitsProcessorList([lambda ids, scores: scores.roll(1)])}),
        (TREE, {"stopping_criteria": [lambda ids, scores: ids[:, -1] == 5]}),
        (TREE, {"max_time": 1000.0}),
        (Deepening(), {}),
        (make_auto_policy(VOCAB), {}),
    ],
    ids=["sampled", "penalty", "processor", "criterion", "time", "policy", "own auto"],
)
def test_one_after_another(decoder, sessions, policy, options) -> None:
    """Draws come from one generator in the order of the prompts, and the rest may remember."""
    output = decoder.generate(PROMPTS[:4], policy, max_new_tokens=10, **options)
    assert sessions == []
    if "seed" in options:
        torch.manual_seed(1)
        options.pop("seed")
        output = decoder.generate(PROMPTS[:4], policy, max_new_tokens=10, **options)
        torch.manual_seed(1)
    for prompt, new_ids in zip(PROMPTS, output.new_ids, strict=False):
        alone = decoder.generate([prompt], policy, max_new_tokens=10, **options)
        assert alone.new_ids[0] == new_ids


def test_a_target_of_transformers_decodes_one_after_another(model, sessions) -> None:
    decoder = make_decoder(model, backend="transformers")
    output = decoder.generate(PROMPTS[:3], TREE, max_new_tokens=10)
    assert sessions == []
    assert len(output.new_ids) == 3


def test_an_error_ends_all_and_the_decoder_goes_on(decoder, sessions, monkeypatch) -> None:
    expected = decoder.generate(PROMPTS[:4], TREE, max_new_tokens=10).new_ids
    forward = type(decoder.target).forward

    def broken(target, rows, cache, logits="all"):
        if rows.slots is not None:
            raise RuntimeError("a pass is broken")
        return forward(target, rows, cache, logits)

    monkeypatch.setattr(type(decoder.target), "forward", broken)
    with pytest.raises(RuntimeError, match="a pass is broken"):
        decoder.generate(PROMPTS[:4], TREE, max_new_tokens=10)
    monkeypatch.undo()
    assert sessions[-1].sequences == ()
    assert decoder.generate(PROMPTS[:4], TREE, max_new_tokens=10).new_ids == expected


def test_slots_by_memory() -> None:
    target = SimpleNamespace(
        device=torch.device("cpu"),
        mixes_slots=True,
        num_layers=30,
        num_kv_heads=3,
        head_dim=64,
        kv_cache_dtype=torch.float32,
    )
    rules = StoppingRules(eos_token_ids=None, max_new_tokens=5, room=9)
    begun = [(GreedyVerifier(), rules)] * 40
    # 46,080 bytes a row.
    assert slots_for(target, begun, 1000) == 16
    assert slots_for(target, begun[:3], 1000) == 3
    assert slots_for(target, begun, 20_000) == MOST_BYTES // (46_080 * 20_000) == 4
    assert slots_for(target, begun, 10**7) == 1
    assert slots_for(target, [*begun, (SamplingVerifier(1.0, 1.0, 0), rules)], 1000) == 1


def test_trees_that_hardly_fit(decoder, sessions) -> None:
    """A tree of more rows than a slot has spare is left out near the end of the text."""
    tree = TreeParams(700, 9, 9)
    output = decoder.generate(PROMPTS[:3], tree, max_new_tokens=40)
    assert len(sessions) == 1
    assert list(output.new_ids) == one_by_one(decoder, TREE, max_new_tokens=40)[:3]
