"""Both KV caches of every slot, after many cycles, are those of a fresh pass over its tokens."""

import random

import pytest
import torch

from eaglerl.eagle3 import TreeParams
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.sampling import make_verifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.make_target import make_target

from ..cache.test_cache_consistency import (
    CAPACITY,
    CYCLES,
    DRAFT_TOLERANCE,
    TARGET_TOLERANCE,
    fresh_pass,
    random_schedule,
)
from ..tiny import tiny_head, tiny_model, tiny_runner

SLOTS = 6


class Scheduled:
    """A policy that chooses the trees of a schedule."""

    def __init__(self, seed: int) -> None:
        self.schedule = iter(random_schedule(random.Random(seed), widest=8))

    def reset(self) -> None:
        pass

    def choose(self, state) -> TreeParams:
        return next(self.schedule)

    def observe(self, result) -> None:
        pass


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "modules"])
def test_after_200_random_cycles_in_every_slot(packed: bool) -> None:
    target = make_target(tiny_model(vocab_size=12, seed=4), backend="packed")
    head = tiny_head(target, draft_vocab_size=10, seed=5)
    session = BatchSession(
        target,
        tiny_runner(head, CAPACITY, packed=packed),
        PerSlotPolicies(TreeParams(1)),
        slots=SLOTS,
        capacity=CAPACITY,
    )
    draw = random.Random(6)
    waiting, sequences = list(range(SLOTS)), []
    while waiting or any(len(s.cycles) < CYCLES for s in sequences):
        # They join at random moments, so that the phases of their schedules differ.
        while waiting and draw.random() < 0.3:
            seed = waiting.pop()
            verifier = make_verifier(float(seed % 2), 1.0, 0, seed=seed, device="cpu")
            rules = StoppingRules(eos_token_ids=None, max_new_tokens=CAPACITY, room=CAPACITY)
            prompt = [draw.randrange(12) for _ in range(draw.choice([1, 8, 70]))]
            sequences.append(session.join(prompt, verifier, rules, Scheduled(seed)))
        session.step()
        for sequence in sequences:
            if len(sequence.cycles) == CYCLES and not sequence.ended:
                check(session, sequence, head, packed=packed)
                session.leave(sequence)
    assert [len(s.cycles) for s in sequences] == [CYCLES] * SLOTS


def check(session, sequence, head, *, packed: bool) -> None:
    tokens, slot = sequence.token_ids, sequence.slot
    committed, stable = len(tokens) - 1, session.draft.lengths[slot]
    assert session.cache.lengths[slot] == committed
    # The last cycle drafts: only what it has committed is not in the draft's cache yet.
    assert stable == committed - len(sequence.cycles[-1].token_ids)
    assert sum(cycle.accepted for cycle in sequence.cycles) >= CYCLES // 10
    target_rows, draft_rows = fresh_pass(
        session._target, tiny_runner(head, CAPACITY, packed=packed), tokens, stable
    )
    torch.testing.assert_close(
        session.cache.data[slot, ..., :committed, :], target_rows[0], rtol=0, atol=TARGET_TOLERANCE
    )
    torch.testing.assert_close(
        session.draft.cache.data[slot, ..., :stable, :], draft_rows[0], rtol=0, atol=DRAFT_TOLERANCE
    )
