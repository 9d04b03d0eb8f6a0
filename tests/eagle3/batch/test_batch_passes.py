"""How many passes a cycle of a batch runs, and over which rows."""

import pytest

from eaglerl.eagle3 import ConstantPolicy, DraftPlan, TreeParams
from eaglerl.eagle3.batch.batch_drafter import PackedSlots
from eaglerl.eagle3.batch.batched_sequence import shared_passes
from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.stopping import StoppingRules

from .batches import make_decoder, make_model, new_session


@pytest.fixture(scope="module")
def decoder():
    return make_decoder(make_model())


@pytest.fixture
def passes(decoder, monkeypatch) -> list[tuple[str, int]]:
    """Every pass from here on: its kind, and its rows in the order of the slots."""
    found: list[tuple[str, int]] = []

    def record(owner, name, rows_of) -> None:
        method = getattr(owner, name)

        def recorded(self, *args, **kwargs):
            found.append((name, rows_of(args)))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, recorded)

    record(type(decoder.target), "forward", lambda args: len(args[0]))
    for name in ("extend_slots", "expand_slots"):
        record(PackedSlots, name, lambda args: sum(len(rows.token_ids) for rows in args[0]))
    for name in ("extend", "expand"):
        record(PackedDraft, name, lambda args: len(args[0]))
    return found


def begin(session, count: int, policy, *, prompt: int = 3):
    """Join and read the prompts: a step of one cycle."""
    for n in range(count):
        rules = StoppingRules(eos_token_ids=None, max_new_tokens=90, room=900)
        ids = [(n + i) % 12 for i in range(prompt)]
        session.join(ids, GreedyVerifier(), rules, ConstantPolicy(policy))
    session.step()


def test_a_round_and_a_verification_are_one_pass(decoder, passes) -> None:
    session = new_session(decoder, 8)
    begin(session, 8, TreeParams(6, 2, 4))
    pending = sum(len(s.cycles[-1].token_ids) for s in session.sequences)
    passes.clear()
    session.step()
    assert passes == [
        ("extend_slots", pending),
        ("expand_slots", 32),
        ("expand_slots", 32),
        ("forward", 48),
    ]


def test_passes_have_at_most_64_rows(decoder, passes) -> None:
    session = new_session(decoder, 16)
    begin(session, 16, TreeParams(14, 1, 5))
    passes.clear()
    session.step()
    kinds = [name for name, _ in passes]
    assert kinds == ["extend_slots"] + 2 * ["expand_slots"] + 4 * ["forward"]
    assert [rows for name, rows in passes if name == "expand_slots"] == [60, 20]
    assert [rows for name, rows in passes if name == "forward"] == [56] * 4


def test_prompts_and_large_trees_have_passes_of_their_own(decoder, passes) -> None:
    session = new_session(decoder, 2)
    begin(session, 2, TreeParams(90, 2, 8), prompt=70)
    assert passes == [
        ("forward", 70),
        ("forward", 70),
        ("extend", 70),
        ("extend", 70),
        ("expand_slots", 16),
        ("expand_slots", 16),
        ("forward", 90),
        ("forward", 90),
    ]


def test_slots_that_draft_nothing_join_the_verification_alone(decoder, passes) -> None:
    session = new_session(decoder, 4)
    begin(session, 3, DraftPlan())
    begin(session, 1, TreeParams(6, 2, 4))
    passes.clear()
    session.step()
    assert [name for name, _ in passes] == ["extend", "expand", "expand", "forward"]
    assert passes[-1] == ("forward", 9)


def test_slots_are_divided_into_passes() -> None:
    roomy = [100] * 5
    assert shared_passes([10] * 5, [10] * 5, roomy, 64) == [[0, 1, 2, 3, 4]]
    assert shared_passes([30, 34, 1, 64, 2], [1] * 5, roomy, 64) == [[0, 1], [2], [3], [4]]
    # More rows than a shared pass has: alone.
    assert shared_passes([80, 2, 2], [80, 2, 2], roomy[:3], 64) == [[0], [1, 2]]
    # The second slot has no room for the block of the first, nor the fourth for that of the third.
    assert shared_passes([9, 2, 7, 1], [9, 2, 7, 1], [50, 8, 8, 6], 64) == [[0], [1, 2], [3]]
    assert shared_passes([1, 1, 1], [1] * 3, [9] * 3, 0) == [[0], [1], [2]]
    assert shared_passes([], [], [], 64) == []
