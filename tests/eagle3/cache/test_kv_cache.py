"""The KV cache against a plain Python list of rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl.eagle3.cache.kv_cache import KVCache

LAYERS, HEADS, HEAD_DIM = 2, 2, 4


def make_cache(capacity: int = 8, slots: int = 1) -> KVCache:
    return KVCache(LAYERS, HEADS, HEAD_DIM, capacity, slots=slots)


def write_scratch(cache: KVCache, names: list[int], slot: int = 0) -> None:
    """Writes rows behind the committed ones; every lane's numbers tell row and lane."""
    start = cache.lengths[slot]
    lanes = torch.arange(LAYERS * 2 * HEADS).view(LAYERS, 2, HEADS, 1)
    for offset, name in enumerate(names):
        cache.data[slot, :, :, :, start + offset] = (100 * name + lanes).float()


def read_rows(cache: KVCache, slot: int = 0) -> list[int]:
    """Names of the committed rows, after a check that all lanes agree."""
    rows = cache.data[slot, :, :, :, : cache.lengths[slot]]
    lanes = torch.arange(LAYERS * 2 * HEADS).view(LAYERS, 2, HEADS, 1, 1)
    names = (rows - lanes) / 100
    assert bool((names == names[:1, :1, :1, :, :1]).all())
    return [int(name) for name in names[0, 0, 0, :, 0]]


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[str, int, list[int]]]:
    """Commits of some of a few scratch rows, and truncations by fractions of the length."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        slot = draw(st.integers(0, 1))
        if draw(st.integers(0, 4)):
            rows = draw(st.lists(st.integers(0, 7), unique=True, max_size=8).map(sorted))
            steps.append(("commit", slot, rows))
        else:
            steps.append(("truncate", slot, [draw(st.integers(0, 100))]))
    return steps


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(operations())
def test_equals_a_list_of_rows(steps: list[tuple[str, int, list[int]]]) -> None:
    cache = make_cache(capacity=24, slots=2)
    memory = cache.data.data_ptr()
    model: list[list[int]] = [[], []]
    next_name = 1
    for kind, slot, values in steps:
        kept = model[slot]
        if kind == "truncate":
            length = len(kept) * values[0] // 100
            cache.truncate(length, slot)
            del kept[length:]
        else:
            room = min(8, cache.capacity - len(kept))
            rows = [row for row in values if row < room]
            names = list(range(next_name, next_name + room))
            next_name += room
            write_scratch(cache, names, slot)
            cache.commit(rows, slot)
            kept += [names[row] for row in rows]
        assert cache.lengths == [len(rows) for rows in model]
        assert [read_rows(cache, index) for index in range(2)] == model
    assert cache.data.data_ptr() == memory


def test_shapes_and_views() -> None:
    cache = make_cache(capacity=5, slots=3)
    assert (cache.slots, cache.capacity, cache.lengths) == (3, 5, [0, 0, 0])
    assert cache.keys(1).shape == cache.values(1).shape == (3, HEADS, 5, HEAD_DIM)
    cache.keys(1)[2, 0, 4] = 1.0
    cache.values(0)[1, 1, 0] = 2.0
    assert bool((cache.data[2, 1, 0, 0, 4] == 1.0).all())
    assert bool((cache.data[1, 0, 1, 1, 0] == 2.0).all())
    assert float(cache.data.sum()) == HEAD_DIM * 3.0


def test_other_dtypes_move_too() -> None:
    cache = KVCache(LAYERS, HEADS, HEAD_DIM, 6, dtype=torch.bfloat16)
    write_scratch(cache, [0, 1, 2, 1])
    cache.commit([0, 2, 3])
    assert cache.data.dtype == torch.bfloat16
    expected = torch.tensor([0.0, 200.0, 100.0], dtype=torch.bfloat16)
    assert torch.equal(cache.keys(0)[0, 0, :3, 0], expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 0], r"strictly increasing, got \[1, 0\]"),
        ([0, 2, 2], r"strictly increasing, got \[0, 2, 2\]"),
        ([-1, 0], r"\[0, 5\), got \[-1, 0\]"),
        ([0, 5], r"\[0, 5\), got \[0, 5\]"),
    ],
)
def test_wrong_commits_change_nothing(rows: list[int], message: str) -> None:
    cache = make_cache(capacity=8)
    write_scratch(cache, [1, 2, 3])
    cache.commit([0, 1, 2])
    before = cache.data.clone()
    with pytest.raises(ValueError, match=message):
        cache.commit(rows)
    assert cache.lengths == [3]
    assert torch.equal(cache.data, before)


@pytest.mark.parametrize("length", [-1, 4])
def test_wrong_truncations_change_nothing(length: int) -> None:
    cache = make_cache()
    cache.commit([0, 1, 2])
    with pytest.raises(ValueError, match=rf"\[0, 3\], got {length}"):
        cache.truncate(length)
    assert cache.lengths == [3]


def test_room_is_counted_per_slot() -> None:
    cache = make_cache(capacity=4, slots=2)
    cache.commit([0, 1, 2], slot=1)
    cache.check_room(4, slot=0)
    cache.check_room(1, slot=1)
    with pytest.raises(ValueError, match=r"holds 4 rows per slot; slot 1 has 3 .* take 2 more"):
        cache.check_room(2, slot=1)


@pytest.mark.parametrize("name", ["capacity", "slots"])
def test_empty_caches_are_refused(name: str) -> None:
    sizes = {"capacity": 4, "slots": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make_cache(**sizes)
