"""Several sequences decoded in lockstep on a device: texts, waits, trees, and their ends."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from eaglerl.eagle3 import DraftPlan, FusedPolicy, GenerateOutput, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.captured import captured_cycle, decode_slots
from eaglerl.eagle3.captured.lockstep import Lockstep
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.policy import StepResult
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.tree.selecting_drafter import rows_for

from .emulated_device import EmulatedDevice
from .emulated_graph import EmulatedGraph, SkippingGraph
from .test_device_loop import MODEL, Alternating, emulated_decoder, mlp_policy
from .test_limited_policy import Limited, limits
from .test_ruled_policy import LIMIT, Clockless
from .tiny import tiny_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 2, 7], [1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0]]
NEW_TOKENS = 16
POLICIES = {
    "plain": lambda: TreeParams(1),
    "constant": lambda: TreeParams(12, 2, 4),
    "by rule": lambda: Clockless(limit=LIMIT, lookup_tokens=3),
    "limited": lambda: Limited(limits()),
}
GRAPHS = {"eager": None, "graphs": EmulatedGraph, "skipping graphs": SkippingGraph}


@functools.cache
def expected(prompt: tuple[int, ...], shape: tuple = (), **options: object) -> list[int]:
    """What transformers' own `generate` writes behind a prompt."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0} | options
    model = tiny_model(**(MODEL | dict(shape)))
    text = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return text[0, len(prompt) :].tolist()


def check_texts(output: GenerateOutput, **options: object) -> None:
    assert len(output.new_ids) == len(PROMPTS)
    for prompt, new_ids in zip(PROMPTS, output.new_ids, strict=True):
        assert new_ids == expected(tuple(prompt), **options)


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDevice]:
    monkeypatch.setattr(decode_slots, "DEVICES", {"meta": "torch"})
    with EmulatedDevice() as device:
        yield device


def decoder_with(
    mode: EmulatedDevice, patch: pytest.MonkeyPatch, graphs: str = "eager", **options
) -> SpeculativeDecoder:
    kind = GRAPHS[graphs]
    if kind is not None:
        patch.setattr("eaglerl.eagle3.session_factory.graphs_on", lambda _: partial(kind, mode))
    return emulated_decoder(mode, cuda_graphs=kind is not None, **options)


def lockstep_of(decoder: SpeculativeDecoder) -> Lockstep:
    idle = decoder._sessions.slots._idle
    assert idle is not None
    return idle


@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("name", POLICIES)
def test_texts_and_waits(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, name: str, graphs: str
) -> None:
    """One wait for all sequences together in a cycle, and one after every prompt."""
    decoder = decoder_with(mode, monkeypatch, graphs)
    policy = POLICIES[name]()
    network = fused_part(policy)
    if network is not None:
        # Binding reads the weights on the device, once.
        decoder.generate(PROMPTS, policy, max_new_tokens=NEW_TOKENS)
    for _ in range(2 if graphs != "eager" else 1):
        mode.waits.clear()
        output = decoder.generate(PROMPTS, policy, max_new_tokens=NEW_TOKENS)
        waits = mode.waits.total()
        check_texts(output)
        cycles = max(len(one.cycles) for one in output.per_sequence)
        assert waits == cycles + len(PROMPTS) + (network is not None), mode.waits
    lockstep = lockstep_of(decoder)
    assert lockstep.slots == 3
    if graphs != "eager":
        assert lockstep.cycle.calls.replays > lockstep.cycle.calls.captures > 0
    if name == "plain":
        assert cycles == NEW_TOKENS - 1
    else:
        assert sum(cycle.accepted for cycle in output.statistics.cycles) >= 3


def uncut(cycles: tuple[StepResult, ...], levels: int) -> list[tuple[object, ...]]:
    """The cycles whose trees no end of a text has cut: alone it cuts one tree, here that of all."""
    shown, tokens = [], 1
    for cycle in cycles:
        if NEW_TOKENS - tokens > levels:
            shown.append((cycle.params, cycle.token_ids, cycle.accepted, cycle.lookup))
        tokens += len(cycle.token_ids)
    return shown


def test_constant_trees_are_those_alone(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, tree = decoder_with(mode, monkeypatch), TreeParams(12, 2, 4)
    together = decoder.generate(PROMPTS, tree, max_new_tokens=NEW_TOKENS).per_sequence
    shares = [[cycle.seconds for cycle in one.cycles] for one in together]
    # The measured times are those of the cycle divided by the sequences.
    assert all(len({*times}) == 1 for times in zip(*shares, strict=False))
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = decoder.generate(prompt, tree, max_new_tokens=NEW_TOKENS).statistics
        assert uncut(one.cycles, 4) == uncut(alone.cycles, 4)
        assert len(uncut(one.cycles, 4)) > 3


class Independent(Clockless):
    """Learns from its own sequence alone, and of costs what does not depend on the others."""

    def __init__(self) -> None:
        super().__init__(limit=LIMIT, lookup_tokens=3)
        self.drafted: DeviceDraft | None = None

    def fork(self) -> Independent:
        return Independent()

    def take_draft(self, draft: DeviceDraft) -> None:
        self.drafted = draft
        super().take_draft(draft)

    def observe(self, result: StepResult) -> None:
        rows = 1 + len(result.lookup.token_ids)
        if self.drafted is not None:
            rows = min(rows_for(self.drafted.rows), LIMIT.total_tokens)
        self.drafted = None
        super().observe(replace(result, rows=rows))


@pytest.mark.parametrize("graphs", ["skipping graphs"])
def test_drafts_by_rule_are_those_alone(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, graphs: str
) -> None:
    """With graphs that skip passes, so that alone as many are launched as together."""
    decoder = decoder_with(mode, monkeypatch, graphs)
    together = decoder.generate(PROMPTS, Independent(), max_new_tokens=NEW_TOKENS).per_sequence
    seen = set()
    for prompt, one in zip(PROMPTS, together, strict=True):
        alone = decoder.generate(prompt, Independent(), max_new_tokens=NEW_TOKENS).statistics
        assert uncut(one.cycles, 0) == uncut(alone.cycles, 0)
        seen |= {cycle.params for cycle in one.cycles}
    # Some cycles drafted nothing, alone or beside others that did.
    assert len(seen) > 2
    assert TreeParams(1) in seen


@pytest.mark.parametrize("name", ["constant", "by rule"])
def test_a_sequence_that_ends_early_does_not_disturb_the_others(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    texts = [expected(tuple(prompt)) for prompt in PROMPTS]
    token = next(token for token in texts[1][2:6] if token not in texts[0][:8])
    ends = {"eos_token_id": token}
    decoder = decoder_with(mode, monkeypatch, "graphs")
    for _ in range(2):
        output = decoder.generate(
            PROMPTS, POLICIES[name](), max_new_tokens=NEW_TOKENS, eos_token_id=token
        )
        check_texts(output, **ends)
        lengths = [len(new_ids) for new_ids in output.new_ids]
        assert min(lengths) <= 6
        assert max(lengths) >= 8


class Undrafted(Clockless):
    """Never drafts, but verifies looked-up tokens."""

    def choose(self, state) -> DraftPlan:
        super().choose(state)
        return DraftPlan(None, 2)


def test_rows_that_wait_for_the_head(mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no slot drafts, the head does not run, until no more rows can wait."""
    monkeypatch.setattr(captured_cycle, "MOST_PENDING", 10)
    decoder = decoder_with(mode, monkeypatch, "graphs")
    extended = []
    original = captured_cycle.CapturedCycle.extend
    monkeypatch.setattr(
        captured_cycle.CapturedCycle,
        "extend",
        lambda self: extended.append(self.most_waiting) or original(self),
    )
    for policy in (Undrafted(limit=LIMIT, lookup_tokens=3), POLICIES["by rule"]()):
        output = decoder.generate(PROMPTS, policy, max_new_tokens=NEW_TOKENS)
        check_texts(output)
        if isinstance(policy, Undrafted):
            assert 2 <= len(extended) < max(len(one.cycles) for one in output.per_sequence) / 2
            # Four rows can be accepted in a cycle.
            assert max(extended) > 10 - 4
            assert any(cycle.lookup_accepted for cycle in output.statistics.cycles)


def test_groups_with_empty_slots(mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_slots, "MOST_SLOTS", 2)
    decoder = decoder_with(mode, monkeypatch, "graphs")
    for name in ("constant", "by rule", "limited"):
        check_texts(decoder.generate(PROMPTS, POLICIES[name](), max_new_tokens=NEW_TOKENS))
    assert lockstep_of(decoder).slots == 2


@pytest.mark.parametrize("name", ["constant", "by rule"])
def test_nan_in_the_caches_does_not_spread(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No row is read that was not written for this text."""
    decoder = decoder_with(mode, monkeypatch, "graphs")
    for _ in range(2):
        check_texts(decoder.generate(PROMPTS, POLICIES[name](), max_new_tokens=NEW_TOKENS))
        lockstep = lockstep_of(decoder)
        for cache in (lockstep._cache, lockstep._draft.cache):
            cache.data.fill_(torch.nan)


def test_windows_and_classes_of_columns(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_cycle, "LEAST_COLUMNS", 8)
    monkeypatch.setattr(captured_cycle, "MOST_PENDING", 16)
    shape = {"family": "mistral", "sliding_window": 9}
    decoder = decoder_with(
        mode, monkeypatch, "graphs", shape=MODEL | shape, head_changes={"sliding_window": 5}
    )
    for name in ("constant", "by rule"):
        output = decoder.generate(PROMPTS, POLICIES[name](), max_new_tokens=NEW_TOKENS)
        check_texts(output, shape=tuple(shape.items()))
    columns = {key[-1] for key in lockstep_of(decoder).cycle.calls._used if key[0] == "extend"}
    assert len(columns) >= 2


def test_what_is_decoded_one_after_another(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other policies, and sampling."""
    decoder = decoder_with(mode, monkeypatch)
    policies = {
        "fused": FusedPolicy(mlp_policy(32), action_cache_steps=3),
        "own": Alternating(),
        "plan": DraftPlan(TreeParams(6, 1, 3), 3),
    }
    for policy in policies.values():
        output = decoder.generate(PROMPTS, policy, max_new_tokens=3)
        check_texts(output, max_new_tokens=3)
    decoder.generate(PROMPTS, TreeParams(6, 1, 3), max_new_tokens=2, temperature=0.8)
    assert decoder._sessions.slots._idle is None


def test_one_prompt_is_a_session(mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_with(mode, monkeypatch)
    decoder.generate(PROMPTS[0], TreeParams(6, 1, 3), max_new_tokens=2)
    assert decoder._sessions.slots._idle is None
