"""Attention over caches of 16 bits: what is written, and float64 over what is read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops import cached_attention

from .test_cached_attention import SHARED_FIXTURE, TOLERANCE, Case, add_mask, make_case

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BITS_OF_MANTISSA = {"bfloat16": 7, "float16": 10}


def in_cache_of(case: Case, dtype: torch.dtype) -> Case:
    changed = {name: getattr(case, name).to(dtype) for name in ("key_cache", "value_cache")}
    return Case(**(vars(case) | changed))


def call(case: Case) -> Tensor:
    return cached_attention(*case.arguments(), **case.options)


def may_see(case: Case, row: int) -> Tensor:
    """Which rows of the cache a row sees, (capacity,) bool."""
    prefix, keys = int(case.prefix_lengths[row]), torch.arange(case.key_cache.shape[2])
    seen = keys < prefix
    for bit in range(case.options.get("block_length", 0)):
        seen[prefix + bit] = bool(case.options["mask"][row, bit // 64] >> (bit % 64) & 1)
    return seen


def attention64(case: Case) -> Tensor:
    """Attention in float64 over the keys and values that the cache holds now."""
    rows, kv_heads, head_dim = len(case.qkv), case.key_cache.shape[1], case.key_cache.shape[3]
    heads = case.qkv.double().reshape(rows, -1, head_dim)
    query_heads = heads.shape[1] - 2 * kv_heads
    cos, sin = (table.double()[case.positions.long()] for table in (case.cos, case.sin))
    out = torch.zeros(rows, query_heads, head_dim, dtype=torch.float64)
    for row in range(rows):
        seen = may_see(case, row)
        slots = case.options.get("slots")
        slot = 0 if slots is None else int(slots[row])
        for head in range(query_heads):
            first, second = heads[row, head].chunk(2)
            query = torch.cat(
                (first * cos[row] - second * sin[row], second * cos[row] + first * sin[row])
            )
            place = slot, head // (query_heads // kv_heads)
            keys, values = (c[place][seen].double() for c in (case.key_cache, case.value_cache))
            if len(keys):
                out[row, head] = (keys @ query * head_dim**-0.5).softmax(0) @ values
    return out.flatten(1)


def assert_equals_float64(case: Case) -> None:
    actual, expected = call(case), attention64(case)
    scale = max(expected.abs().max().item(), 1e-30)
    torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 24, 40, 64, 96, 256])
@pytest.mark.parametrize("normed", [False, True])
def test_keys_and_values_are_rounded_once(isa: str, name: str, head_dim: int, normed: bool) -> None:
    """What a float32 cache would hold, rounded as torch rounds it; other rows stay."""
    wide = make_case(rows=7, head_dim=head_dim, slots=3)
    if normed:
        wide.options |= {"query_norm": torch.randn(head_dim), "key_norm": torch.randn(head_dim)}
    narrow = in_cache_of(wide, DTYPES[name])
    untouched = narrow.key_cache.clone()
    call(wide)
    call(narrow)
    where = wide.options["slots"].long(), slice(None), wide.cache_rows.long()
    for cache in ("key_cache", "value_cache"):
        expected = getattr(wide, cache)[where].to(DTYPES[name])
        assert torch.equal(getattr(narrow, cache)[where], expected)
    untouched[where] = narrow.key_cache[where]
    assert torch.equal(untouched, narrow.key_cache)


def numbers_of_all_kinds(name: str) -> Tensor:
    """Every number of the dtype, the ties between neighbours, what lies beside them; (n, 64)."""
    every = torch.arange(-(2**15), 2**15).short().view(DTYPES[name]).float()
    half_a_step = 1 << (22 - BITS_OF_MANTISSA[name])
    bits = every.view(torch.int32)
    kinds = [bits + offset for offset in (0, half_a_step, half_a_step - 1, half_a_step + 1)]
    # Subnormal numbers of float16 are steps of 2^-24, whatever their exponent as a float.
    small = torch.arange(-4096, 4096).float() * 2**-26
    return torch.cat((torch.cat(kinds).view(torch.float32), small)).reshape(-1, 64)


@pytest.mark.parametrize("name", DTYPES)
def test_every_number_is_rounded_as_torch_does(isa: str, name: str) -> None:
    """Ties to even; what is too large becomes infinite; a NaN stays one."""
    numbers = numbers_of_all_kinds(name)
    rows = len(numbers)
    case = make_case(rows=1, kv_heads=1, group=1, capacity=rows)
    case = in_cache_of(case, DTYPES[name])
    case.qkv = torch.cat((torch.zeros(rows, 128), numbers), dim=1)
    case.positions = case.prefix_lengths = torch.zeros(rows, dtype=torch.int32)
    case.cache_rows = torch.arange(rows, dtype=torch.int32)
    call(case)
    expected = numbers.to(DTYPES[name])
    found = case.value_cache[0, 0]
    assert torch.equal(found.isnan(), expected.isnan())
    numbered = ~expected.isnan()
    assert torch.equal(found[numbered].view(torch.int16), expected[numbered].view(torch.int16))
    assert found.isinf().any()


@SHARED_FIXTURE
@given(
    name=st.sampled_from(list(DTYPES)),
    rows=st.integers(1, 40),
    kv_heads=st.integers(1, 4),
    group=st.sampled_from([1, 2, 3, 4, 7]),
    head_dim=st.sampled_from([8, 16, 24, 40, 64, 80, 128, 256]),
    capacity=st.integers(40, 330),
    slots=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 2**20),
    padding=st.sampled_from([0, 5]),
    block_length=st.sampled_from([0, 0, 1, 31, 33, 40]),
    one_prefix=st.booleans(),
)
def test_equals_float64(
    isa: str, name: str, block_length: int, one_prefix: bool, **shape: int
) -> None:
    case = make_case(**shape)
    if block_length:
        add_mask(case, block_length, one_prefix=one_prefix, seed=shape["seed"])
    assert_equals_float64(in_cache_of(case, DTYPES[name]))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 16, 60])
def test_tree_rows_over_a_long_context(isa: str, name: str, rows: int) -> None:
    # SmolLM2's heads; enough keys that they are cut into chunks for the threads.
    case = make_case(rows=rows, kv_heads=3, group=3, capacity=700)
    add_mask(case, rows, one_prefix=True)
    case.prefix_lengths.fill_(600)
    case.cache_rows = torch.arange(600, 600 + rows, dtype=torch.int32)
    assert_equals_float64(in_cache_of(case, DTYPES[name]))


def test_other_dtypes_are_refused() -> None:
    case = make_case()
    allowed = "one of float32, bfloat16, float16"
    for dtype in (torch.float64, torch.int16, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"key_cache must be {allowed}, not {dtype}"):
            call(in_cache_of(case, dtype))
    case.value_cache = case.value_cache.bfloat16()
    with pytest.raises(TypeError, match=r"value_cache must be float32, not torch\.bfloat16"):
        call(case)
    with pytest.raises(TypeError, match="key_cache must be a tensor, not list"):
        call(Case(**(vars(case) | {"key_cache": []})))


def test_memory_of_another_dtype_must_lie_apart() -> None:
    """Distances are in bytes: an output of 4-byte elements in a cache of 2-byte ones."""
    case = in_cache_of(make_case(rows=1, capacity=400), torch.float16)
    inside = case.value_cache.view(torch.float32).flatten()[20_000:20_384].reshape(1, 384)
    with pytest.raises(ValueError, match="out must not overlap value_cache"):
        cached_attention(*case.arguments(), out=inside)


def test_numbers_of_dtypes_are_checked() -> None:
    arguments = [0] * 28
    arguments[12] = 1  # capacity
    for number in (-1, 3, 1 << 20):
        arguments[13] = number
        with pytest.raises(ValueError, match=rf"cache_dtype must be in 0\.\.2, got {number}"):
            C.cached_attention(*arguments, 1)
