"""Memory of slots: zeros after it was cleared, its pages given back, and its neighbours intact."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.cache.slot_memory import SlotMemory


# A slot within a page; of a page; across pages, whose ends it shares with others.
@pytest.mark.parametrize("rows", [1, 3, 1024, 1023, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cleared_slot_is_zeros_beside_others(rows: int, dtype: torch.dtype) -> None:
    data = SlotMemory((5, rows), dtype, "cpu")
    assert data.data.shape == (5, rows)
    assert not data.data.any()
    for slot in (2, 0, 4, 2):
        data.data[:] = torch.arange(1, 6)[:, None]
        data.clear(slot)
        for other in range(5):
            assert (data.data[other] == (0 if other == slot else other + 1)).all()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_is_taken_when_written_and_given_back() -> None:
    size = 1 << 27
    before = resident_bytes()
    cache = KVCache(2, 1, 64, size // 1024, slots=4)
    assert resident_bytes() - before < size // 8
    cache.data[:2] = 1.0
    cache.advance(100, 1)
    assert resident_bytes() - before > 1.9 * size
    cache.release(1)
    assert resident_bytes() - before < 1.2 * size
    assert cache.lengths[1] == 0
    assert not cache.data[1].any()
    assert cache.data[0].all()


def test_views_outlive_the_cache() -> None:
    cache = KVCache(1, 1, 8, 1000, slots=2)
    keys = cache.keys(0)
    keys[:] = 2.0
    del cache
    assert (keys == 2.0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reserves memory elsewhere")
def test_slots_may_be_longer_than_the_machine_has_memory() -> None:
    """More than any machine: what is written is there."""
    memory = SlotMemory((16, 1 << 38), torch.float32, "cpu")
    memory.data[15, -5:] = 3.0
    assert memory.data[15, -6:].tolist() == [0.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    with pytest.raises(MemoryError, match="4 slots of"):
        SlotMemory((4, 1 << 60), torch.float32, "cpu")
