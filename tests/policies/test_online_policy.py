"""`OnlinePolicy` against NumPy, on known acceptance, in live decoding, and with bad input."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl._ext import C
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, DraftProgress, SelectingPolicy, Selection, TreeParams
from eaglerl.ops import DraftTreeBuilder
from eaglerl.policies.online_policy import OnlinePolicy

from ..closeness import check_close
from ..traces.test_record import tiny_decoder, tiny_prompts
from .online_reference import Logistic, Reference
from .random_drafts import at_depth, random_draft, random_sizes

ARGUMENTS = {"max_new_tokens": 60, "eos_token_id": []}


def cost_table(flat: bool = False) -> CostTable:
    return CostTable(
        "made up", "float32", (1, 4, 64), (0.010, 0.011, 0.016) if flat else (0.010, 0.015, 0.1),
        (1e-6, 1e-6, 2e-6), (1, 2, 3, 4, 5), (1e-3,) * 5, (5e-4,) * 5, 1e-7,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_cycles_equal_those_in_numpy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = random_sizes(draw)
    limit = TreeParams(sizes.rows, sizes.depth, sizes.top_k)
    cost = cost_table()
    policy = OnlinePolicy(cost, limit=limit, lookup_tokens=sizes.lookup_tokens)
    reference = Reference(cost, limit, sizes.lookup_tokens)
    for _ in range(12):
        whole = random_draft(draw, sizes)
        policy.choose(None)
        reference.begin()
        for depth in range(int(draw.integers(sizes.depth + 1)) + 1):
            progress = at_depth(whole, depth)
            reference.look_at(progress)
            assert policy.should_continue(progress) == reference.go
            selection = policy.select(progress)
            assert selection.nodes.tolist() == reference.chosen.tolist()
            assert selection.lookup_tokens == reference.verified_lookup
            pool, looked_up = policy._cycle.survival()
            check_close(pool, reference.survival, 1e-9)
            check_close(looked_up, reference.looked_up, 1e-9)
        rows = np.flatnonzero(draw.random(selection.choose_total_tokens(progress) - 1) < 0.5) + 1
        policy._cycle.observe(rows.tolist(), 1 + len(rows))
        reference.observe(rows.tolist(), 1 + len(rows))
        if progress.lookup.match_length:
            right = bool(draw.random() < 0.5)
            policy._cycle.count_lookup(right)
            reference.count_lookup(right)
        check_close(policy._shared.node_weights(), reference.nodes.mean, 1e-7)
        check_close(policy._shared.lookup_weights(), reference.lookups.mean, 1e-7, 1e-12)
        assert policy.rate == pytest.approx(reference.shared_rate, rel=1e-9)


def test_the_regression_finds_the_weights_that_made_its_labels() -> None:
    # Newton's steps one label at a time end where maximum likelihood on all of them does.
    draw = np.random.default_rng(0)
    true = np.array([-0.7, 0.6, 0.5, -0.3, 0.2, -0.4, 0.1, -0.2])
    model = Logistic(np.array([0.0, 1.0] + [0.0] * 6), np.ones(8))
    x = draw.standard_normal((4000, 8))
    labels = draw.random(4000) < 1 / (1 + np.exp(-x @ true))
    for row, label in zip(x, labels, strict=True):
        model.update(row, label)
    # The standard error of a weight is about 2.3 / sqrt(4000) = 0.036; four of them.
    np.testing.assert_allclose(model.mean, true, atol=0.15)


@dataclass
class Known:
    """What known cycles verified: rows, believed survivals, and how many were accepted."""

    rows: list[int]
    believed: list[float]
    accepted: int


def known_cycles(policy: OnlinePolicy, trust: float, cycles: int) -> Known:
    """Run cycles whose candidates survive with `trust` times the draft's own probability."""
    draw = np.random.default_rng(1)
    width, found = policy.limit.top_k, Known([], [], 0)
    for _ in range(cycles):
        policy.choose(None)
        scores = np.log(draw.dirichlet(np.full(width + 1, 0.4))[:width] + 1e-9)
        scores = -np.sort(-scores)
        progress = DraftProgress(width, 0, scores.astype(np.float32), 100)
        selection = policy.select(progress)
        found.rows.append(selection.choose_total_tokens(progress))
        found.believed += policy._cycle.survival()[0][selection.nodes].tolist()
        # At most one child of the root is accepted.
        reached = np.cumsum(trust * np.exp(scores[selection.nodes]))
        accepted = np.flatnonzero(reached > draw.random())[:1] + 1
        found.accepted += len(accepted)
        policy._cycle.observe(accepted.tolist(), 1 + len(accepted))
    return found


@pytest.mark.parametrize("trust", [1.0, 0.3])
def test_believed_survivals_come_true_whatever_the_draft_believes(trust: float) -> None:
    policy = OnlinePolicy(cost_table(), limit=TreeParams(4, 0, 3))
    known_cycles(policy, trust, 400)
    later = known_cycles(policy, trust, 2000)
    believed = np.array(later.believed)
    assert len(believed) > 500
    # Within 4 standard deviations of what chance makes of them.
    assert abs(believed.sum() - later.accepted) < 4 * np.sqrt((believed * (1 - believed)).sum())


def test_fewer_rows_for_a_draft_that_is_wrong_more_often_than_it_believes() -> None:
    right, wrong = (OnlinePolicy(cost_table(), limit=TreeParams(4, 0, 3)) for _ in range(2))
    many, few = known_cycles(right, 1.0, 400).rows, known_cycles(wrong, 0.1, 400).rows
    assert np.mean(few[200:]) < 0.7 * np.mean(many[200:])


def test_the_text_stays_and_sequences_learn_together() -> None:
    decoder = tiny_decoder()
    policy = OnlinePolicy(cost_table(flat=True), limit=TreeParams(8, 2, 2), lookup_tokens=4)
    assert isinstance(policy, SelectingPolicy)
    before = policy._shared.node_weights()
    for prompt in tiny_prompts(4, seed=3):
        ids = list(prompt.token_ids)
        plain = decoder.generate(ids, NO_DRAFT, **ARGUMENTS).sequences
        assert decoder.generate(ids, policy, **ARGUMENTS).sequences.tolist() == plain.tolist()
    assert not np.array_equal(policy._shared.node_weights(), before)
    other = policy.fork()
    assert other._shared is policy._shared
    assert other._cycle is not policy._cycle


def test_accepted_rows_lead_to_the_emitted_tokens() -> None:
    decoder = tiny_decoder()
    policy = OnlinePolicy(cost_table(flat=True), limit=TreeParams(8, 2, 2), lookup_tokens=4)
    accepted = 0
    for prompt in tiny_prompts(4, seed=5):
        generation = decoder.start(list(prompt.token_ids), policy, **ARGUMENTS)
        session = generation.session
        while generation.finish_reason is None:
            generation.advance()
            result = session.state.last_result
            if result is None or session.tree is None:
                continue
            tokens = session.tree.token_ids[list(result.accepted_rows)].tolist()
            assert tokens == list(result.token_ids[:-1])
            accepted += len(tokens)
    assert accepted > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": NO_DRAFT}, "at least one node, got total_tokens=1"),
        ({"limit": TreeParams(4, 0, 8)}, r"top_k must be one of \[1, 2, 3, 4, 5\], got 8"),
        ({"limit": TreeParams(65, 3, 5)}, r"rows must lie in 1..64, got 65"),
        ({"lookup_tokens": -1}, "lookup_tokens must be 0 or positive, got -1"),
    ],
)
def test_bad_arguments(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        OnlinePolicy(cost_table(), **change)


def native_cycle() -> C.OnlineCycle:
    seconds = np.full(4, 0.01)
    return C.OnlineCycle(
        C.OnlineAcceptance(1, 0.01), 2, 1, 4, 3, seconds, np.zeros(4), 1e-3, 5e-4, 0.0
    )


def test_native_code_refuses_what_it_cannot_read() -> None:
    cycle = native_cycle()
    scores = np.array([-0.1, -3.0], dtype=np.float32)
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        cycle.select()
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        cycle.observe([1], 2)
    with pytest.raises(ValueError, match=r"depth must be in 0..1, got 2"):
        cycle.score(scores, 2, 10, 0, 0, None)
    with pytest.raises(ValueError, match="scores must be contiguous"):
        cycle.score(scores[:1], 0, 10, 0, 0, None)
    with pytest.raises(TypeError, match="scores must be an array of float32"):
        cycle.score(scores.astype(np.float64), 0, 10, 0, 0, None)
    with pytest.raises(ValueError, match=r"scores\[1\] is NaN"):
        cycle.score(np.array([0, np.nan], dtype=np.float32), 0, 10, 0, 0, None)
    with pytest.raises(ValueError, match="neither -1 nor a candidate of its level"):
        cycle.score(scores, 0, 10, 3, 2, np.array([2]))
    cycle.score(scores, 0, 10, 0, 0, None)
    rows = 1 + len(cycle.select()[0])
    with pytest.raises(ValueError, match=f"rows must be in 1..{rows - 1}, got {rows}"):
        cycle.observe([rows], 2)
    with pytest.raises(ValueError, match="tokens must be in"):
        cycle.observe([], 0)
    with pytest.raises((TypeError, RuntimeError)):
        copy.copy(cycle)
    with pytest.raises(ValueError, match="base must be in"):
        C.OnlineCycle(
            C.OnlineAcceptance(1, 0.01), 2, 1, 4, 3, np.zeros(4), np.zeros(4), 1e-3, 5e-4, 0.0
        )
    with pytest.raises(ValueError, match=r"max_depth must be in 0..1, got 2"):
        C.OnlineCycle(
            C.OnlineAcceptance(1, 0.01), 2, 2, 4, 3, np.ones(4), np.zeros(4), 1e-3, 5e-4, 0.0
        )


class _Asked(OnlinePolicy):
    """The same policy, asked through its Python methods."""

    def select(self, progress: DraftProgress) -> Selection:
        return super().select(progress)


def test_planning_natively_decides_what_the_methods_decide() -> None:
    cost = CostTable(
        "made up", "float32", (1, 8), (0.010, 0.012), (0.0, 0.0), (2,), (5e-4,), (3e-4,)
    )
    decoder = tiny_decoder()
    decided = []
    for kind in (OnlinePolicy, _Asked):
        policy = kind(cost, limit=TreeParams(8, 2, 2), lookup_tokens=4)
        assert (policy.native_cycle is None) == (kind is _Asked)
        for prompt in tiny_prompts(4, seed=3):
            output = decoder.generate(
                list(prompt.token_ids), policy, max_new_tokens=80, eos_token_id=[]
            )
            cycles = output.statistics.cycles
            decided.append([(c.params, c.rows, c.token_ids, c.accepted_rows) for c in cycles])
    assert decided[:4] == decided[4:]
    assert len({cycle[:2] for text in decided for cycle in text}) > 4
    policy = OnlinePolicy(cost, limit=TreeParams(8, 2, 2))
    policy.should_continue = lambda progress: False  # type: ignore[method-assign]
    assert policy.native_cycle is None


def test_a_planner_refuses_a_draft_of_another_kind() -> None:
    cycle, builder = native_cycle(), DraftTreeBuilder()
    with pytest.raises(ValueError, match=r"the builder's top_k must be in 2..2, got 0"):
        builder.look(cycle, 10, 0, ())
    builder.begin(3, 2)
    with pytest.raises(ValueError, match=r"the builder's rounds must be in 1..2, got 0"):
        builder.look(cycle, 10, 0, ())
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        builder.finish_planned(cycle, ())
    for expanded in range(3):
        logits = torch.randn(2, 9)
        builder.expand(logits) if expanded else builder.first(logits[0])
        if expanded < 2:
            builder.look(cycle, 10, 0, ())
            tree, candidates = builder.finish_planned(cycle, ())
            assert len(tree.token_ids) == candidates
    with pytest.raises(ValueError, match=r"the builder's rounds must be in 1..2, got 3"):
        builder.look(cycle, 10, 0, ())
