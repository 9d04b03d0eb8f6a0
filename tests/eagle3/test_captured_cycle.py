"""Cycles whose parts are captured in graphs: text, waits, and what is left to launch."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch

from eaglerl.eagle3 import FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.captured import captured_cycle, graphed_calls
from eaglerl.eagle3.captured.captured_cycle import CapturedCycle, columns_for
from eaglerl.eagle3.captured.graphed_calls import GraphedCalls
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.tree.prompt_lookup import ContextLookup
from eaglerl.eagle3.tree.ruled_draft import RuledDraft

from .emulated_device import DEVICE, EmulatedDevice, EmulatedTensor
from .emulated_graph import EmulatedGraph, SkippingGraph
from .test_device_loop import (
    HEAD,
    MODEL,
    NEW_TOKENS,
    PROMPT,
    Alternating,
    emulated_decoder,
    expected_sequence,
    mlp_policy,
)
from .test_limited_policy import Limited, limits
from .test_ruled_policy import LIMIT, Clockless
from .tiny import tiny_head, tiny_model

POLICIES = {
    "constant": lambda: TreeParams(12, 2, 4),
    "alternating": Alternating,
    "by rule": lambda: Clockless(limit=LIMIT, lookup_tokens=3),
    "limited": lambda: Limited(limits()),
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


@pytest.fixture
def skipping(mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    monkeypatch.setattr(
        "eaglerl.eagle3.session_factory.graphs_on", lambda _: partial(SkippingGraph, mode)
    )
    return mode


def graphs_of(decoder: SpeculativeDecoder) -> GraphedCalls:
    (caches,) = decoder._sessions.pool.idle
    return caches.captured.calls


def generate(decoder: SpeculativeDecoder, policy: object, **options):
    return decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS, **options)


@pytest.mark.parametrize("name", POLICIES)
def test_text_and_waits(mode: EmulatedDevice, name: str) -> None:
    decoder = emulated_decoder(mode, cuda_graphs=True)
    policy = POLICIES[name]()
    fused = fused_part(policy)
    if fused is not None:
        # Binding reads the weights on the device, once.
        fused.bind(decoder.draft_head, decoder.draft_runner.reduce)
    before = 1 if fused is None else 2
    for _ in range(2):
        mode.waits.clear()
        output = generate(decoder, policy)
        assert output.sequences[0].tolist() == expected_sequence()
        assert mode.waits.total() == output.statistics.num_cycles + before, mode.waits
    graphs = graphs_of(decoder)
    assert graphs.replays > graphs.captures > 0


@pytest.mark.parametrize("name", ["constant", "by rule", "limited", "features"])
def test_a_cycle_launches_next_to_nothing_else(mode: EmulatedDevice, name: str) -> None:
    """Beside the graphs: what the host says, the report, and the last features."""
    decoder = emulated_decoder(mode, cuda_graphs=True)
    policy = POLICIES[name]()
    for _ in range(3):
        generate(decoder, policy)
    captures = graphs_of(decoder).captures
    calls = []
    with decoder.start(PROMPT, policy, max_new_tokens=NEW_TOKENS) as generation:
        # Reads the prompt; the cycle after it extends the head by the prompt, in no graph.
        generation.advance()
        generation.advance()
        while generation.finish_reason is None:
            mode.calls.clear()
            session = generation.session
            follows = session._captured is not None
            generation.advance()
            # A cycle that drafts nothing is not captured, and the next one takes over its text.
            if follows and session._captured is not None:
                calls.append(mode.calls - Counter(dict.fromkeys(_VIEWS, 1000)))
    assert graphs_of(decoder).captures == captures
    copies = {"aten.to": 1, "aten.clone": 1} | (
        {"aten.copy_": 1} if name in ("by rule", "limited") else {}
    )
    assert calls == [copies] * len(calls)
    assert calls


_VIEWS = ("aten.slice", "aten.select")


def test_the_trees_are_those_of_cycles_without_graphs(mode: EmulatedDevice) -> None:
    cycles = []
    for captured in (False, True):
        decoder = emulated_decoder(mode, cuda_graphs=captured)
        policy = Clockless(limit=LIMIT, lookup_tokens=3)
        runs = [generate(decoder, policy).statistics.cycles for _ in range(3)]
        cycles.append([[(c.params, c.rows, c.token_ids, c.accepted) for c in run] for run in runs])
    assert cycles[0] == cycles[1]


def test_passes_behind_the_end_are_skipped(skipping: EmulatedDevice) -> None:
    """By a conditional node: all passes are launched, and each cycle drafts as deep as it pays."""
    decoder = emulated_decoder(skipping, cuda_graphs=True)
    policy = Clockless(limit=LIMIT, lookup_tokens=3)
    depths = set()
    for _ in range(3):
        skipping.calls.clear()
        output = generate(decoder, policy)
        assert output.sequences[0].tolist() == expected_sequence()
        depths |= {cycle.params.depth for cycle in output.statistics.cycles if cycle.draft_seconds}
    assert len(depths) > 1
    assert skipping.calls["skipped"] > 0


def test_the_device_looks_up_itself(mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its table proposes is what the host's index of the text does, cycle by cycle."""
    proposed = []
    original = CapturedCycle.grow_by_rule

    def grow(self: CapturedCycle, draft: RuledDraft, *arguments: object) -> DeviceTree:
        match, counts, tokens = (part.data_on_host for part in self._tables.table.looked_up)
        (state,) = (state() for state in self._states)
        text = ContextLookup(state.token_ids)
        lookup = text.propose(draft.sizes.lookup_tokens)
        assert int(match) == lookup.match_length
        assert tokens[0, : int(counts)].tolist() == [*lookup.token_ids]
        proposed.append(len(lookup.token_ids))
        return original(self, draft, *arguments)

    monkeypatch.setattr(CapturedCycle, "grow_by_rule", grow)
    decoder = emulated_decoder(mode, cuda_graphs=True)
    for tokens in (3, 4, 3):
        policy = Clockless(limit=LIMIT, lookup_tokens=tokens)
        output = generate(decoder, policy)
        assert output.sequences[0].tolist() == expected_sequence()
    assert sum(count > 0 for count in proposed) > 5


def test_draws_are_those_of_cycles_without_graphs(mode: EmulatedDevice) -> None:
    texts = []
    for captured in (False, True):
        decoder = emulated_decoder(mode, cuda_graphs=captured)
        runs = []
        for seed in range(2):
            torch.manual_seed(seed)
            policy = Clockless(limit=LIMIT, lookup_tokens=3)
            mode.waits.clear()
            output = generate(decoder, policy, temperature=0.8, top_p=0.9)
            assert mode.waits.total() == output.statistics.num_cycles + 1, mode.waits
            runs.append(output.sequences.tolist())
        texts.append(runs)
    assert texts[0] == texts[1]
    assert graphs_of(decoder).replays > 0


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.9, "top_k": 5},
        pytest.param({"min_p": 0.1, "epsilon_cutoff": 0.01}, marks=pytest.mark.slow),
        pytest.param({"typical_p": 0.9}, marks=pytest.mark.slow),
        pytest.param({"temperature": 1e-35}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_choices_by_draws_are_captured(mode: EmulatedDevice, options: dict) -> None:
    """One launch draws, and all texts of equal settings share the graphs of the choices."""
    texts = []
    for graphs in (False, True):
        decoder = emulated_decoder(mode, cuda_graphs=graphs)
        runs = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            output = generate(decoder, TreeParams(12, 2, 4), do_sample=True, **options)
            runs.append(output.sequences.tolist())
        texts.append(runs)
    assert texts[0] == texts[1]
    assert texts[1][0] == texts[1][2]
    keys = [key for key in graphs_of(decoder)._graphs if key[0] == "accept"]
    assert len({key[-1] for key in keys}) == 1
    assert "temperature" in options or texts[1][0] != texts[1][1]


def test_a_sampled_cycle_launches_its_draw(mode: EmulatedDevice) -> None:
    decoder = emulated_decoder(mode, cuda_graphs=True)
    options = {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": NEW_TOKENS}
    for _ in range(3):
        decoder.generate(PROMPT, TreeParams(12, 2, 4), **options)
    calls = []
    with decoder.start(PROMPT, TreeParams(12, 2, 4), **options) as generation:
        generation.advance()
        generation.advance()
        while generation.finish_reason is None:
            mode.calls.clear()
            generation.advance()
            calls.append(mode.calls - Counter(dict.fromkeys(_VIEWS, 1000)))
    # The last cycles draft less.
    expected = {"aten.to": 1, "aten.clone": 1, "aten.exponential_": 1}
    assert calls[0] == expected
    assert calls[: len(calls) // 2] == [expected] * (len(calls) // 2)


@pytest.mark.parametrize("family", ["mistral", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_windows_and_classes_of_columns(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Windows of target and head slide over many classes of columns."""
    monkeypatch.setattr(captured_cycle, "LEAST_COLUMNS", 8)
    monkeypatch.setattr(captured_cycle, "MOST_PENDING", 16)
    shape = MODEL | {"family": family}
    head = {"sliding_window": 5}
    if family == "mistral":
        shape["sliding_window"] = 9
    ids = torch.tensor([PROMPT])
    mask = torch.ones_like(ids)
    expected = tiny_model(**shape).generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=36, pad_token_id=0
    )
    decoder = emulated_decoder(mode, shape, head, cuda_graphs=True)
    for policy in (TreeParams(12, 2, 4), Clockless(limit=LIMIT, lookup_tokens=3)):
        output = decoder.generate(PROMPT, policy, max_new_tokens=36)
        assert output.sequences.tolist() == expected.tolist()
    columns = {key[-1] for key in graphs_of(decoder)._graphs if key[0] == "extend"}
    assert len(columns) >= 2


def test_texts_in_turns(mode: EmulatedDevice) -> None:
    """Each text has its own caches, and so its own graphs; one that ends leaves them to others."""
    decoder = emulated_decoder(mode, cuda_graphs=True)
    for _ in range(2):
        begun = [
            decoder.start(PROMPT, policy, max_new_tokens=NEW_TOKENS)
            for policy in (TreeParams(12, 2, 4), Clockless(limit=LIMIT, lookup_tokens=3))
        ]
        while unfinished := [one for one in begun if one.finish_reason is None]:
            for generation in unfinished:
                generation.advance()
        for generation in begun:
            assert [*PROMPT, *generation.new_ids] == expected_sequence()
    assert len(decoder._sessions.pool.idle) == 2


def test_a_grown_cache_begins_without_graphs(mode: EmulatedDevice) -> None:
    decoder = emulated_decoder(mode, cuda_graphs=True)
    generate(decoder, TreeParams(12, 2, 4))
    (caches,) = decoder._sessions.pool.idle
    assert caches.captured is not None
    caches.with_room(caches.capacity + 1)
    assert caches.captured is None
    assert generate(decoder, TreeParams(12, 2, 4)).sequences[0].tolist() == expected_sequence()


def test_too_many_graphs_are_forgotten(
    mode: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_calls, "MOST_GRAPHS", 5)
    decoder = emulated_decoder(mode, cuda_graphs=True)
    for _ in range(3):
        for name in ("alternating", "by rule"):
            output = generate(decoder, POLICIES[name]())
            assert output.sequences[0].tolist() == expected_sequence()
    graphs = graphs_of(decoder)
    assert graphs.captures > 8
    assert graphs.replays > graphs.captures


def test_nan_behind_the_text_does_not_spread(mode: EmulatedDevice) -> None:
    """Masked rows are multiplied by 0, but NaN times 0 is NaN: a text begins with zeros."""
    decoder = emulated_decoder(mode, cuda_graphs=True)
    for _ in range(2):
        generate(decoder, TreeParams(12, 2, 4))
        (caches,) = decoder._sessions.pool.idle
        for cache in (caches.target, caches.draft.cache):
            cache.data.fill_(torch.nan)
    assert generate(decoder, TreeParams(12, 2, 4)).sequences[0].tolist() == expected_sequence()


def test_processors_that_read_the_text_run_without_graphs(mode: EmulatedDevice) -> None:
    options = {"max_new_tokens": NEW_TOKENS, "no_repeat_ngram_size": 3}
    ids = torch.tensor([PROMPT])
    expected = tiny_model(**MODEL).generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=False, **options
    )
    decoder = emulated_decoder(mode, cuda_graphs=True)
    with pytest.warns(UserWarning, match="run on the host"):
        output = decoder.generate(PROMPT, TreeParams(12, 2, 4), **options)
    assert output.sequences.tolist() == expected.tolist()
    (caches,) = decoder._sessions.pool.idle
    assert caches.captured is None


def test_a_cpu_has_no_graphs() -> None:
    target = make_target(tiny_model(**MODEL))
    with pytest.raises(ValueError, match="cuda_graphs needs a target on a CUDA device"):
        SpeculativeDecoder(target, tiny_head(target, **HEAD), cuda_graphs=True)


def test_graphs_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before anything is decoded: acceptance in a graph is a kernel of Triton's."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="cuda_graphs on a device needs Triton"):
        graphed_calls.graphs_on(torch.device("cuda"))


def test_what_a_graph_cannot_do_raises(mode: EmulatedDevice) -> None:
    """The emulation itself: a capture has no effect, and refuses what CUDA refuses."""
    value = EmulatedTensor(torch.tensor([1, 2, 3]))
    graph = EmulatedGraph(mode)
    doubled = graph.capture(lambda: value.mul_(2) + 1)
    assert value.data_on_host.tolist() == [1, 2, 3]
    graph.replay()
    graph.replay()
    assert value.data_on_host.tolist() == [4, 8, 12]
    assert doubled.data_on_host.tolist() == [5, 9, 13]
    with pytest.raises(AssertionError):
        EmulatedGraph(mode).capture(lambda: value.cpu())
    with pytest.raises(RuntimeError, match="two devices"):
        EmulatedGraph(mode).capture(lambda: torch.tensor([1, 2]).to(DEVICE))


def test_classes_of_columns() -> None:
    asked = [1, 256, 257, 385, 513, 769, 5000, 5001]
    assert [columns_for(rows, 5000) for rows in asked] == [
        256,
        256,
        384,
        512,
        768,
        1024,
        5000,
        None,
    ]
