"""The trace files: what is written is read, and what is broken is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.traces.trace_index import INDEX_NAME, write_index
from eaglerl.traces.trace_set import ABSENT, TraceSet, write_shard

from .tiny import made_up_trace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two made-up traces, and one prompt that ended at once."""
    shards = []
    for seed, positions in ((0, 7), (1, 4)):
        trace = made_up_trace(positions, seed=seed)
        name = f"{trace.prompt_id}.safetensors"
        write_shard(tmp_path / name, trace)
        shards.append(
            {
                "file": name,
                "prompt_id": trace.prompt_id,
                "domain": trace.domain,
                "positions": positions,
            }
        )
    shards.append({"file": "none", "prompt_id": "f" * 16, "domain": "made up", "positions": 0})
    index = {
        "format": "eaglerl-traces",
        "version": 1,
        "target_id": "a" * 16,
        "head_id": "b" * 16,
        "draft_dtype": "float32",
        "hidden_size": 6,
        "top_ks": [1, 2],
        "max_depth": 2,
        "max_new_tokens": 8,
        "lookup_tokens": 12,
        "shards": shards,
    }
    write_index(tmp_path, index)
    return tmp_path


def test_round_trip(folder: Path) -> None:
    traces = TraceSet(folder)
    assert (len(traces), traces.positions) == (2, 11)
    for seed, trace in enumerate(traces):
        made = made_up_trace(len(trace), seed=seed)
        for name in ("ranks", "path", "features", "first_log_probs", "continuation_ids"):
            np.testing.assert_array_equal(getattr(trace, name), getattr(made, name))
        for top_k in (1, 2):
            np.testing.assert_array_equal(trace.scores[top_k], made.scores[top_k])
        assert trace.domain == "made up"
    assert [len(trace) for trace in traces[:2]] == [7, 4]


def test_lengths_by_building_the_tree() -> None:
    trace = made_up_trace(40, seed=3)
    actions = [NO_DRAFT]
    for width in (1, 2):
        for depth in range(3):
            pool = width + depth * width**2
            actions += [TreeParams(total, depth, width) for total in range(2, pool + 2)]
    lengths = trace.accepted_lengths(actions)
    for column, tree in enumerate(actions):
        for position in range(len(trace)):
            width_index = trace.top_ks.index(tree.top_k)
            pool = tree.top_k + tree.depth * tree.top_k**2
            scores = made_scores(3, 40, tree.top_k)[position, :pool]
            best = np.lexsort((np.arange(pool), -scores))[: tree.total_tokens - 1]
            length = 1
            for node in trace.path[position, width_index, : tree.depth + 1]:
                if node not in best:
                    break
                length += 1
            assert lengths[position, column] == length


def made_scores(seed: int, positions: int, top_k: int) -> np.ndarray:
    """The float32 scores of `made_up_trace`, whose trace keeps only float16."""
    draw = np.random.default_rng(seed)
    for width in (1, 2):
        blocks = [width] + [width**2] * 2
        drawn = [-(depth + draw.random((positions, size))) for depth, size in enumerate(blocks)]
        scores = np.concatenate(drawn, axis=1).astype(np.float32)
        if width == top_k:
            return scores
        begin = np.concatenate(([0], np.cumsum(blocks)))
        for _ in range(positions):
            for level in range(draw.integers(0, 4)):
                draw.integers(begin[level], begin[level + 1])
    raise AssertionError(top_k)


def test_absent_nodes_are_never_verified() -> None:
    trace = made_up_trace(30, seed=5)
    widest = TreeParams(2 + 2 * 4 + 1, 2, 2)
    ranks = trace.ranks[:, 1, 2]
    expected = 1 + np.argmin(np.c_[ranks != ABSENT, np.zeros(30, dtype=bool)], axis=1)
    np.testing.assert_array_equal(trace.accepted_lengths([widest])[:, 0], expected)


def test_what_was_not_recorded_is_an_error() -> None:
    trace = made_up_trace(3)
    with pytest.raises(ValueError, match=r"top_k in \[1, 2\] and depth up to 2"):
        trace.accepted_lengths([TreeParams(3, 1, 4)])
    with pytest.raises(ValueError, match="3/3/2 is not in the trace"):
        trace.accepted_lengths([TreeParams(3, 3, 2)])


def test_ids_are_compared(folder: Path) -> None:
    traces = TraceSet(folder)
    traces.check_ids(target_id="a" * 16, head_id="b" * 16)
    with pytest.raises(ValueError, match=f"head_id .* is {'b' * 16}, wanted {'c' * 16}"):
        traces.check_ids(head_id="c" * 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "must be 1, got 2"),
        ({"format": "other"}, '"format" must be "eaglerl-traces"'),
        ({"top_ks": None}, "'top_ks' of .* must be a list"),
        ({"top_ks": [4, 2]}, "'top_ks' of .* must ascend"),
        ({"max_depth": 1 << 40}, "'max_depth' of .* must be at most 128"),
        ({"shards": [3]}, r"'shards\[0\]' of the index of traces .* must be an object, got 3"),
        ({"shards": [{"file": "x"}]}, r"lacks 'shards\[0\]\.prompt_id'"),
        (
            {"shards": [{"file": "../x", "prompt_id": "", "domain": "", "positions": 1}]},
            "bare name",
        ),
    ],
)
def test_a_broken_index_is_named(folder: Path, change: dict, message: str) -> None:
    path = folder / INDEX_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        TraceSet(folder)


def test_no_index_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the index of traces .* cannot be read"):
        TraceSet(tmp_path)
    (tmp_path / INDEX_NAME).write_text('{"format"')
    with pytest.raises(ValueError, match=r"the index of traces .* cannot be read"):
        TraceSet(tmp_path)


def test_broken_shards_are_named(folder: Path) -> None:
    traces = TraceSet(folder)
    path = folder / f"{0:016x}.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if name != "path"}, path)
    with pytest.raises(ValueError, match="lacks the tensor 'path'"):
        traces[0]
    save_file(tensors | {"ranks": tensors["ranks"][:3].clone()}, path)
    with pytest.raises(ValueError, match=r"'ranks' of .* must be torch.int16 of shape \(7, 2, 3"):
        traces[0]
    save_file(tensors | {"features": tensors["features"].float()}, path)
    with pytest.raises(ValueError, match=r"'features' of .* must be torch\.float16"):
        traces[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        traces[0]
    path.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        traces[0]


def test_a_pickle_is_not_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "opened"), "w"))

    torch.save(Bomb(), folder / f"{0:016x}.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        TraceSet(folder)[0]
    assert not (folder / "opened").exists()
