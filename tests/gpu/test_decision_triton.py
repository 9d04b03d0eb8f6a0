"""The Triton kernels of the policy's ops on a device."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops import ActionCache, PolicyWeights, action_cache_step, fused_encode
from eaglerl.ops._encode_cpu import encode_cpu
from eaglerl.ops._encode_cuda import encode_cuda
from eaglerl.ops._encode_reference import choose_actions
from eaglerl.ops.action_cache import WORDS
from eaglerl.ops.fused_encode import fused_encode_ref

from ..ops.encode_model import assert_within, make_weights, model_features, model_logits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]
MODES = ("fixed", "adaptive", "scheduled")
TYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float16),
]
# Half the distance of a type's numbers around 1: what rounding to it may change.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Restore the debug mode in which a test forbids the host to wait for the device."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def decide(weights: PolicyWeights, inputs: tuple, *index: Tensor | None, **options) -> tuple:
    """Make one decision on the device, during which the host may not wait."""
    rows, last, cache, slots = (*index, None, None, None, None)[:4]
    draw = options.get("draw", (0.0, 0, 0))
    torch.cuda.set_sync_debug_mode("error")
    out = encode_cuda(
        weights, *inputs, rows, last, cache, slots, *draw, options.get("return_features", True)
    )
    torch.cuda.set_sync_debug_mode("default")
    return out


def make_inputs(reads: str, count: int, k: int, dtype: torch.dtype) -> tuple:
    if reads == "features":
        return torch.randn(count, k, device="cuda").to(dtype), None, None
    buffer = torch.randn(count, 3 * k + 8, device="cuda").to(dtype)
    return tuple(buffer[:, : 3 * k].chunk(3, dim=1))


def joined(inputs: tuple) -> Tensor:
    return torch.cat([part for part in inputs if part is not None], dim=1).cpu().double()


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
@pytest.mark.parametrize("k", [576, 333])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 60, 130])
def test_against_float64(reads: str, k: int, rows: int, types: tuple) -> None:
    """Every form, product and tile; odd widths, whose rows are not aligned."""
    chunks = 0 if reads == "features" else 3
    weights = make_weights(
        k, k, (128, 64), 203, reads=reads, dtype=types[1], norm_chunks=chunks,
        norm_weight=chunks > 0 and rows % 8 == 0,
    )  # fmt: skip
    inputs = make_inputs(reads, 200, k, types[0])
    index = torch.randperm(200)[:rows]
    last = torch.arange(rows)[:: max(rows // 8, 1)]
    for return_features in (True, False):
        features, logits, action, params = decide(
            weights.to("cuda"), inputs, index.cuda(), last.cuda(), return_features=return_features
        )
        x = joined(inputs)[index]
        assert_within(logits.cpu(), model_logits(x[last], weights))
        if reads == "fc" and return_features:
            expected = model_features(x, weights)
            assert_within(features.cpu(), expected, extra=ROUNDING[types[0]])
        assert torch.equal(action, logits.argmax(1).int())
        assert torch.equal(params.cpu(), weights.actions[action.long().cpu()])


@pytest.mark.parametrize("k", [576, 2048, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_public_op_against_its_reference(k: int, dtype: torch.dtype) -> None:
    weights = make_weights(k, k, (128, 128), 203, dtype=dtype, norm_chunks=3, norm_weight=True)
    on_device = weights.to("cuda")
    inputs = make_inputs("fc", 8, k, dtype)
    last = torch.tensor([7])
    out = fused_encode(*inputs, on_device, last=last.cuda())
    x = joined(inputs)
    assert_within(out.logits.cpu(), model_logits(x[last], weights))
    ref = fused_encode_ref(*(part.double() for part in inputs), on_device.to(dtype=torch.float64))
    # The bound of sums of 3k products, at 2**-24 a product, is loose; the mean error grows with
    # the root of their number.
    error = (out.features.double() - ref.features).square().mean().sqrt()
    size = ref.features.square().mean().sqrt()
    assert error < size * (ROUNDING[dtype] + 2.0**-23 * (3 * k) ** 0.5)
    folded = fused_encode(*inputs, on_device.fold(), last=last.cuda(), return_features=False)
    assert_within(folded.logits.cpu(), model_logits(x[last], weights.fold()))


@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
@pytest.mark.parametrize("sequences", [1, 8, 40])
def test_results_repeat_bit_for_bit(reads: str, sequences: int) -> None:
    """Whichever program is last; a store that the ticket does not order would show in time."""
    weights = make_weights(576, 576, (128, 64), 203, reads=reads, norm_chunks=0).to("cuda")
    inputs = make_inputs(reads, sequences, 576, torch.float32)
    first = decide(weights, inputs)
    busy = torch.randn(2048, 2048, device="cuda")
    for i in range(500):
        if i % 5 == 0:
            busy @ busy
        other = decide(weights, inputs)
        same = [torch.equal(a, b) for a, b in zip(first, other, strict=True) if a is not None]
        assert all(same), f"call {i}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reads", ["fc", "taps", "features"])
@pytest.mark.parametrize("sequences", [1, 4, 20])
@pytest.mark.parametrize("return_features", [True, False])
def test_integer_state_agrees_with_the_cpu(
    mode: str, reads: str, sequences: int, return_features: bool
) -> None:
    k, slots, horizon = 64, 24, 2 if mode == "scheduled" else 1
    encodes = return_features and reads == "fc"
    weights = make_weights(k, k, (32,), 9, reads=reads, horizon=horizon, fallback_action=3)
    size = k if encodes or reads == "features" else C.cache_sketch_size
    options = {"adaptive": {"reference_size": size}, "scheduled": {"horizon": 2}}.get(mode, {})
    ours, native = (ActionCache(slots, 3, mode, device, **options) for device in ("cuda", "cpu"))
    directions = torch.randn(3, 3 * k)
    on_device = weights.to("cuda")
    for step in range(30):
        # A slot's direction stays for a step; NaN comes where slots are empty.
        numbers = torch.randperm(sequences + 1)[:sequences] if step else torch.arange(sequences)
        x = directions[(numbers + step // 3) % 3] + 0.01 * torch.randn(sequences, 3 * k)
        if step == 0:
            x[0] = float("nan")
        x = x[:, :k].contiguous() if reads == "features" else x
        got = decide(
            on_device, (x.cuda(), None, None), None, None, ours, numbers.cuda(),
            return_features=encodes,
        )  # fmt: skip
        expected = encode_cpu(
            weights, x, None, None, None, None, native, numbers, 0.0, 0, 0, encodes
        )
        assert torch.equal(got[2].cpu(), expected[2])
        assert torch.equal(got[3].cpu(), expected[3])
        words = [word for name, word in WORDS.items() if name != "reference_norm"]
        assert torch.equal(ours.state[:, words].cpu(), native.state[:, words])
        if mode == "scheduled":
            assert torch.equal(ours.ring.cpu(), native.ring)
    stats = native.stats()
    assert min(stats.hits, stats.misses, stats.fallbacks) > 0


@pytest.mark.parametrize("mode", MODES)
def test_steps_from_logits_agree_with_the_cpu(mode: str) -> None:
    horizon, slots = 2 if mode == "scheduled" else 1, 12
    options = {"adaptive": {"reference_size": 20}, "scheduled": {"horizon": 2}}.get(mode, {})
    ours, native = (ActionCache(slots, 3, mode, device, **options) for device in ("cuda", "cpu"))
    trees, directions = torch.randint(1, 60, (9, 3), dtype=torch.int32), torch.randn(3, 20)
    for step in range(40):
        count = 1 + step % slots
        logits = torch.randn(count, horizon * 9)
        logits[0, step % 9] = float("inf") if step % 7 == 0 else 0.0
        numbers = torch.randperm(slots)[:count]
        features = None
        if mode == "adaptive":
            features = directions[(numbers + step // 3) % 3] + 0.01 * torch.randn(count, 20)
        torch.cuda.set_sync_debug_mode("default")
        moved = None if features is None else features.cuda()
        got = action_cache_step(
            logits.cuda(), trees.cuda(), ours, slots=numbers.cuda(), features=moved
        )
        expected = action_cache_step(logits, trees, native, slots=numbers, features=features)
        assert torch.equal(got[0].cpu(), expected[0])
        words = [word for name, word in WORDS.items() if name != "reference_norm"]
        assert torch.equal(ours.state[:, words].cpu(), native.state[:, words])


def test_draws_invert_the_distribution() -> None:
    weights = make_weights(64, 64, (32,), 40, reads="features").to("cuda")
    inputs = make_inputs("features", 1000, 64, torch.float32)
    seed, offset = 2**40 + 3, 2**35 + 1
    _, logits, action, _ = decide(weights, inputs, draw=(0.8, seed, offset))
    expected = choose_actions(logits.double().cpu(), 40, temperature=0.8, seed=seed, offset=offset)[
        :, 0
    ]
    # A number may lie within the rounding of float32 sums of a boundary: about one in 100,000.
    assert (action.cpu() != expected).sum() <= 1


def test_streams_do_not_share_scratch_memory() -> None:
    weights = make_weights(2048, 2048, (128,), 203).to("cuda")
    inputs = [make_inputs("fc", 4, 2048, torch.float32) for _ in range(2)]
    alone = [decide(weights, x)[1] for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    together: list[list[Tensor]] = [[], []]
    for _ in range(50):
        for stream, x, results in zip(streams, inputs, together, strict=True):
            with torch.cuda.stream(stream):
                results.append(decide(weights, x)[1])
    torch.cuda.synchronize()
    for expected, results in zip(alone, together, strict=True):
        assert all(torch.equal(expected, result) for result in results)


def test_a_captured_decision_goes_on_counting() -> None:
    """CUDA graphs: records and tickets live on the device, so a replay is a step."""
    weights = make_weights(576, 576, (64,), 9).to("cuda")
    cache = ActionCache(1, 4, device="cuda")
    inputs = make_inputs("fc", 1, 576, torch.float32)
    decide(weights, inputs, None, None, cache)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = encode_cuda(weights, *inputs, None, None, cache, None, 0.0, 0, 0, True)
    for _ in range(11):
        graph.replay()
    torch.cuda.synchronize()
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (9, 3)
    assert torch.equal(captured[2], decide(weights, inputs)[2])


def test_what_is_out_of_range_falls_back() -> None:
    weights = make_weights(64, 64, (32,), 9, fallback_action=5).to("cuda")
    inputs = make_inputs("fc", 4, 64, torch.float32)
    rows = torch.tensor([0, 4, -1, 2**40], device="cuda")
    _, logits, action, _ = decide(weights, inputs, rows)
    assert action[1:].tolist() == [5, 5, 5]
    assert logits[0].isfinite().all()
    cache = ActionCache(2, device="cuda")
    slots = torch.tensor([1, 2, -1, 2**40], device="cuda")
    _, _, action, _ = decide(weights, inputs, None, None, cache, slots)
    assert action[1:].tolist() == [5, 5, 5]
    assert cache.state[:, WORDS["misses"]].tolist() == [0, 1]
