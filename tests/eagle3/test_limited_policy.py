"""Limits that a network reads from the features: on the host, on a device, and in graphs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from eaglerl.cost import OnlineCost
from eaglerl.eagle3 import FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.policy import DraftLimits, DraftPlan, StepResult
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.tree.selecting_drafter import rows_for
from eaglerl.ops import PolicyWeights
from eaglerl.policies import LimitedPolicy

from .emulated_device import EmulatedDevice
from .emulated_graph import EmulatedGraph
from .test_device_loop import MODEL, NEW_TOKENS, PROMPT, emulated_decoder, expected_sequence
from .test_ruled_policy import Clockless, host_decoder, with_made_up_times
from .tiny import tiny_model

# Widths, depths, rows and lookups differ, and one drafts nothing.
ACTIONS = [(12, 2, 3, 3), (6, 1, 2, 3), (1, 0, 1, 0), (8, 2, 1, 0), (9, 0, 3, 2)]


def limits(actions: list[tuple[int, ...]] = ACTIONS, **options: object) -> FusedPolicy:
    """A random network whose choices differ from row to row."""
    torch.manual_seed(13)
    mlp = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, len(actions)))
    with torch.no_grad():
        mlp[2].weight.mul_(8)
    weights = PolicyWeights.from_modules(mlp, actions, mlp_input="features")
    return FusedPolicy(weights, **{"action_cache_steps": 2, **options})


class Limited(LimitedPolicy):
    """Learns from made-up times, and remembers what limits every cycle had."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.seen: list[DraftLimits] = []

    def choose(self, state) -> DraftPlan:
        self.seen.append(state.decision)
        return super().choose(state)

    def observe(self, result: StepResult) -> None:
        super().observe(with_made_up_times(result))


def generate(decoder: SpeculativeDecoder, policy: object, **options: object):
    return decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS, **options)


def check_limits(policy: Limited, cycles: list, *, on_device: bool = False) -> None:
    """Check that cycles were within their limits; `DeviceDraft.narrowed_to` finds wider drafts."""
    assert len(policy.seen) == len(cycles)
    for limit, cycle in zip(policy.seen, cycles, strict=True):
        tree = cycle.params
        assert tree.total_tokens <= limit.total_tokens, (limit, tree)
        assert cycle.rows <= rows_for(limit.total_tokens), (limit, cycle.rows)
        assert tree.total_tokens == 1 or tree.depth <= limit.depth, (limit, tree)
        assert tree.total_tokens == 1 or on_device or tree.top_k == limit.top_k, (limit, tree)


def test_on_the_host() -> None:
    policy = Limited(limits())
    cycles = []
    decoder = host_decoder()
    for _ in range(4):
        output = generate(decoder, policy)
        assert output.sequences[0].tolist() == expected_sequence()
        cycles += output.statistics.cycles
    check_limits(policy, cycles)
    for limit, cycle in zip(policy.seen, cycles, strict=True):
        assert cycle.rows <= limit.total_tokens
        assert len(cycle.lookup.token_ids) <= limit.lookup_tokens
    assert len(set(policy.seen)) > 2
    assert len({cycle.params for cycle in cycles}) > 2
    stats = policy.limits.cache.stats()
    # Every other cycle was served by the action before; a text begins with a new one.
    assert stats.hits == pytest.approx(len(cycles) / 2, abs=5)


def test_of_the_largest_limits_alone_it_is_an_auto_policy() -> None:
    limit, tokens = TreeParams(12, 2, 3), 3
    runs = []
    for policy in (
        Limited(limits([(12, 2, 3, 3), (12, 2, 3, 3)])),
        Clockless(OnlineCost((3,)), limit=limit, lookup_tokens=tokens),
    ):
        decoder = host_decoder()
        runs.append([generate(decoder, policy).statistics.cycles for _ in range(3)])
    first, second = ([[(c.params, c.rows, c.accepted) for c in run] for run in each]
                     for each in runs)  # fmt: skip
    assert first == second


def test_on_a_device() -> None:
    policy = Limited(limits())
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        policy.limits.bind(decoder.draft_head, decoder.draft_runner.reduce)
        for _ in range(3):
            mode.waits.clear()
            policy.seen.clear()
            output = generate(decoder, policy)
            assert output.sequences[0].tolist() == expected_sequence()
            # The prompt's first token and first limits, then one wait a cycle.
            assert mode.waits.total() == output.statistics.num_cycles + 2, mode.waits
            check_limits(policy, output.statistics.cycles, on_device=True)
        assert len(set(policy.seen)) > 2


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.5, marks=pytest.mark.slow)])
def test_in_graphs(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """The same trees as call by call, and of the caches' graphs each policy has its own."""
    runs = []
    with EmulatedDevice() as mode:
        monkeypatch.setattr(
            "eaglerl.eagle3.session_factory.graphs_on", lambda _: partial(EmulatedGraph, mode)
        )
        for captured in (False, True):
            decoder = emulated_decoder(mode, cuda_graphs=captured)
            policies = [Limited(limits(temperature=temperature)), Limited(limits(ACTIONS[::-1]))]
            cycles = []
            for policy in (*policies, *policies, *policies):
                output = generate(decoder, policy)
                assert output.sequences[0].tolist() == expected_sequence()
                cycles += output.statistics.cycles
            runs.append([(c.params, c.rows, c.token_ids, c.accepted) for c in cycles])
            for policy in policies:
                assert len(set(policy.seen)) > 1
        (caches,) = decoder._sessions.pool.idle
        assert caches.captured.calls.replays > caches.captured.calls.captures > 0
    assert runs[0] == runs[1]


def test_a_device_chooses_as_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cycles = []
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        cycles.append(generate(decoder, Limited(limits())).statistics.cycles)
    original = DecodingSession.__init__
    monkeypatch.setattr(
        DecodingSession,
        "__init__",
        lambda self, *arguments, **options: original(
            self, *arguments, **(options | {"on_device": True})
        ),
    )
    cycles.append(generate(host_decoder(), Limited(limits())).statistics.cycles)
    first, second = [[(c.params, c.rows, c.accepted) for c in each] for each in cycles]
    assert first == second


def test_a_fused_policy_with_lookup_tokens_is_a_plan() -> None:
    policy = limits()
    for decoder_of in (host_decoder, None):
        with EmulatedDevice() as mode:
            decoder = emulated_decoder(mode) if decoder_of is None else decoder_of()
            output = generate(decoder, policy.fork())
        assert output.sequences[0].tolist() == expected_sequence()
        cycles = output.statistics.cycles
        # A level of 3 has not 9 rows, and a chain of 3 tokens has not 8.
        trees = {
            TreeParams(*tree) for tree in ((12, 2, 3), (6, 1, 2), (1, 0, 1), (4, 2, 1), (4, 0, 3))
        }
        assert {cycle.params for cycle in cycles[:-3]} <= trees
        assert any(cycle.lookup.token_ids for cycle in cycles)


def test_several_prompts_one_after_another() -> None:
    model = tiny_model(**MODEL)
    prompts = [PROMPT, PROMPT[:5], PROMPT[2:]]
    outputs = host_decoder().generate(prompts, Limited(limits()), max_new_tokens=8)
    for prompt, row in zip(prompts, outputs.sequences.tolist(), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=0
        )
        assert [token for token in row if token != 0][-8:] == expected[0, -8:].tolist()


def test_forks_have_limits_of_their_own() -> None:
    policy = LimitedPolicy(limits())
    other = policy.fork()
    assert other.limits is not policy.limits
    assert other.limits.cache is not policy.limits.cache
    assert other.cost is policy.cost
    assert other._shared is policy._shared


def test_a_fork_keeps_the_limits_of_the_sequence_that_is_decoded() -> None:
    """The action that its cache holds serves the rest of its cycles."""
    policy = LimitedPolicy(limits(action_cache_steps=1000))
    with host_decoder().start(PROMPT, policy, max_new_tokens=NEW_TOKENS) as generation:
        generation.advance()
        while generation.finish_reason is None:
            policy.fork()
            generation.advance()
    assert policy.limits.cache.stats().misses == 1


@pytest.mark.filterwarnings("ignore:a TransformersTarget takes the tree of one sequence")
def test_refused() -> None:
    with pytest.raises(TypeError, match="limits must be a FusedPolicy, got TreeParams"):
        LimitedPolicy(TreeParams(2, 0, 1))
    with pytest.raises(ValueError, match="limits must have actions of total_tokens, depth, top_k"):
        LimitedPolicy(limits([action[:3] for action in ((12, 2, 3), (6, 1, 2))]))
    with pytest.raises(ValueError, match="limit must draft at least one node"):
        LimitedPolicy(limits([(1, 0, 1, 4), (1, 0, 2, 2)]))
    with pytest.raises(ValueError, match=r"top_k must be one of \[4\], got 1"):
        LimitedPolicy(limits(), OnlineCost((4,)))
    decoder = host_decoder()
    session = decoder.new_session(GreedyVerifier(), length=32)
    session.prefill(PROMPT)
    with pytest.raises(ValueError, match="a LimitedPolicy's network decides inside the session"):
        LimitedPolicy(limits()).choose(session.state)
    session.close()
    with pytest.raises(ValueError, match="policy must not be a LimitedPolicy"):
        decoder.start_batch(slots=2, policy=LimitedPolicy(limits()))
    with (
        decoder.start_batch(slots=2) as batch,
        pytest.raises(ValueError, match="policy must not be a LimitedPolicy"),
    ):
        batch.start(PROMPT, LimitedPolicy(limits()), max_new_tokens=4)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_narrowed_draft(top_k: int) -> None:
    """Each place that remains is the child of the same rank, below the parent of the same rank."""
    width, levels = 3, 3
    names = {}
    pool = 0
    for level in range(levels):
        for parent in range(1 if level == 0 else width):
            for child in range(width):
                names[(level, parent, child)] = pool
                pool += 1
    kept = {
        (level, parent, child): node
        for (level, parent, child), node in names.items()
        if parent < top_k and child < top_k
    }
    draft = DeviceDraft(
        top_k=width, levels=levels, passes=levels,
        scores=-np.arange(pool + 9, dtype=np.float32), nodes=sorted(kept.values())[:4], added=2,
        lookup_tokens=4, lookup_nodes=np.array([kept[0, 0, 0], kept[1, 0, 0], -1, 25]),
    )  # fmt: skip
    narrow = draft.narrowed_to(top_k)
    order = sorted(kept)
    assert narrow.scores[: len(order)].tolist() == [-kept[place] for place in order]
    assert narrow.nodes == [order.index(next(p for p in order if kept[p] == node))
                            for node in draft.nodes]  # fmt: skip
    assert narrow.lookup_nodes.tolist()[:3] == [0, order.index((1, 0, 0)), -1]
    assert narrow.pool_size(levels - 1) == len(order)
    assert replace(narrow.params, top_k=width) == draft.params
    assert (narrow.added, narrow.lookup_tokens) == (2, 4)
