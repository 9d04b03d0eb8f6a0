"""Arguments that would lead native code out of its memory are refused, and change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops import (
    ActionCache,
    DraftTreeBuilder,
    FusedEncoder,
    PolicyWeights,
    accept_path,
    action_cache_step,
    cached_attention,
    fused_encode,
    move_rows,
    rms_norm,
    silu_mul,
    tree_structure,
)
from eaglerl.ops._encode_library import flatten
from eaglerl.ops.action_cache import WORDS

from .encode_model import make_weights

TREES = torch.tensor([[1, 0, 1], [8, 2, 3], [20, 4, 5]], dtype=torch.int32)


def attention(shape: tuple[int, ...] = (1, 1, 4, 8), rows: int = 1, heads: int = 1, **options):
    _, kv_heads, _, dim = shape
    index = torch.zeros(rows, dtype=torch.int32)
    arguments = {
        "qkv": torch.randn(rows, (heads + 2 * kv_heads) * dim),
        "cos": torch.ones(4, dim // 2),
        "sin": torch.zeros(4, dim // 2),
        "key_cache": torch.zeros(shape),
        "value_cache": torch.zeros(shape),
        "positions": index,
        "cache_rows": index,
        "prefix_lengths": index + 1,
    }
    return cached_attention(**(arguments | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (0, 1, 4, 8)}, "at least one slot, kv head and row"),
        ({"shape": (1, 0, 4, 8)}, "at least one slot, kv head and row"),
        ({"shape": (1, 1, 0, 8)}, "at least one slot, kv head and row"),
        ({"shape": (1, 1, 4, 0)}, "head_dim must be a multiple of 8"),
        ({"cos": torch.ones(0, 4), "sin": torch.ones(0, 4)}, r"positions\[0\] = 0 is outside"),
        ({"cos": torch.tensor(1.0)}, "cos must have 2 dimensions"),
        ({"block_length": 2**40, "mask": torch.ones(1, 1, dtype=torch.int64)}, "64 bits a row"),
        ({"rows": 2, "out": torch.zeros(1, 8).expand(2, 8)}, "out must not overlap itself"),
        ({"shape": (2, 1, 4, 8), "key_cache": torch.zeros(1, 1, 4, 8).expand(2, 1, 4, 8),
          "value_cache": torch.zeros(1, 1, 4, 8).expand(2, 1, 4, 8)}, "do not overlap"),
    ],
)  # fmt: skip
def test_attention_over_a_cache_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**options)


def test_outputs_that_overlap_inputs() -> None:
    x = torch.randn(4, 8)
    wide = torch.randn(4, 16)
    weight = torch.rand(8)
    expected = rms_norm(wide[:, :8].clone(), weight, 1e-5)
    rms_norm(wide[:, :8], weight, 1e-5, out=wide[:, 8:])
    assert torch.equal(wide[:, 8:], expected)
    assert torch.equal(rms_norm(wide[:, :8], weight, 1e-5, out=wide[:, :8]), expected)
    memory = torch.randn(40)
    for call in (
        lambda: rms_norm(x, weight, 1e-5, out=x[:1].expand(4, 8)),
        lambda: rms_norm(memory[:32].view(4, 8), weight, 1e-5, out=memory[4:36].view(4, 8)),
        lambda: rms_norm(x, weight, 1e-5, out=x, index=torch.arange(4)),
        lambda: rms_norm(wide[:, :8], weight, 1e-5, out=wide[:, 4:12]),
        lambda: silu_mul(memory[:32].view(4, 8), out=memory[2:18].view(4, 4)),
        lambda: move_rows(torch.zeros(1, 4, 2).expand(3, 4, 2), torch.tensor([1]).int(), 0),
        lambda: attention(qkv=memory[:24].view(1, 24), out=memory[4:12].view(1, 8)),
        lambda: rms_norm(torch._neg_view(x), weight, 1e-5),
        lambda: rms_norm(x, torch._neg_view(weight), 1e-5),
    ):
        before = (x.clone(), wide.clone(), memory.clone())
        with pytest.raises(ValueError, match=r"overlap|out must not be x|negated"):
            call()
        for now, then in zip((x, wide, memory), before, strict=True):
            assert torch.equal(now, then)


def test_trees_that_cannot_be() -> None:
    tokens = torch.zeros(3, dtype=torch.int64)
    for parents in ([-1, 2, 0], [-1, 1, 0], [-1, 0, -7], [-1, 0, 9]):
        rows = torch.tensor(parents, dtype=torch.int32)
        for call in (lambda rows=rows: accept_path(rows, tokens, tokens), lambda rows=rows:
                     tree_structure(rows)):  # fmt: skip
            with pytest.raises(ValueError, match="is not one of the rows before it"):
                call()
    with pytest.raises(ValueError, match="got 20000"):
        tree_structure(torch.zeros(20_000, dtype=torch.int32))
    builder = DraftTreeBuilder()
    with pytest.raises(ValueError, match="top_k"):
        builder.begin(0, 2**31 - 1)
    for early in (builder.frontier, lambda: builder._native.expand(tokens.data_ptr(), 5, 5, 0, 1)):
        with pytest.raises(RuntimeError, match="must be called"):
            early()
    builder.begin(0, 2)
    builder.first(torch.randn(5))
    for total in (-1, 0, 4, 2**31 - 1):
        with pytest.raises(ValueError, match="total_tokens must be from 1 to 1"):
            builder.finish(total)
    for levels in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="levels must be in"):
            builder.lookup_nodes([1], levels)
    with pytest.raises(ValueError, match="rows of nodes and lookup_tokens"):
        builder.finish_selected([], [1] * 20_000)
    assert len(builder.finish(3).token_ids) == 3


def filled_cache(mode: str) -> tuple[ActionCache, Callable[[], Tensor]]:
    horizon = 2 if mode == "scheduled" else 1
    cache = ActionCache(2, 3, mode, horizon=horizon, threshold=0.5, reference_size=4)
    logits, features = torch.randn(2, 3 * horizon), torch.rand(2, 4) + 1
    extra = {"features": features} if mode == "adaptive" else {}

    def step() -> Tensor:
        return action_cache_step(logits, TREES, cache, **extra)[0]

    step()
    return cache, step


SPOILED = {
    "step": (-1, 7, 2**31 - 1, -(2**31)),
    "interval": (0, -3, 4, 2**31 - 1),
    "horizon": (0, -1, 100, 2**31 - 1),
    "valid": (2, -1),
    "action": (-1, -(2**31)),
    "total_tokens": (0, -5),
    "depth": (-1,),
    "top_k": (0,),
    "lookup_tokens": (-1,),
    "threshold": (0x7FC00000, 0),
    "reference_norm": (0x7FC00000, 0x7F800000, -(2**31) + 1),
}


@pytest.mark.parametrize("mode", ["fixed", "adaptive", "scheduled"])
def test_a_state_that_no_step_leaves_behind(mode: str) -> None:
    for word, values in SPOILED.items():
        for value in values:
            cache, step = filled_cache(mode)
            good = cache.state_dict()
            bad = cache.state_dict()
            bad["state"][1, WORDS[word]] = value
            with pytest.raises(ValueError, match="can leave, got in slot 1"):
                cache.load_state_dict(bad)
            for name, tensor in good.items():
                if isinstance(tensor, Tensor):
                    assert torch.equal(getattr(cache, name), tensor)
            # The records are a tensor that anyone may write to.
            cache.state[1, WORDS[word]] = value
            for _ in range(9):
                assert (step() >= 0).tolist() == [True, True] or word == "action"
    cache, _ = filled_cache("scheduled")
    for name, replaced, error in (
        ("state", cache.state.float(), TypeError),
        ("state", cache.state[:1], ValueError),
        ("state", cache.state.to_sparse(), ValueError),
        ("state", cache.state.to("meta"), ValueError),
        ("ring", cache.ring - 100, ValueError),
        ("ring", None, ValueError),
        ("reference", torch.zeros(2, 4), ValueError),
    ):
        with pytest.raises(error):
            cache.load_state_dict(cache.state_dict() | {name: replaced})
    with pytest.raises(TypeError, match="must be what state_dict"):
        cache.load_state_dict([1])


def test_a_sound_state_is_taken() -> None:
    for mode in ("fixed", "adaptive", "scheduled"):
        cache, step = filled_cache(mode)
        kept = cache.state_dict()
        first = [step().tolist() for _ in range(8)]
        cache.load_state_dict(kept)
        assert [step().tolist() for _ in range(8)] == first
        empty = ActionCache(2, 3, mode, horizon=cache.horizon, threshold=0.5, reference_size=4)
        cache.load_state_dict(empty.state_dict())


def operator(weights: PolicyWeights, taps: Tensor, **changed: object) -> tuple:
    schema = torch.ops.eaglerl.fused_encode.default._schema
    values = (taps, None, None, None, None, *flatten(weights), 0.0, 0, 0, True)
    named = {a.name: value for a, value in zip(schema.arguments, values, strict=True)}
    return torch.ops.eaglerl.fused_encode(**(named | changed))


def test_operators_check_what_they_are_given() -> None:
    weights = make_weights(4, 5, (6,), 3, norm_chunks=3, norm_weight=True)
    x = torch.randn(2, 12)
    expected = fused_encode(x, None, None, weights)
    assert torch.equal(operator(weights, x)[1], expected.logits)
    matrices = list(flatten(weights)[0])
    for changed in (
        {"fallback_action": 3}, {"fallback_action": -1}, {"horizon": 0}, {"horizon": 2**62},
        {"norm_chunks": 2}, {"activation": "gelu"}, {"mlp_input": "text"}, {"eps": float("nan")},
        {"matrices": []}, {"matrices": matrices[:1]}, {"matrices": [m.double() for m in matrices]},
        {"matrices": [m.half() for m in matrices[:1]] + matrices[1:]},
        {"matrices": [m.t() for m in matrices]}, {"vectors": []},
        {"actions": TREES.long()}, {"actions": TREES[:0]}, {"actions": TREES.repeat(2, 1)},
        {"actions": TREES.repeat(1, 2)}, {"actions": TREES[:, :2].contiguous()},
        {"low": x[:, :9]}, {"low": x.long()},
        {"low": x.t()}, {"low": x[0]}, {"rows": torch.tensor([2])}, {"rows": torch.tensor([0.0])},
        {"last": torch.tensor([[0]])}, {"temperature": -1.0}, {"seed": -1}, {"fc_weight": None},
        {"norm_weight": torch.ones(3)}, {"fc_bias": torch.ones(50)}, {"mid": x},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            operator(weights, x, **changed)
    cache = ActionCache(2, 3, "scheduled", horizon=2)
    kept = (cache.state, None, cache.ring, None)
    for logits, trees, state, ring, mode, fallback in (
        (torch.randn(2, 6), TREES, kept[0], kept[2], 2, 9),
        (torch.randn(2, 6), TREES, kept[0], kept[2], 2, -1),
        (torch.randn(2, 6), TREES, kept[0], kept[2], 7, 0),
        (torch.randn(2, 6), TREES, kept[0], None, 2, 0),
        (torch.randn(2, 6), TREES, kept[0], kept[2][:, :1], 2, 0),
        (torch.randn(2, 6), TREES, kept[0].float(), kept[2], 2, 0),
        (torch.randn(2, 6), TREES, kept[0][:, :8], kept[2], 2, 0),
        (torch.randn(3, 6), TREES, kept[0], kept[2], 2, 0),
        (torch.randn(2, 7), TREES, kept[0], kept[2], 2, 0),
        (torch.randn(2, 6).double(), TREES, kept[0], kept[2], 2, 0),
        (torch.randn(2, 6), TREES[:0], kept[0], kept[2], 2, 0),
        (torch.randn(2, 6), TREES, kept[0], kept[2], 1, 0),
    ):
        with pytest.raises((ValueError, TypeError)):
            torch.ops.eaglerl.action_cache_step(
                logits, trees, None, state, None, ring, None, mode, 0.0, 0, 0, fallback
            )
    assert cache.stats().misses == 0


def test_objects_that_were_not_made_whole_do_nothing() -> None:
    calls = {
        C.PolicyEncoder: ("run", (0, 0, 0, 0, 0, 0)),
        C.DraftTreeBuilder: ("begin", (1, 2)),
        C.TensorGuard: ("unchanged", ()),
    }
    for kind, (method, arguments) in calls.items():
        with pytest.raises(RuntimeError, match="made without __init__"):
            getattr(kind.__new__(kind), method)(*arguments)
    with pytest.raises(RuntimeError, match="made without __init__"):
        C.PolicyEncoder(C.Policy.__new__(C.Policy), 1)


def test_one_encoder_in_two_threads_is_refused() -> None:
    weights = make_weights(512, 512, (256,), 7)
    encoder = FusedEncoder(weights, max_rows=256, max_sequences=256)
    inputs = [torch.randn(256, 1536) for _ in range(2)]
    expected = fused_encode(inputs[1], None, None, weights).action
    encoder.encode(inputs[0])
    refused = []

    def work(number: int) -> None:
        for _ in range(20):
            try:
                encoder.encode(inputs[number])
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) <= {"the object is at work in another thread"}
    encoder.encode(inputs[1])
    assert torch.equal(encoder.action, expected)


def policy_of(address: int, columns: int) -> object:
    floats = [address], [address], [4, 1]
    return C.Policy(*floats, 0, 0, 0, 0, 1, 0, 0, 0.0, False, address, 1, columns, 1, 0)


def test_numbers_that_native_code_can_check() -> None:
    array = np.zeros(128, np.float32)
    address = array.ctypes.data
    for call in (
        lambda: C.rms_norm(0, 8, 1, 0, address, address, 8, 1, 8, 1e-5, 1),
        lambda: C.rms_norm(address, 8, 1, 0, address, address, 8, 2, 8, 1e-5, 1),
        lambda: C.rms_norm(address + 1, 8, 1, 0, address, address, 8, 1, 8, 1e-5, 1),
        lambda: C.rms_norm(address, 8, 1, 0, address, address, 8, 1, 8, 1e-5, 0),
        lambda: C.rms_norm(address, 8, 2**62, 0, address, address, 2**62, 2**62, 8, 1e-5, 1),
        lambda: C.silu_mul(address, 8, address, -1, 4, 1),
        lambda: C.silu_mul(address, 8, address, 1, -(2**62), 1),
        lambda: C.move_rows(address, 1, 0, 1, 0, 4, address, 1, -1, 4),
        lambda: C.move_rows(0, 1, 0, 1, 0, 4, address, 1, 0, 4),
        lambda: C.move_rows(address, 1, 0, 1, 0, -4, address, 1, 0, 4),
        lambda: C.accept_path(address, address, address, 0, address),
        lambda: C.tree_structure(address, 65, address, address, 0),
        lambda: C.read_seconds(address, 64, 0),
        lambda: C.read_seconds(0, 64, 1),
        lambda: C.read_seconds(address + 1, 64, 1),
        lambda: C.check_range("rows", 0, 5, 5),
        lambda: C.Policy([1], [1], [0, 1], 0, 0, 0, 0, 1, 0, 0, 0.0, False, address, 1, 3, 1, 0),
        *(lambda n=columns: policy_of(address, n) for columns in (2, 5, -1, 2**40)),
        lambda: C.set_isa("\0avx2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|address|exceeds|overlap|before it"):
            call()
    assert not array.any()


@pytest.mark.parametrize("name", ["rows", "last", "slots"])
def test_an_index_with_less_memory_than_elements(name: str) -> None:
    weights = make_weights(4, 5, (6,), 3)
    x, cache = torch.randn(2, 12), ActionCache(4, 3)
    encoder = FusedEncoder(weights, cache, max_rows=2, max_sequences=2)
    index = torch.tensor([1, 0])
    index.untyped_storage().resize_(8)
    for call in (
        lambda: fused_encode(x, None, None, weights, cache=cache, **{name: index}),
        lambda: encoder.encode(x, **{name: index}),
        lambda: action_cache_step(torch.randn(2, 3), TREES, cache, slots=index),
    ):
        with pytest.raises(ValueError, match="must have memory for all its elements"):
            call()
    assert cache.stats().misses == 0
