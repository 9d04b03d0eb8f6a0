"""A policy that decides on a device by its rule: text, waits, trees and what the host learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eaglerl.eagle3 import SpeculativeDecoder, TreeParams
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.policy import StepResult
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.eagle3.tree.selecting_drafter import SelectingDrafter, SlotDraft, rows_for
from eaglerl.ops.node_selection import SelectionSizes, rule_layout
from eaglerl.policies import AutoPolicy

from .emulated_device import EmulatedDevice
from .test_device_loop import HEAD, MODEL, NEW_TOKENS, PROMPT, emulated_decoder, expected_sequence
from .tiny import tiny_head, tiny_model

LIMIT = TreeParams(12, 2, 3)


def with_made_up_times(result: StepResult) -> StepResult:
    rows, passes = result.rows, result.params.depth + 1 if result.draft_seconds else 0
    return replace(result, verify_seconds=1e-3 * (1 + 0.05 * rows), draft_seconds=2e-4 * passes)


class Clockless(AutoPolicy):
    """Learns costs from made-up times, so that its decisions are the same in every run."""

    def observe(self, result: StepResult) -> None:
        super().observe(with_made_up_times(result))


def host_decoder() -> SpeculativeDecoder:
    target = make_target(tiny_model(**MODEL), backend="transformers")
    return SpeculativeDecoder(target, tiny_head(target, **HEAD), draft_dtype="float32")


def test_same_text_and_one_wait_a_cycle() -> None:
    policy = Clockless(limit=LIMIT, lookup_tokens=3)
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        mode.waits.clear()
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        waits = mode.waits.copy()
    cycles = output.statistics.cycles
    assert output.sequences[0].tolist() == expected_sequence()
    assert waits.total() == len(cycles) + 1, waits
    assert sum(cycle.accepted for cycle in cycles) >= 3
    # Drafts of different sizes were chosen, and some cycles drafted nothing.
    assert len({cycle.params for cycle in cycles}) > 2


def test_the_trees_are_those_of_host_memory() -> None:
    """The same loop on the CPU's own tensors, where native code and not an emulation decides."""
    cycles = []
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        policy = Clockless(limit=LIMIT, lookup_tokens=3)
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        cycles.append(output.statistics.cycles)
    decoder = host_decoder()
    with pytest.MonkeyPatch.context() as patch:
        original = DecodingSession.__init__
        patch.setattr(
            DecodingSession,
            "__init__",
            lambda self, *arguments, **options: original(
                self, *arguments, **(options | {"on_device": True})
            ),
        )
        policy = Clockless(limit=LIMIT, lookup_tokens=3)
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        cycles.append(output.statistics.cycles)
    names = ("params", "accepted", "lookup_accepted", "rows")
    first, second = [
        [tuple(getattr(cycle, name) for name in names) for cycle in each] for each in cycles
    ]
    assert first == second


def test_sampling_is_reproducible_and_waits_once() -> None:
    texts = []
    for _ in range(2):
        with EmulatedDevice() as mode:
            decoder = emulated_decoder(mode)
            torch.manual_seed(5)
            mode.waits.clear()
            policy = Clockless(limit=LIMIT, lookup_tokens=3)
            output = decoder.generate(
                PROMPT, policy, max_new_tokens=NEW_TOKENS, temperature=0.8, top_p=0.9
            )
            assert mode.waits.total() == output.statistics.num_cycles + 1, mode.waits
        texts.append(output.sequences.tolist())
    assert texts[0] == texts[1]


def test_processors_that_read_the_text() -> None:
    """The host accepts for the device, and the policy learns all the same."""
    options = {"max_new_tokens": NEW_TOKENS, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2}
    ids = torch.tensor([PROMPT])
    model = tiny_model(**MODEL)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    policy = Clockless(limit=LIMIT, lookup_tokens=3)
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        with pytest.warns(UserWarning, match="processors that read the text run on the host"):
            output = decoder.generate(PROMPT, policy, **options)
    assert output.sequences.tolist() == expected.tolist()
    assert policy.cost.cycles == output.statistics.num_cycles


def test_few_passes_do_not_cut_looked_up_tokens() -> None:
    """The passes are those that the cycle before needed; a chain from the text may be longer."""
    target = make_target(tiny_model(**MODEL), backend="transformers")
    runner = ModuleDraft(tiny_head(target, **HEAD), capacity=8)
    drafter = SelectingDrafter(runner, torch.device("cpu"))
    place = rule_layout(SelectionSizes(LIMIT.top_k, LIMIT.depth, LIMIT.total_tokens, 6))
    sent = []

    class Ruled:
        limit, lookup_tokens, most_rows = LIMIT, 6, LIMIT.total_tokens

        def selection_rule(self, sizes: SelectionSizes) -> np.ndarray:
            return np.full(rule_layout(sizes)["words"], 100, np.int32)

    for most_depth, most_levels in ((LIMIT.depth, None), (LIMIT.depth, None), (0, 1), (2, 4)):
        lookup = Lookup(3, tuple(range(6)))
        wanted = SlotDraft(1, Ruled(), most_depth, lookup, TotalTime(), most_levels)
        draft, depth = drafter.begin([wanted])
        sent.append((depth, int(draft._words[0, 3 + 6 + 4 + place["most_levels"]])))
        # A draft that ended after its first level: one pass is launched the next time.
        drafter.learn(DeviceDraft(3, 1, depth + 1, np.zeros(0), [], 0, 0, np.zeros(0)))
    assert sent == [(2, 100), (0, 100), (0, 1), (1, 4)]


def test_row_classes() -> None:
    assert [rows_for(rows) for rows in (1, 4, 5, 17, 256)] == [4, 4, 8, 32, 256]
