"""The CUDA C++ kernels of the policy's ops on a device."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._decision_cuda import decide_cuda, has_cuda_kernels, step_cuda
from eaglerl.ops._philox import philox_uniform
from eaglerl.ops.action_cache import WORDS, ActionCache
from eaglerl.ops.fused_encode import fused_encode_ref
from eaglerl.ops.policy_weights import PolicyWeights

from ..csrc.reference import logits_with_bound, wide
from ..csrc.test_folded_decision import DTYPES, GREEDY, make_features, make_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not has_cuda_kernels(), reason="the extension was built without CUDA"),
]
MODES = ("fixed", "adaptive", "scheduled")


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Restore the debug mode in which a test forbids the host to wait for the device."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_device(weights: PolicyWeights, places: int = 0) -> PolicyWeights:
    """Return the weights on the device, each some places after an aligned address."""
    moved = weights.to("cuda")
    for matrix in (*moved.hidden_weights, moved.output_weight):
        matrix.set_(unaligned_on_device(matrix, places))
    return moved


def unaligned_on_device(matrix: Tensor, places: int) -> Tensor:
    buffer = torch.full((matrix.numel() + 64,), torch.nan, dtype=matrix.dtype, device="cuda")
    start = -buffer.data_ptr() % 16 // matrix.itemsize + places
    return buffer[start : start + matrix.numel()].view(matrix.shape).copy_(matrix)


def decide(
    weights: PolicyWeights,
    taps: list[Tensor],
    cache: ActionCache | None = None,
    slots: Tensor | None = None,
    draw: tuple[float, int, int] = GREEDY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one decision, during which the host may not wait."""
    inputs = (*taps, None, None)[:3]
    torch.cuda.set_sync_debug_mode("error")
    decided = decide_cuda(weights, *inputs, None, None, cache, slots, *draw)
    torch.cuda.set_sync_debug_mode("default")
    return decided


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [5, 64, 577, 576, 2048, 4096])
@pytest.mark.parametrize("sequences", [1, 3, 20])
@pytest.mark.parametrize("places", [0, 1])
def test_logits_match_the_reference(
    dtype: torch.dtype, k: int, sequences: int, places: int
) -> None:
    weights = make_weights(3 * k, (64, 64), 53, dtype, norm_chunks=3)
    taps = make_features(sequences, k, dtype)
    expected = fused_encode_ref(*(part.double() for part in taps), weights.to(dtype=torch.float64))
    _, bound = logits_with_bound(weights, wide(torch.cat(taps, -1)))
    device = [part.cuda() for part in taps]
    logits, action, params = decide(on_device(weights, places), device)
    assert (np.abs(wide(logits.cpu()) - wide(expected.logits)) <= bound).all()
    chosen = logits.cpu().argmax(-1)
    assert torch.equal(action.cpu(), chosen.to(torch.int32))
    assert torch.equal(params.cpu(), weights.actions[chosen])


def test_folded_weights_and_strided_rows() -> None:
    full = PolicyWeights(
        **{
            name: getattr(make_weights(192, (64,), 20, mlp_input="features"), name)
            for name in (
                "hidden_weights",
                "hidden_biases",
                "output_weight",
                "output_bias",
                "actions",
            )
        },
        fc_weight=torch.randn(192, 3 * 320) / 30,
        norm_weight=torch.rand(3 * 320) + 0.5,
        norm_chunks=3,
    )
    folded = full.fold()
    taps = make_features(40, 320, torch.bfloat16)
    rows, last = torch.randperm(40)[:24], torch.tensor([3, 9, 23])
    reference = fused_encode_ref(
        *(part.double() for part in taps), folded.to(dtype=torch.float64), rows=rows, last=last
    )
    _, bound = logits_with_bound(folded, wide(torch.cat(taps, -1)[rows[last]]))
    wider = [torch.cat([part, part], -1).cuda()[:, : part.shape[1]] for part in taps]
    index = (rows.cuda(), last.cuda())
    logits, _, _ = decide_cuda(folded.to("cuda"), *wider, *index, None, None, *GREEDY)
    assert (np.abs(wide(logits.cpu()) - wide(reference.logits)) <= bound).all()


def test_results_repeat_bit_for_bit() -> None:
    weights = on_device(make_weights(3 * 4096, (128, 64), 100, torch.bfloat16, norm_chunks=3))
    taps = [part.cuda() for part in make_features(64, 4096, torch.bfloat16)]
    first = decide(weights, taps, draw=(0.7, 3, 4))
    for _ in range(50):
        again = decide(weights, taps, draw=(0.7, 3, 4))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_streams_do_not_share_scratch_memory() -> None:
    weights = on_device(make_weights(3 * 2048, (64,), 50, torch.bfloat16))
    inputs = [[part.cuda() for part in make_features(1, 2048, torch.bfloat16)] for _ in range(4)]
    expected = [decide(weights, taps) for taps in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(100):
        results = []
        for stream, taps in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(decide(weights, taps))
        torch.cuda.synchronize()
        for given, wanted in zip(results, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sequences", [1, 12])
def test_integer_state_agrees_with_the_cpu(mode: str, sequences: int) -> None:
    horizon = 3 if mode == "scheduled" else 1
    weights = make_weights(200, (32,), 40, mlp_input="features", horizon=horizon)
    device_weights = on_device(weights)
    extra = {"reference_size": 200} if mode == "adaptive" else {"horizon": horizon}
    device = ActionCache(sequences + 3, 4, mode, "cuda", **extra)
    host = ActionCache(sequences + 3, 4, mode, **extra)
    features = torch.randn(sequences, 200)
    for _ in range(200):
        renewed = torch.rand(sequences, 1) < 0.3
        fresh = torch.randn(sequences, 200)
        features = torch.where(renewed, fresh, features + 0.01 * fresh)
        slots = torch.randperm(sequences + 3)[:sequences]
        logits, action, params = decide(device_weights, [features.cuda()], device, slots.cuda())
        # From the device's own logits; where it held, NaN, which would count as a fallback here.
        given = step_on_cpu(logits.cpu(), weights.actions, host, slots, features)
        assert torch.equal(action.cpu(), given[0])
        assert torch.equal(params.cpu(), given[1])
        state = device.state.cpu()
        state[:, WORDS["reference_norm"]] = host.state[:, WORDS["reference_norm"]]
        assert torch.equal(state, host.state)
        assert host.ring is None or torch.equal(device.ring.cpu(), host.ring)
    stats = device.stats()
    assert min(stats.hits, stats.misses) > 0


def step_on_cpu(
    logits: Tensor, trees: Tensor, cache: ActionCache, slots: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    action = torch.empty(len(logits), dtype=torch.int32)
    params = torch.empty(len(logits), 3, dtype=torch.int32)
    compared = None if cache.reference is None else features
    tensors = (logits, trees, compared, cache.state, cache.reference, cache.ring, slots, action)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*tensors, params)]
    sizes = (len(logits), *trees.shape, cache.horizon, cache.slots, cache.reference_size or 0)
    C.action_cache_step(*addresses, *sizes, cache.mode, *GREEDY, 0)
    return action, params


@pytest.mark.parametrize("mode", MODES)
def test_step_agrees_with_the_cpu(mode: str) -> None:
    horizon = 2 if mode == "scheduled" else 1
    trees = torch.randint(1, 60, (70, 3), dtype=torch.int32)
    extra = {"reference_size": 50} if mode == "adaptive" else {"horizon": horizon}
    device, host = ActionCache(9, 3, mode, "cuda", **extra), ActionCache(9, 3, mode, **extra)
    for _ in range(100):
        logits = torch.randn(6, horizon * 70)
        logits[torch.rand(logits.shape) < 0.001] = torch.inf
        features, slots = torch.randn(6, 50), torch.randperm(9)[:6]
        wanted = step_on_cpu(logits, trees, host, slots, features)
        compared = features.cuda() if mode == "adaptive" else None
        kept = (device.state, device.reference, device.ring, slots.cuda(), device.mode)
        given = step_cuda(logits.cuda(), trees.cuda(), compared, *kept, *GREEDY, 0)
        assert torch.equal(given[0].cpu(), wanted[0])
        assert torch.equal(given[1].cpu(), wanted[1])
    assert device.stats() == host.stats()


def test_draws_invert_the_distribution() -> None:
    logits, trees = torch.randn(500, 100), torch.ones(100, 3, dtype=torch.int32)
    cache = ActionCache(500, 1, "fixed", "cuda")
    kept = (cache.state, None, None, None, cache.mode)
    action, _ = step_cuda(logits.cuda(), trees.cuda(), None, *kept, 0.8, 11, 2**35, 0)
    share = (logits.double() / 0.8).softmax(-1).cumsum(-1)
    uniform = philox_uniform(11, 2**35, 500, 1)
    clear = (share - uniform).abs().amin(-1) > 1e-5  # else rounding decides
    assert clear.float().mean() > 0.9
    expected = (share > uniform).to(torch.int8).argmax(-1)
    assert torch.equal(action.cpu()[clear], expected[clear].to(torch.int32))


def test_slots_and_rows_out_of_range_and_nan() -> None:
    weights = on_device(make_weights(3 * 64, (16,), 6, fallback_action=4))
    taps = [part.cuda() for part in make_features(6, 64, torch.float32)]
    taps[2][1, 5] = torch.nan
    cache = ActionCache(4, 5, "fixed", "cuda")
    slots = torch.tensor([3, 1, -1, 2**40, 4, 0], device="cuda")
    rows = torch.tensor([0, 1, 2, 3, 4, 77], device="cuda")
    _, action, _ = decide_cuda(weights, *taps, rows, None, cache, slots, *GREEDY)
    assert action.tolist()[1:] == [4] * 5
    assert cache.state[:, WORDS["fallbacks"]].tolist() == [1, 1, 0, 0]
    assert cache.state[:, WORDS["misses"]].tolist() == [1, 1, 0, 1]


def test_decision_can_be_captured_in_a_graph() -> None:
    weights = on_device(make_weights(3 * 576, (64,), 50, torch.bfloat16, norm_chunks=3))
    taps = [part.cuda() for part in make_features(1, 576, torch.bfloat16)]
    cache = ActionCache(1, 3, "fixed", "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        decide_cuda(weights, *taps, None, None, None, None, *GREEDY)  # allocates scratch memory
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        _, action, _ = decide_cuda(weights, *taps, None, None, cache, None, *GREEDY)
    for _ in range(7):
        graph.replay()
    expected = decide(weights, taps)[1]
    assert torch.equal(action, expected)
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (4, 3)


def test_one_kernel_a_decision() -> None:
    weights = on_device(make_weights(3 * 576, (64,), 50, torch.bfloat16))
    taps = [part.cuda() for part in make_features(4, 576, torch.bfloat16)]
    decide(weights, taps)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            decide(weights, taps)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if "kernel" in event.name]
    assert len(names) == 5
    assert all("folded_decision_kernel" in name for name in names)
