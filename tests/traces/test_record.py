"""Recorded acceptance lengths against live decoding."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglerl.eagle3 import DecodingSession, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.traces.recording import Prompt, RecordOptions, record
from eaglerl.traces.replay import DraftReplay
from eaglerl.traces.token_paths import pool_ranks
from eaglerl.traces.trace_set import ABSENT, Trace, TraceSet

from ..eagle3.tree.test_lookup import search
from .tiny import VOCAB, tiny_decoder, tiny_prompts

OPTIONS = RecordOptions(top_ks=(1, 2, 4), max_depth=4, max_new_tokens=14, slots=4)


def random_actions(count: int, seed: int = 0) -> list[TreeParams]:
    draw = random.Random(seed)
    actions = []
    for _ in range(count):
        width, depth = draw.choice(OPTIONS.top_ks), draw.randrange(OPTIONS.max_depth + 1)
        pool = width + depth * width**2
        actions.append(TreeParams(draw.randint(1, pool + 1), depth, width))
    return actions


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return tiny_decoder()


@pytest.fixture(scope="module")
def traces(decoder: SpeculativeDecoder, tmp_path_factory: pytest.TempPathFactory) -> TraceSet:
    folder = tmp_path_factory.mktemp("traces")
    return record(decoder, tiny_prompts(5), folder, options=OPTIONS)


def live_length(
    decoder: SpeculativeDecoder, session_length: int, prefix: list[int], root: int, tree: TreeParams
) -> int:
    session = decoder.new_session(GreedyVerifier(), session_length)
    assert session.prefill(prefix) == root
    return len(session.step(tree).token_ids)


def check_positions(decoder: SpeculativeDecoder, trace: Trace, actions: list[TreeParams]) -> int:
    lengths = trace.accepted_lengths(actions)
    tokens = trace.prompt_ids.tolist() + trace.continuation_ids.tolist()
    prompt = len(trace.prompt_ids)
    for position in range(len(trace)):
        prefix, root = tokens[: prompt + position], tokens[prompt + position]
        live = [live_length(decoder, len(tokens), prefix, root, tree) for tree in actions]
        assert lengths[position].tolist() == live
    return int(lengths.max())


def test_lengths_are_those_of_live_decoding(decoder: SpeculativeDecoder, traces: TraceSet) -> None:
    longest = [
        check_positions(decoder, trace, random_actions(12, seed))
        for seed, trace in enumerate(traces)
    ]
    assert len(traces) == 5
    # Otherwise nothing but rejections was compared.
    assert max(longest) > 2


@pytest.mark.slow
def test_lengths_are_those_of_live_decoding_for_200_actions(
    decoder: SpeculativeDecoder, traces: TraceSet
) -> None:
    for trace in traces:
        check_positions(decoder, trace, random_actions(200))


def test_the_continuation_is_greedy(decoder: SpeculativeDecoder, traces: TraceSet) -> None:
    for trace in traces:
        output = decoder.generate(trace.prompt_ids.tolist(), max_new_tokens=14, eos_token_id=[])
        expected = output.sequences[0, len(trace.prompt_ids) :].tolist()
        assert trace.continuation_ids[:14].tolist() == expected
        assert len(trace) == 13
        assert len(trace.continuation_ids) == 14 + 12


class RowByRow:
    """A draft that takes in every row behind the prompt by a pass of its own."""

    def __init__(self, draft, prompt: int) -> None:
        self._draft, self._prompt = draft, prompt

    def __getattr__(self, name: str):
        return getattr(self._draft, name)

    def extend(self, token_ids, features, slot: int = 0, **options):
        done = self._draft.lengths[slot]
        first = max(self._prompt - done, 0)
        if first:
            result = self._draft.extend(token_ids[:first], features[:first], slot, **options)
        for row in range(first, len(token_ids)):
            one = slice(row, row + 1)
            result = self._draft.extend(token_ids[one], features[one], slot, **options)
        return result


def live_disagreements(
    decoder: SpeculativeDecoder, trace: Trace, actions: list[TreeParams], *, row_by_row: bool
) -> tuple[int, int]:
    """Cycles of a live run under changing trees whose length is not the trace's, and all cycles."""
    lengths = trace.accepted_lengths(actions)
    prompt = len(trace.prompt_ids)
    capacity = prompt + len(trace.continuation_ids) + 512
    cache, draft = decoder.target.new_cache(capacity), decoder.draft_runner.with_own_cache(capacity)
    if row_by_row:
        draft = RowByRow(draft, prompt)
    wrong = cycles = 0
    for turn in range(4):
        session = DecodingSession(decoder.target, draft, GreedyVerifier(), cache)
        session.prefill(trace.prompt_ids.tolist())
        position = 0
        while position < len(trace):
            action = (cycles + turn) % len(actions)
            emitted = session.step(actions[action]).token_ids
            wrong += len(emitted) != lengths[position, action]
            cycles += 1
            position += len(emitted)
    return wrong, cycles


def test_int8_is_replayed_with_the_scales_of_live_passes(tmp_path: Path) -> None:
    decoder = tiny_decoder("int8")
    traces = record(decoder, tiny_prompts(5), tmp_path, options=OPTIONS)
    actions = random_actions(40)
    counts = [live_disagreements(decoder, t, actions, row_by_row=True) for t in traces]
    assert traces.header["draft_dtype"] == "int8"
    assert sum(wrong for wrong, _ in counts) == 0
    assert sum(cycles for _, cycles in counts) > 100


def test_features_are_the_heads_fc_of_the_last_known_token(
    decoder: SpeculativeDecoder, traces: TraceSet
) -> None:
    trace = traces[0]
    tokens = trace.prompt_ids.tolist() + trace.continuation_ids.tolist()
    for position in (0, 5):
        session = decoder.new_session(GreedyVerifier(), 64)
        session.prefill(tokens[: len(trace.prompt_ids) + position])
        expected = decoder.draft_head.reduce(session.state.features).detach()
        # float16 keeps 11 bits.
        torch.testing.assert_close(
            torch.from_numpy(trace.features[position]).float(), expected, rtol=2**-11, atol=1e-4
        )


def test_lookups_are_those_of_a_search(traces: TraceSet) -> None:
    found = in_pool = 0
    for trace in traces:
        tokens = trace.prompt_ids.tolist() + trace.continuation_ids.tolist()
        for position in range(len(trace)):
            known = tokens[: len(trace.prompt_ids) + position + 1]
            match, looked_up = search(known, 16, 12)
            true = tokens[len(known) : len(known) + 12]
            agreed = [a == b for a, b in zip(looked_up, true, strict=False)] + [False]
            assert trace.lookup_match[position] == match
            assert trace.lookup_accepted[position] == agreed.index(False)
            found += match > 0
            # Where the looked-up tokens are true, their places in the pool are the true path's.
            true_levels = min(agreed.index(False), trace.max_depth + 1)
            lookup_path = trace.lookup_path[position, :, :true_levels]
            np.testing.assert_array_equal(lookup_path, trace.path[position, :, :true_levels])
            if not match:
                assert (trace.lookup_path[position] == -1).all()
            in_pool += (trace.lookup_path[position] >= 0).sum()
    assert found
    assert in_pool > 20


def test_looked_up_tokens_are_found_in_the_pool(
    decoder: SpeculativeDecoder, traces: TraceSet
) -> None:
    trace = traces[0]
    tokens = trace.prompt_ids.tolist() + trace.continuation_ids.tolist()
    for position in np.flatnonzero(trace.lookup_match)[:4]:
        known = tokens[: len(trace.prompt_ids) + position + 1]
        _, looked_up = search(known, 16, 12)
        trees = DraftReplay(decoder.draft_head, "float32").start(
            known, recorded_features(decoder, known[:-1]), len(known) - 1
        )
        for column, width in enumerate(trace.top_ks):
            tree = trees.grow(width, trace.max_depth)[0]
            row, expected = 0, []
            for token in looked_up[: trace.max_depth + 1]:
                children = [
                    r
                    for r in range(1, len(tree.token_ids))
                    if tree.parents[r] == row and tree.token_ids[r] == token
                ]
                if not children:
                    break
                row = children[0]
                expected.append(row - 1)
            expected += [-1] * (trace.max_depth + 1 - len(expected))
            assert trace.lookup_path[position, column].tolist() == expected


def recorded_features(decoder: SpeculativeDecoder, token_ids: list[int]) -> torch.Tensor:
    cache = decoder.target.new_cache(len(token_ids))
    return decoder.target.forward(RowBatch.causal(token_ids, 0), cache, "none").features.clone()


def test_ranks_by_sorting() -> None:
    generator = np.random.default_rng(0)
    top_k, depth = 3, 2
    # Few distinct scores, so that ties decide.
    scores = -generator.integers(0, 4, (20, top_k + depth * top_k**2)).astype(np.float32)
    path = generator.integers(-1, 3, (20, depth + 1)).astype(np.int16)
    ranks = pool_ranks(scores, path, top_k, depth)
    for row in range(20):
        for d in range(depth + 1):
            pool = scores[row, : top_k + d * top_k**2]
            order = sorted(range(len(pool)), key=lambda i: (-pool[i], i))
            for level in range(depth + 1):
                inside = level <= d and path[row, level] >= 0
                expected = order.index(path[row, level]) if inside else ABSENT
                assert ranks[row, d, level] == expected


def test_an_interrupted_recording_resumes(decoder: SpeculativeDecoder, tmp_path: Path) -> None:
    prompts = tiny_prompts(6)
    whole = record(decoder, prompts, tmp_path / "whole", options=OPTIONS)

    class StopError(Exception):
        pass

    def stop(progress) -> None:
        if progress.prompts == 3:
            raise StopError

    with pytest.raises(StopError):
        record(decoder, prompts, tmp_path / "parts", options=OPTIONS, progress=stop)
    assert len(TraceSet(tmp_path / "parts")) == 3
    parts = record(decoder, prompts, tmp_path / "parts", options=OPTIONS)
    assert not [path for path in (tmp_path / "parts").iterdir() if path.suffix == ".tmp"]
    by_id = {trace.prompt_id: trace for trace in whole}
    assert {trace.prompt_id for trace in parts} == by_id.keys()
    for trace in parts:
        np.testing.assert_array_equal(trace.ranks, by_id[trace.prompt_id].ranks)


def test_recording_stops_at_the_wanted_positions(
    decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    traces = record(decoder, tiny_prompts(9), tmp_path, options=OPTIONS, max_positions=30)
    assert traces.positions == 39


def test_a_folder_of_another_head_is_refused(decoder: SpeculativeDecoder, tmp_path: Path) -> None:
    record(decoder, tiny_prompts(1), tmp_path, options=OPTIONS)
    with pytest.raises(ValueError, match="holds traces with head_id"):
        record(
            SpeculativeDecoder(
                decoder.target, tiny_decoder(seed=1).draft_head, draft_dtype="float32"
            ),
            tiny_prompts(1),
            tmp_path,
            options=OPTIONS,
        )
    options = RecordOptions(top_ks=(1, 2, 4), max_depth=3, max_new_tokens=14)
    with pytest.raises(ValueError, match=r"holds traces with max_depth = 4, this run has 3"):
        record(decoder, tiny_prompts(1), tmp_path, options=options)


def test_a_prompt_that_ends_at_once_has_no_positions(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    prompt = tiny_prompts(1)[0]
    first = decoder.generate(list(prompt.token_ids), max_new_tokens=1).sequences[0, -1]
    decoder.target.generation_config.eos_token_id = int(first)
    traces = record(decoder, [prompt, Prompt((1, 2), "x")], tmp_path, options=OPTIONS)
    assert [shard["positions"] for shard in traces.header["shards"]].count(0) >= 1
    assert len(traces) == sum(shard["positions"] > 0 for shard in traces.header["shards"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_ks": (2, 1)}, "ascending"),
        ({"top_ks": ()}, "ascending"),
        ({"max_depth": -1}, "max_depth must be at least 0"),
        ({"max_new_tokens": 1}, "max_new_tokens must be at least 2"),
        ({"top_ks": (100,)}, "pool of"),
    ],
)
def test_options_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecordOptions(**changes)


def test_a_prompt_without_room_is_refused(decoder: SpeculativeDecoder, tmp_path: Path) -> None:
    prompt = Prompt((1,) * 1000, "x")
    with pytest.raises(ValueError, match="1000 tokens and 26 to decode exceed"):
        record(decoder, [prompt], tmp_path, options=OPTIONS)


def test_a_width_beyond_the_draft_vocabulary_is_refused(
    decoder: SpeculativeDecoder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"vocabulary of {VOCAB}, got 13"):
        record(decoder, [], tmp_path, options=RecordOptions(top_ks=(13,)))
