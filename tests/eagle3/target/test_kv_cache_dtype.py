"""Targets over 16-bit KV caches: their function, rows that stand alone, lossless speculation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from eaglerl._ext import C, thread_count
from eaglerl.eagle3 import NO_DRAFT, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.cache.caches import CachePool
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.block_target import BlockTarget
from eaglerl.eagle3.target.make_target import load_target, make_target
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import cache_argument
from eaglerl.prepare import default_draft_path

from ...gguf_files import VOCAB_SIZE
from ..tiny import tiny_head, tiny_model, tiny_runner
from .test_block_target import TOKENS, make_folder

NAMES = ("bfloat16", "float16")
# Half a step of the last bit of the mantissa, relative to the number.
HALF_STEP = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}
CAPACITY = 160
TEXT = torch.arange(100) * 7 % VOCAB_SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("block"))


@pytest.fixture(params=C.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = C.cpu_isa()
    C.set_isa(request.param)
    yield request.param
    C.set_isa(before)


def run_in_steps(
    target: TargetModel, tokens: torch.Tensor, step: int
) -> tuple[torch.Tensor, KVCache]:
    """Logits of a text that passes of `step` tokens read, and the cache after them."""
    cache, found = target.new_cache(CAPACITY), []
    for begin in range(0, len(tokens), step):
        part = tokens[begin : begin + step]
        found.append(target.forward(RowBatch.causal(part, begin), cache).logits)
        cache.advance(len(part))
    return torch.cat(found), cache


class GivenCache(DynamicCache):
    """Hands a model the keys and values of another cache, and keeps what the model computed."""

    def __init__(self, given: KVCache, length: int) -> None:
        super().__init__()
        self.given, self.length = given, length
        self.computed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.computed[layer_idx] = key_states, value_states
        both = (self.given.keys(layer_idx), self.given.values(layer_idx))
        return tuple(rows[:, :, : self.length].double() for rows in both)


@pytest.mark.parametrize("name", ["float32", *NAMES])
@pytest.mark.parametrize("step", [1, 6, 40, 100])
def test_the_model_is_that_of_rounded_keys_and_values(
    isa: str, name: str, step: int, folder: Path
) -> None:
    """In float64, with this cache. A pass of 100 rows attends in blocks of queries."""
    target = load_target(folder, kv_cache_dtype=name)
    found, cache = run_in_steps(target, TEXT, step)
    assert cache.data.dtype == getattr(torch, name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    given = GivenCache(cache, len(TEXT))
    with torch.no_grad():
        expected = model(TEXT[None], **{cache_argument(model): given}, use_cache=True).logits[0]
    assert len(given.computed) == target.num_layers
    # The same bound as with a float32 cache: what was rounded is an input of both.
    scale = float(expected.std())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * scale)
    for layer, both in given.computed.items():
        for wide, kept in zip(both, (cache.keys(layer), cache.values(layer)), strict=True):
            rows = kept[:, :, : len(TEXT)].double()
            bound = HALF_STEP[name] * wide.abs() * (1 + 1e-3) + 1e-4
            assert ((rows - wide).abs() <= bound).all()


@pytest.mark.parametrize("precision", ["native", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_the_others(
    isa: str, name: str, precision: str, folder: Path
) -> None:
    target = load_target(folder, precision=precision, kv_cache_dtype=name)
    text = TEXT[:64]
    alone, cache = run_in_steps(target, text, 1)
    before = thread_count()
    try:
        for threads, steps in ((1, (2, 3, 5, 8, 13, 31, 64)), (3, (8, 13, 64))):
            torch.set_num_threads(threads)
            for step in steps:
                logits, other = run_in_steps(target, text, step)
                assert torch.equal(logits, alone), (threads, step)
                assert torch.equal(other.data, cache.data), (threads, step)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["native", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_several_slots_share_a_pass(name: str, precision: str, folder: Path) -> None:
    target = load_target(folder, precision=precision, kv_cache_dtype=name)
    texts = [TOKENS[:5], TOKENS[3:14], TOKENS[20:21]]
    cache = target.new_cache(CAPACITY, slots=3)
    for slot, text in enumerate(texts):
        target.forward(RowBatch.causal(text, 0, slot=slot), cache)
    positions = torch.tensor([len(text) for text in texts], dtype=torch.int32)
    rows = RowBatch.one_per_slot(torch.tensor([1, 2, 3]), positions)
    found = target.forward(rows, cache).logits
    for slot, text in enumerate(texts):
        whole = torch.cat((text, torch.tensor([slot + 1])))
        assert torch.equal(run_in_steps(target, whole, 1)[0][-1], found[slot])


def tree_around(path: torch.Tensor, draw: random.Random, begin: int) -> tuple[RowBatch, list[int]]:
    """A tree with a path in it, between random siblings; and the rows of the path."""
    count = draw.randint(len(path), 40)
    rows = [0, *sorted(draw.sample(range(1, count), len(path) - 1))]
    tokens, levels, seen = [], [], []
    for row in range(count):
        step = rows.index(row) if row in rows else None
        parent = draw.randrange(row) if step is None else rows[step - 1] if step else None
        levels.append(0 if parent is None else levels[parent] + 1)
        seen.append((0 if parent is None else seen[parent]) | 1 << row)
        tokens.append(draw.randrange(VOCAB_SIZE) if step is None else int(path[step]))
    mask = torch.tensor(seen)[:, None]
    return RowBatch.tree(
        torch.tensor(tokens), torch.tensor(levels, dtype=torch.int32), mask, begin
    ), rows


@pytest.mark.parametrize("precision", ["native", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_were_moved_are_those_of_plain_decoding(
    name: str, precision: str, folder: Path
) -> None:
    """Bit by bit: accepted rows of random trees, whose siblings were rejected."""
    target = load_target(folder, precision=precision, kv_cache_dtype=name)
    draw, cache, begin = random.Random(3), target.new_cache(CAPACITY), 0
    while begin < len(TEXT):
        path = TEXT[begin : begin + draw.randint(1, 6)]
        tree, rows = tree_around(path, draw, begin)
        target.forward(tree, cache)
        cache.commit(rows)
        begin += len(path)
    expected = run_in_steps(target, TEXT, 1)[1]
    assert cache.lengths == expected.lengths == [len(TEXT)]
    length = len(TEXT)
    assert torch.equal(cache.data[..., :length, :], expected.data[..., :length, :])


@pytest.mark.parametrize("precision", ["native", "int8", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_speculation_changes_no_token(name: str, precision: str, folder: Path) -> None:
    """Through growing caches, too: 200 tokens are more than the first ones have room for."""
    target = load_target(folder, precision=precision, kv_cache_dtype=name)
    decoder = SpeculativeDecoder(target, tiny_head(target), draft_dtype="float32")
    plain = decoder.generate(TOKENS[None, :9], NO_DRAFT, max_new_tokens=200)
    for tree in (TreeParams(8, 2, 3), TreeParams(20, 4, 5)):
        found = decoder.generate(TOKENS[None, :9], tree, max_new_tokens=200)
        assert torch.equal(found.sequences, plain.sequences)


@pytest.mark.parametrize("name", ["auto", "float32", *NAMES])
def test_caches_keep_their_dtype_when_they_grow(name: str, folder: Path) -> None:
    target = load_target(folder, kv_cache_dtype=name)
    head = tiny_head(target)
    caches = CachePool(target.new_cache, tiny_runner(head, 20).with_own_cache).take(20)
    target.forward(RowBatch.causal(TOKENS[:9], 0), caches.target)
    caches.target.advance(9)
    before = caches.target.data[..., :9, :].clone()
    caches.with_room(300)
    expected = torch.float32 if name == "auto" else getattr(torch, name)
    assert target.kv_cache_dtype == caches.target.data.dtype == before.dtype == expected
    assert torch.equal(caches.target.data[..., :9, :], before)
    # Bytes of a token: layers, keys and values, heads, head_dim, and 4 or 2 of each number.
    assert caches.target.data.nbytes == 300 * 7 * 2 * 2 * 16 * expected.itemsize


@pytest.mark.parametrize("name", NAMES)
def test_the_packed_target_is_that_of_its_cache(name: str) -> None:
    """Against float64 with the same keys and values, in passes of several sizes."""
    model = tiny_model(head_dim=16)
    target = make_target(model, backend="packed", kv_cache_dtype=name)
    assert isinstance(target, BlockTarget)
    text = torch.arange(100) * 7 % target.vocab_size
    model = model.double()
    model.set_attn_implementation("eager")
    for step in (1, 7, 100):
        found, cache = run_in_steps(target, text, step)
        assert cache.data.dtype == getattr(torch, name)
        with torch.no_grad():
            output = model(
                text[None], **{cache_argument(model): GivenCache(cache, 100)}, use_cache=True
            )
        scale = float(output.logits.std())
        torch.testing.assert_close(found.double(), output.logits[0], rtol=0, atol=2e-5 * scale)


def test_what_is_too_large_for_float16_is_infinite_and_stays_in_its_row(folder: Path) -> None:
    """As torch rounds it. The rows that see it have no logits; the others are as they were."""
    target = load_target(folder, kv_cache_dtype="float16")
    cache = target.new_cache(CAPACITY)
    target.forward(RowBatch.causal(TOKENS[:6], 0), cache)
    cache.advance(6)
    row = RowBatch.causal(TOKENS[6:7], 6)
    clean = target.forward(row, cache).logits
    cache.data[..., 30, :] = torch.tensor(70_000.0).to(torch.float16)
    assert cache.data[0, 0, 0, 0, 30, 0].isinf()
    assert torch.equal(target.forward(row, cache).logits, clean)
    cache.data[..., 2, :] = cache.data[..., 30, :]
    assert target.forward(row, cache).logits.isnan().any()


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    allowed = "kv_cache_dtype must be one of auto, float32, bfloat16, float16, got 'float8'"
    for precision in ("auto", "native", "float32"):
        with pytest.raises(ValueError, match=allowed):
            load_target(folder, precision=precision, kv_cache_dtype="float8")
    model = tiny_model()
    with pytest.raises(ValueError, match=allowed):
        make_target(model, kv_cache_dtype="float8")
    refused = r"transformers' modules, which keep the model's torch\.float32, got 'bfloat16'"
    with pytest.raises(ValueError, match=refused):
        make_target(model, backend="transformers", kv_cache_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"it does so because hidden_act is 'gelu'"):
        make_target(tiny_model(hidden_act="gelu"), kv_cache_dtype="float16")
    own = make_target(model, backend="transformers", kv_cache_dtype="float32")
    assert own.new_cache(4).data.dtype == own.kv_cache_dtype == torch.float32
    half = make_target(tiny_model().bfloat16(), backend="transformers", kv_cache_dtype="bfloat16")
    assert half.new_cache(4).data.dtype == half.kv_cache_dtype == torch.bfloat16
    target = load_target(folder)
    with pytest.raises(TypeError, match=r"kv_cache_dtype must be one of .*, not torch\.int8"):
        BlockTarget(target.config, None, None, kv_cache_dtype=torch.int8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"kv_cache_dtype must be one of .*, not torch\.float64"):
        packed_target(model, kv_cache_dtype=torch.float64)


@pytest.mark.parametrize("precision", ["native", "float32"])
def test_caches_of_other_models_are_refused(precision: str, folder: Path) -> None:
    """Their memory would be too small, or in another order."""
    target = load_target(folder, precision=precision)
    row = RowBatch.causal(TOKENS[:3], 0)
    for sizes in ((6, 2, 16), (7, 1, 16), (7, 2, 8)):
        with pytest.raises(ValueError, match="must have 7 layers, 2 heads and a head_dim of 16"):
            target.forward(row, KVCache(*sizes, CAPACITY))
    spread = target.new_cache(CAPACITY)
    spread.data = spread.data.transpose(3, 4).contiguous().transpose(3, 4)
    with pytest.raises(ValueError, match="must be contiguous on the CPU"):
        target.forward(row, spread)
    with pytest.raises(TypeError, match=r"cache must be one of .*, not torch\.float64"):
        target.forward(row, KVCache(7, 2, 16, CAPACITY, dtype=torch.float64))
    # Of any dtype that the kernels read, whatever the target's own is.
    target.forward(row, KVCache(7, 2, 16, CAPACITY, dtype=torch.float16))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_default_policy_writes_what_plain_decoding_writes(
    name: str, smollm2_path: Path
) -> None:
    decoder = SpeculativeDecoder.from_pretrained(
        smollm2_path, default_draft_path(), kv_cache_dtype=name
    )
    assert decoder.target.kv_cache_dtype == getattr(torch, name)
    policies = ["auto", TreeParams(20, 4, 5)]
    for text in ("Rain forms when", "def add(a, b):\n    return a + b\n\ndef add(a, b):"):
        prompt = decoder.tokenizer(text).input_ids
        plain = decoder.generate(prompt, NO_DRAFT, max_new_tokens=64)
        for policy in policies:
            found = decoder.generate(prompt, policy, max_new_tokens=64)
            assert found.new_ids == plain.new_ids
