"""The order of a step, against a small engine that keeps its books as vLLM does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eaglerl_vllm.adaptive_proposer import AdaptiveProposer, StopDraftingError
from eaglerl_vllm.draft_tokens import Drafted
from eaglerl_vllm.fixed_chains import FixedChains
from eaglerl_vllm.statistics import Statistics
from eaglerl_vllm.unread_rows import Rows

from eaglerl.policies import BatchChainPolicy

from .choosers import EverySecondStep, RandomChains
from .test_unread_rows import BLOCK, WIDTH, Metadata

TOKENS, END, LONGEST = 4, 99, 60


class Parameters(SimpleNamespace):
    """vLLM's SamplingParams, as far as they are read."""

    def __init__(self, **changed: Any) -> None:
        given = {"max_tokens": 30, "stop_token_ids": [], "all_stop_token_ids": {END}}
        given["ignore_eos"] = False
        super().__init__(**(given | changed))


class Engine:
    """Requests whose texts are fixed, a head that knows three quarters of them, and the books."""

    def __init__(self, adaptive: AdaptiveProposer, seed: int) -> None:
        self.adaptive = adaptive
        self.source = np.random.default_rng(seed)
        self.truth: dict[str, list[int]] = {}
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.drafts: dict[str, list[int]] = {}
        self.read: dict[str, list[int]] = {}
        self.verified: list[int] = []
        self.requests: dict[str, Any] = {}

    def add(self, name: str, prompt: int, **parameters: Any) -> None:
        period = self.source.integers(0, 20, int(self.source.integers(3, 12))).tolist()
        text = (period * 30)[: LONGEST + 60]
        self.truth[name], self.tokens[name] = text, text[:prompt]
        self.computed[name], self.drafts[name], self.read[name] = 0, [], []
        params = Parameters(**parameters)
        self.requests[name] = SimpleNamespace(sampling_params=params, num_prompt_tokens=prompt)

    def step(self, chunk: int = 7) -> None:
        names = [*self.requests]
        counts, scheduled, emitted = {}, {}, {}
        for name in names:
            drafts = self.drafts[name]
            left = len(self.tokens[name]) + len(drafts) - self.computed[name]
            counts[name] = min(left, max(chunk, 1 + len(drafts)))
            if drafts:
                scheduled[name] = drafts
            whole = self.computed[name] + counts[name] >= len(self.tokens[name])
            emitted[name] = self._accepted(name) if whole else []
        self.verified.append(sum(counts.values()))
        self._propose(names, counts, scheduled, emitted)
        for name in names:
            rejected = (
                0 if not emitted[name] else 1 + len(scheduled.get(name, [])) - len(emitted[name])
            )
            self.computed[name] += counts[name] - rejected
            self.tokens[name] += emitted[name]
            done = len(self.tokens[name]) - self.requests[name].num_prompt_tokens
            if done >= self.requests[name].sampling_params.max_tokens:
                assert self.drafts[name] == []
                del self.requests[name]

    def _accepted(self, name: str) -> list[int]:
        truth = self.truth[name][len(self.tokens[name]) :]
        count = 0
        while count < len(self.drafts[name]) and self.drafts[name][count] == truth[count]:
            count += 1
        return truth[: count + 1]

    def _propose(self, names: list[str], counts: dict, scheduled: dict, emitted: dict) -> None:
        adaptive = self.adaptive
        capacity = np.zeros((len(names), LONGEST + 60), np.int32)
        for index, name in enumerate(names):
            capacity[index, : len(self.tokens[name])] = self.tokens[name]
        batch = SimpleNamespace(
            req_ids=names, vocab_size=100, token_ids_cpu=capacity,
            num_tokens_no_spec=np.array([len(self.tokens[name]) for name in names]),
            num_computed_tokens_cpu=np.array([self.computed[name] for name in names]),
        )  # fmt: skip
        mask = np.array([not emitted[name] for name in names])
        runner = SimpleNamespace(
            input_batch=batch, requests=self.requests, max_model_len=LONGEST + 60,
            discard_request_mask=SimpleNamespace(np=mask),
        )  # fmt: skip
        sampled = torch.full((len(names), TOKENS + 1), -1)
        for index, name in enumerate(names):
            new = emitted[name] or [3]  # of a part of a prompt, to be discarded
            sampled[index, : len(new)] = torch.tensor(new)
        output = SimpleNamespace(
            num_scheduled_tokens=counts, scheduled_spec_decode_tokens=scheduled,
            total_num_scheduled_tokens=sum(counts.values()), num_spec_tokens_to_schedule=TOKENS,
        )  # fmt: skip
        adaptive.begin(runner, output, sampled)
        rows, rejected = self._rows(names, counts, scheduled, emitted)
        read = adaptive.rows_to_read(rows, rejected, BLOCK)
        if read is not None:
            self._note_read(names, read, rejected)
            if adaptive.drafting:
                self._draft(names, emitted)
        adaptive.select()
        chains = adaptive.finish()
        self.drafts = {name: chains[index] for index, name in enumerate(names)}

    def _draft(self, names: list[str], emitted: dict) -> None:
        for level in range(TOKENS):
            places = [len(self.tokens[name]) + len(emitted[name]) + level for name in names]
            right = [self.truth[name][place] for name, place in zip(names, places, strict=True)]
            known = self.source.random(len(names)) < 0.75
            token_ids = torch.tensor([t if k else 50 for t, k in zip(right, known, strict=True)])
            try:
                self.adaptive.look(Drafted(token_ids, torch.full((len(names),), -0.3)))
            except StopDraftingError:
                return
        raise AssertionError("the longest chain ends the draft")

    def _rows(self, names: list[str], counts: dict, scheduled: dict, emitted: dict) -> tuple:
        positions, token_ids, rejected = [], [], []
        for name in names:
            text = self.tokens[name] + scheduled.get(name, [])
            own = range(self.computed[name], self.computed[name] + counts[name])
            positions += own
            token_ids += [text[place] for place in own]
            lost = 1 + len(scheduled.get(name, [])) - len(emitted[name]) if emitted[name] else 0
            rejected.append(lost)
        starts = torch.tensor([0, *np.cumsum([*counts.values()])], dtype=torch.int32)
        blocks = torch.arange(len(names) * 40, dtype=torch.int32).reshape(len(names), 40)
        metadata = Metadata(
            starts.clone(), starts.clone(), len(names), len(positions), max(counts.values()),
            blocks, torch.zeros(len(positions), dtype=torch.int64),
        )  # fmt: skip
        features = torch.tensor(positions, dtype=torch.float32)[:, None].repeat(1, WIDTH)
        last = starts[1:] - 1 - torch.tensor(rejected, dtype=torch.int32)
        rows = Rows(torch.tensor(token_ids), torch.tensor(positions), features, last, metadata)
        return rows, torch.tensor(rejected)

    def _note_read(self, names: list[str], rows: Rows, rejected: torch.Tensor) -> None:
        """No position is left out, and every token is the text's."""
        starts = rows.metadata.query_start_loc_cpu.tolist()
        for index, name in enumerate(names):
            end = starts[index + 1] - int(rejected[index])
            own = rows.positions[starts[index] : end].tolist()
            assert own == [*range(len(self.read[name]), len(self.read[name]) + len(own))]
            self.read[name] += rows.token_ids[starts[index] : end].tolist()
            assert self.read[name] == self.truth[name][: len(self.read[name])]


@pytest.mark.parametrize("policy", [BatchChainPolicy, RandomChains, EverySecondStep, FixedChains])
@pytest.mark.parametrize("shared_block", [None, 8])
def test_texts_are_right_and_the_head_reads_all_of_them(policy: Any, shared_block: Any) -> None:
    statistics = Statistics()
    adaptive = AdaptiveProposer(
        policy(4, TOKENS), 4, TOKENS, most_rows=200, shared_block=shared_block,
        statistics=statistics,
    )  # fmt: skip
    engine = Engine(adaptive, seed=1)
    for number in range(12):
        engine.add(f"r{number}", 5 + 3 * number, max_tokens=8 + 2 * number)
        for _ in range(4):
            if engine.requests:
                engine.step()
        while len(engine.requests) > 3:
            engine.step()
    while engine.requests:
        engine.step()
    for name, tokens in engine.tokens.items():
        assert tokens == engine.truth[name][: len(tokens)]
    accepted = {source: statistics.value(f"accepted_{source}") for source in ("head", "lookup")}
    assert sum(accepted.values()) > 40
    assert (accepted["lookup"] > 0) == (policy in (BatchChainPolicy, RandomChains))
    # All slots are free again.
    assert len(adaptive._requests._free) >= 4 - 1


def test_a_request_without_a_slot_decodes_plainly() -> None:
    adaptive = AdaptiveProposer(
        FixedChains(2, TOKENS), 2, TOKENS, most_rows=200, shared_block=None, statistics=Statistics()
    )
    engine = Engine(adaptive, seed=2)
    for number in range(3):
        engine.add(f"r{number}", 5, max_tokens=12)
    engine.step()
    assert [len(chain) for chain in engine.drafts.values()] == [TOKENS, TOKENS, 0]
    while engine.requests:
        engine.step()
    assert all(len(tokens) >= 17 for tokens in engine.tokens.values())


def test_what_ends_gets_no_draft() -> None:
    adaptive = AdaptiveProposer(
        FixedChains(3, TOKENS), 3, TOKENS, most_rows=200, shared_block=None, statistics=Statistics()
    )
    engine = Engine(adaptive, seed=3)
    engine.add("short", 5, max_tokens=3)
    engine.add("stopped", 5, all_stop_token_ids={*range(100)})
    engine.add("going", 5, all_stop_token_ids={*range(100)}, ignore_eos=True)
    engine.step()
    assert {name: len(chain) for name, chain in engine.drafts.items()} == {
        "short": 1, "stopped": 0, "going": TOKENS,
    }  # fmt: skip
