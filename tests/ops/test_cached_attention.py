"""Cached attention against float64, over shapes, layouts, masks and instruction sets."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from eaglerl.ops import cached_attention, cached_attention_ref

# float32 sums of up to 700 products and an exponential of a score of size 10 (its rounding, 1e-6,
# is the relative error of a weight), relative to the largest output.
TOLERANCE = 4e-6

SHARED_FIXTURE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Case:
    """Arguments of one call; the caches are changed by it."""

    qkv: Tensor
    cos: Tensor
    sin: Tensor
    key_cache: Tensor
    value_cache: Tensor
    positions: Tensor
    cache_rows: Tensor
    prefix_lengths: Tensor
    options: dict[str, Tensor | int | float | None]

    def arguments(self) -> tuple[Tensor, ...]:
        return (
            self.qkv, self.cos, self.sin, self.key_cache, self.value_cache,
            self.positions, self.cache_rows, self.prefix_lengths,
        )  # fmt: skip

    def in_float64(self) -> "Case":
        def wide(value: object) -> object:
            is_real = isinstance(value, Tensor) and value.is_floating_point()
            return value.double().clone() if is_real else value

        options = {name: wide(value) for name, value in self.options.items()}
        return Case(*(wide(tensor) for tensor in self.arguments()), options)


def rotary_tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    frequencies = 1e4 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(positions)[:, None] * frequencies
    return angles.cos(), angles.sin()


def make_case(
    rows: int = 5,
    kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 64,
    capacity: int = 200,
    slots: int = 1,
    seed: int = 0,
    padding: int = 0,
) -> Case:
    """Return random arguments: distinct cache rows, any positions, prefix lengths, slots."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int) -> Tensor:
        return torch.randint(high, (rows,), generator=generator, dtype=torch.int32)

    width = (group + 2) * kv_heads * head_dim
    cache_shape = (slots, kv_heads, capacity, head_dim)
    return Case(
        torch.randn(rows, width + padding, generator=generator)[:, :width],
        *rotary_tables(capacity + 3, head_dim),
        torch.randn(cache_shape, generator=generator),
        torch.randn(cache_shape, generator=generator),
        integers(capacity + 3),
        torch.randperm(capacity, generator=generator)[:rows].int(),
        integers(capacity + 1),
        {"slots": integers(slots) if slots > 1 else None},
    )


def add_mask(case: Case, block_length: int, *, one_prefix: bool, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, capacity = case.qkv.shape[0], case.key_cache.shape[2]
    words = -(-block_length // 64)
    shape = (1,) if one_prefix else (rows,)
    high = capacity - block_length + 1
    prefix = torch.randint(high, shape, generator=generator, dtype=torch.int32)
    case.prefix_lengths = prefix.expand(rows).contiguous()
    # Any word, bit 63 included, and bits beyond the block, which must not count.
    halves = torch.randint(2**32, (2, rows, words), generator=generator)
    case.options |= {"mask": halves[0] << 32 | halves[1], "block_length": block_length}


def assert_equals_float64(case: Case) -> None:
    wide = case.in_float64()
    expected = cached_attention_ref(*wide.arguments(), **wide.options)
    actual = cached_attention(*case.arguments(), **case.options)
    pairs = [(actual, expected), (case.key_cache, wide.key_cache)]
    for got, want in pairs:
        scale = max(want.abs().max().item(), 1e-30)
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=TOLERANCE)
    assert torch.equal(case.value_cache.double(), wide.value_cache)


@SHARED_FIXTURE
@given(
    rows=st.integers(1, 40),
    kv_heads=st.integers(1, 4),
    group=st.sampled_from([1, 2, 3, 4, 7, 8]),
    head_dim=st.sampled_from([8, 16, 24, 40, 64, 80, 96, 128, 256]),
    capacity=st.integers(40, 330),
    slots=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 2**20),
    padding=st.sampled_from([0, 5]),
    block_length=st.sampled_from([0, 0, 1, 31, 33, 40]),
    one_prefix=st.booleans(),
)
def test_equals_float64(isa: str, block_length: int, one_prefix: bool, **shape: int) -> None:
    case = make_case(**shape)
    if block_length:
        add_mask(case, block_length, one_prefix=one_prefix, seed=shape["seed"])
    assert_equals_float64(case)


@pytest.mark.parametrize("rows", [1, 2, 8, 16, 60])
def test_tree_rows_over_a_long_context(isa: str, rows: int) -> None:
    # SmolLM2's heads; enough keys that they are cut into chunks for the threads.
    case = make_case(rows=rows, kv_heads=3, group=3, capacity=700)
    add_mask(case, rows, one_prefix=True)
    case.prefix_lengths.fill_(600)
    case.cache_rows = torch.arange(600, 600 + rows, dtype=torch.int32)
    assert_equals_float64(case)


def test_mask_of_several_words(isa: str) -> None:
    case = make_case(rows=9, capacity=400)
    add_mask(case, 150, one_prefix=True)
    assert_equals_float64(case)


@pytest.mark.parametrize("rows", [3, 150])
def test_causal_chunk(isa: str, rows: int) -> None:
    case = make_case(rows=rows, capacity=300)
    case.cache_rows = torch.arange(100, 100 + rows, dtype=torch.int32)
    case.positions = case.cache_rows
    case.prefix_lengths = case.cache_rows + 1
    assert_equals_float64(case)


def test_many_slots_of_one_row(isa: str) -> None:
    case = make_case(rows=60, kv_heads=3, group=3, slots=60)
    case.options["slots"] = torch.randperm(60).int()
    assert_equals_float64(case)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_head_norms_eps_and_scale(isa: str, group: int) -> None:
    case = make_case(rows=7, group=group)
    case.options |= {
        "query_norm": torch.randn(64), "key_norm": torch.randn(64), "eps": 0.1, "scale": 0.3,
    }  # fmt: skip
    assert_equals_float64(case)


@pytest.mark.parametrize("rows", [1, 12])
def test_large_scores_stay_finite(isa: str, rows: int) -> None:
    case = make_case(rows=rows)
    case.qkv = case.qkv * 1e4
    case.prefix_lengths.fill_(200)
    actual = cached_attention(*case.arguments(), **case.options)
    wide = case.in_float64()
    expected = cached_attention_ref(*wide.arguments(), **wide.options)
    # A score of 1e9 has a rounding error of 64: only the choice of the largest is meaningful.
    assert actual.isfinite().all()
    share = (actual.double() - expected).abs().amax(-1) < 1e-3 * expected.abs().max()
    assert share.double().mean() > 0.5


@pytest.mark.parametrize("rows", [1, 12])
def test_rows_that_see_nothing_get_zeros(isa: str, rows: int) -> None:
    case = make_case(rows=rows, capacity=400)
    case.prefix_lengths.zero_()
    assert not cached_attention(*case.arguments()).any()
    case.prefix_lengths.fill_(0)
    case.options |= {"mask": torch.zeros(rows, 6, dtype=torch.int64), "block_length": 384}
    assert not cached_attention(*case.arguments(), **case.options).any()


def test_result_does_not_depend_on_hidden_rows(isa: str) -> None:
    case = make_case(rows=8, capacity=300)
    add_mask(case, 8, one_prefix=True)
    case.prefix_lengths.fill_(200)
    case.cache_rows = torch.arange(200, 208, dtype=torch.int32)
    case.options["mask"] = torch.tensor([[(2 << row) - 1] for row in range(8)])
    first = cached_attention(*case.arguments(), **case.options)
    case.key_cache[:, :, 208:] = 1e30
    case.value_cache[:, :, 208:] = float("nan")
    assert torch.equal(cached_attention(*case.arguments(), **case.options), first)


def test_number_of_threads_changes_rounding_only() -> None:
    case = make_case(rows=8, kv_heads=3, capacity=700)
    case.prefix_lengths.fill_(650)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(cached_attention(*case.arguments(), **case.options))
    torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=TOLERANCE)


def test_writes_to_columns_of_a_wider_buffer() -> None:
    case = make_case(rows=4)
    buffer = torch.full((4, 6 * 64 + 10), 7.0)
    expected = cached_attention(*case.arguments())
    out = cached_attention(*case.arguments(), out=buffer[:, 5:-5])
    assert torch.equal(out, expected)
    assert (buffer[:, :5] == 7).all()
    assert (buffer[:, -5:] == 7).all()


def test_no_rows() -> None:
    case = make_case(rows=1)
    case.qkv, case.positions = case.qkv[:0], case.positions[:0]
    case.cache_rows, case.prefix_lengths = case.cache_rows[:0], case.prefix_lengths[:0]
    assert cached_attention(*case.arguments()).shape == (0, 384)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("positions", 203, "positions\\[2\\] = 203 is outside \\[0, 203\\)"),
        ("positions", -1, "positions\\[2\\] = -1"),
        ("cache_rows", 200, "cache_rows\\[2\\] = 200 is outside \\[0, 200\\)"),
        ("prefix_lengths", 201, "prefix_lengths\\[2\\] = 201"),
    ],
)
def test_indices_outside_are_refused_before_anything_is_written(
    name: str, value: int, message: str
) -> None:
    case = make_case()
    getattr(case, name)[2] = value
    before = case.key_cache.clone()
    with pytest.raises(ValueError, match=message):
        cached_attention(*case.arguments(), **case.options)
    assert torch.equal(case.key_cache, before)


def test_slots_outside_are_refused() -> None:
    case = make_case()
    with pytest.raises(ValueError, match="slots\\[0\\] = 1 is outside \\[0, 1\\)"):
        cached_attention(*case.arguments(), slots=torch.ones(5, dtype=torch.int32))


def test_block_must_fit_the_cache_and_the_mask() -> None:
    case = make_case()
    mask = torch.zeros(5, 1, dtype=torch.int64)
    case.prefix_lengths.fill_(190)
    with pytest.raises(ValueError, match="prefix_lengths\\[0\\] = 190"):
        cached_attention(*case.arguments(), mask=mask, block_length=11)
    with pytest.raises(ValueError, match="mask has 64 bits a row, block_length is 65"):
        cached_attention(*case.arguments(), mask=mask, block_length=65)
    with pytest.raises(ValueError, match="must be given together"):
        cached_attention(*case.arguments(), mask=mask)


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("qkv", lambda t: t.double(), TypeError, "qkv must be float32"),
        ("qkv", lambda t: t[:, :-1], ValueError, "qkv must have"),
        ("qkv", lambda t: t.mT.contiguous().mT, ValueError, "qkv must have contiguous rows"),
        ("cos", lambda t: t[:, 1:], ValueError, "cos must have shape"),
        ("sin", lambda t: t[1:], ValueError, "sin must have shape"),
        ("key_cache", lambda t: t[..., 1:], ValueError, "value_cache must be laid out"),
        ("value_cache", lambda t: t.clone()[0], ValueError, "value_cache must have 4 dimensions"),
        ("positions", lambda t: t.long(), TypeError, "positions must be int32"),
        ("cache_rows", lambda t: t[:-1], ValueError, "cache_rows must have shape"),
        ("prefix_lengths", lambda t: t.repeat(2)[::2], ValueError, "must be contiguous"),
    ],
)
def test_unfit_tensors_are_named(name, change, error, message) -> None:
    case = make_case()
    setattr(case, name, change(getattr(case, name)))
    with pytest.raises(error, match=message):
        cached_attention(*case.arguments())
