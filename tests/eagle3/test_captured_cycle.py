"""Cycles whose parts are captured in graphs: their text, their waits, and what is left to launch."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from eaglerl.eagle3 import FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.captured import graphed_calls
from eaglerl.eagle3.captured.captured_cycle import columns_for
from eaglerl.eagle3.captured.graphed_calls import GraphedCalls

from .emulated_device import EmulatedDevice
from .emulated_graph import EmulatedGraph
from .test_device_loop import (
    NEW_TOKENS,
    PROMPT,
    Alternating,
    emulated_decoder,
    expected_sequence,
    mlp_policy,
)
from .test_ruled_policy import LIMIT, Clockless

POLICIES = {
    "constant": lambda: TreeParams(12, 2, 4),
    "alternating": Alternating,
    "by rule": lambda: Clockless(limit=LIMIT, lookup_tokens=3),
    "features": lambda: FusedPolicy(mlp_policy(32), action_cache_steps=3),
    "taps": lambda: FusedPolicy(mlp_policy(96, "taps"), action_cache_steps=2),
    "drawn": lambda: FusedPolicy(mlp_policy(32), temperature=1.5, action_cache_steps=1),
}


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch):
    with EmulatedDevice() as device:
        monkeypatch.setattr(
            "eaglerl.eagle3.session_factory.graphs_on", lambda _: partial(EmulatedGraph, device)
        )
        yield device


def graphs_of(decoder: SpeculativeDecoder) -> GraphedCalls:
    (caches,) = decoder._sessions.pool.idle
    return caches.captured.calls


@pytest.mark.parametrize("name", POLICIES)
def test_text_and_waits(mode: EmulatedDevice, name: str) -> None:
    decoder = emulated_decoder(mode, cuda_graphs=True)
    policy = POLICIES[name]()
    if isinstance(policy, FusedPolicy):
        policy.bind(decoder.draft_head, decoder.draft_runner.reduce)
    before = 2 if isinstance(policy, FusedPolicy) else 1
    for _ in range(2):
        mode.waits.clear()
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        assert output.sequences[0].tolist() == expected_sequence()
        assert mode.waits.total() == output.statistics.num_cycles + before, mode.waits
    assert graphs_of(decoder).replays > graphs_of(decoder).captures > 0
