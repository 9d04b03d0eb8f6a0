"""A `FusedPolicy` of a batch: one call for all slots, whose decisions are those of each alone."""

from __future__ import annotations

import random

import pytest

from eaglerl.eagle3 import NO_DRAFT, FusedPolicy, TreeParams
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.ops.encoder import FusedEncoder

from ..test_device_loop import mlp_policy
from .batches import VOCAB, make_decoder, make_model

NEW_TOKENS = 40
PROMPTS = [[(5 * i * i + 3 * n + i) % VOCAB for i in range(2 + 9 * n)] for n in range(10)]


def policies() -> dict[str, FusedPolicy]:
    return {
        "features": FusedPolicy(mlp_policy(32), action_cache_steps=3),
        "every cycle": FusedPolicy(mlp_policy(32), action_cache_steps=1),
        "taps": FusedPolicy(mlp_policy(96, "taps"), action_cache_steps=2),
        "adaptive": FusedPolicy(mlp_policy(32), cache_mode="adaptive", threshold=0.5),
        "drawn": FusedPolicy(mlp_policy(32), temperature=1.5, action_cache_steps=1),
    }


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def modules(model):
    return make_decoder(model, backend="transformers")


@pytest.fixture(scope="module")
def packed(model):
    return make_decoder(model)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """How many sequences each call of the encoder decided for."""
    found: list[int] = []
    encode = FusedEncoder.encode

    def counted(self, *features, **arguments) -> None:
        found.append(len(arguments["last"]))
        encode(self, *features, **arguments)

    monkeypatch.setattr(FusedEncoder, "encode", counted)
    return found


def open_batch(decoder, policy, slots: int = 4, **arguments):
    if not decoder.target.mixes_slots:
        with pytest.warns(UserWarning, match="one after another"):
            return decoder.start_batch(slots=slots, max_length=400, policy=policy, **arguments)
    return decoder.start_batch(slots=slots, max_length=400, policy=policy, **arguments)


def run(batch, prompts: list[list[int]], draw: random.Random, **options) -> list:
    waiting, sequences = list(enumerate(prompts)), {}
    draw.shuffle(waiting)
    while waiting or batch.sequences:
        while waiting and batch.free_slots and draw.random() < 0.6:
            index, prompt = waiting.pop()
            sequences[index] = batch.start(prompt, max_new_tokens=NEW_TOKENS, **options)
        for sequence, _ in batch.step():
            assert sequence.error is None
    return [sequences[index] for index in range(len(prompts))]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *(("packed", name) for name in policies()),
        # Its sequences take turns, ten times as slowly.
        *(("modules", name) for name in ("taps", "drawn")),
        *(
            pytest.param("modules", name, marks=pytest.mark.slow)
            for name in ("features", "every cycle", "adaptive")
        ),
    ],
)
def test_every_sequence_is_decided_for_as_alone(target: str, name: str, request) -> None:
    decoder, policy = request.getfixturevalue(target), policies()[name]
    alone = [decoder.generate([p], policies()[name], max_new_tokens=NEW_TOKENS) for p in PROMPTS]
    with open_batch(decoder, policy) as batch:
        found = run(batch, PROMPTS, random.Random(0))
    assert [sequence.new_ids for sequence in found] == [output.new_ids[0] for output in alone]
    chosen = {cycle.params for sequence in found for cycle in sequence.cycles}
    assert len(chosen) > 1
    if name == "drawn":
        return
    for sequence, output in zip(found, alone, strict=True):
        expected = [cycle.params for cycle in output.statistics.cycles]
        assert [cycle.params for cycle in sequence.cycles] == expected


def test_one_call_decides_for_all_slots(packed, calls) -> None:
    with open_batch(packed, policies()["every cycle"]) as batch:
        for prompt in PROMPTS[:4]:
            batch.start(prompt, max_new_tokens=NEW_TOKENS)
        while any(sequence.unread for sequence in batch.sequences):
            batch.step()
        calls.clear()
        for _ in range(3):
            batch.step()
    assert calls == [4, 4, 4]


def test_slots_count_for_themselves_and_decide_anew_for_another_sequence(packed) -> None:
    policy = FusedPolicy(mlp_policy(32), action_cache_steps=1000)
    with open_batch(packed, policy, 2) as batch:
        cache = batch.session.policies.cache
        first = batch.start(PROMPTS[0], max_new_tokens=10)
        while not first.ended:
            batch.step()
        # One decision after the prompt, which serves all cycles.
        assert cache.stats([0]).misses == 1
        assert cache.stats([0]).hits == len(first.cycles)
        assert cache.stats([1]).hits == cache.stats([1]).misses == 0
        second = batch.start(PROMPTS[1], max_new_tokens=10)
        while not second.ended:
            batch.step()
        assert second.slot == first.slot == 0
        assert cache.stats([0]).misses == 2
        assert cache.stats([0]).hits == len(first.cycles) + len(second.cycles)
        assert cache.stats() == cache.stats([0])
    assert policy.cache.stats().misses == 0


def test_beside_a_sequence_with_its_own_policy(packed) -> None:
    tree = TreeParams(4, 1, 3)
    with open_batch(packed, policies()["features"]) as batch:
        own = batch.start(PROMPTS[1], tree, max_new_tokens=NEW_TOKENS)
        fused = batch.start(PROMPTS[2], max_new_tokens=NEW_TOKENS)
        while not (own.ended and fused.ended):
            batch.step()
    assert {cycle.params for cycle in own.cycles[:-4]} == {tree}
    alone = packed.generate([PROMPTS[2]], policies()["features"], max_new_tokens=NEW_TOKENS)
    assert fused.new_ids == alone.new_ids[0]
    assert [c.params for c in fused.cycles] == [c.params for c in alone.statistics.cycles]


def test_prefixes(packed) -> None:
    prompts = [PROMPTS[9] + [n, 2] for n in range(6)]
    alone = [packed.generate([p], policies()["features"], max_new_tokens=40) for p in prompts]
    policy = policies()["features"]
    with open_batch(packed, policy, 2, prefix_tokens=1000) as batch:
        found = run(batch, prompts, random.Random(1))
        assert batch.session.prefixes.reused_tokens > 0
    assert [sequence.new_ids for sequence in found] == [output.new_ids[0] for output in alone]


def test_generate_reads_several_prompts_together(packed, calls) -> None:
    policy = policies()["features"]
    expected = [packed.generate([p], policies()["features"], max_new_tokens=20) for p in PROMPTS]
    calls.clear()
    output = packed.generate(PROMPTS, policy, max_new_tokens=20)
    assert list(output.new_ids) == [alone.new_ids[0] for alone in expected]
    assert max(calls) == len(PROMPTS)


def test_what_does_not_fit_is_refused(packed) -> None:
    with pytest.raises(ValueError, match="width 16"):
        packed.start_batch(policy=FusedPolicy(mlp_policy(16)))
    with open_batch(packed, NO_DRAFT) as batch:
        with pytest.raises(ValueError, match="give it to the batch"):
            batch.start(PROMPTS[0], policies()["features"])
        assert batch.free_slots == 4
    with pytest.raises(ValueError, match="slots must be an int of at least 1, got 0"):
        FusedSlots(policies()["features"], 0, packed.draft_head, packed.draft_runner.reduce)
