"""Measures which tiles are fastest on this device and stores them.

    python -m eaglerl.kernels.tune --k 4096 --dtype bfloat16 --hidden 128 128

Decisions look up their tiles and never measure. Without this command the defaults are used.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from eaglerl.kernels._launch import Decisions, Launch
from eaglerl.kernels._plan import Tiles
from eaglerl.kernels._settings import default_tiles, forget_plans, form_of, policy_of
from eaglerl.kernels.fused_encode_kernel import prepare_fused_encode
from eaglerl.kernels.policy_mlp_kernel import prepare_policy_mlp
from eaglerl.kernels.tuning import store_tiles, tuning_path

_FORMS = ("fused", "folded", "features")
_GREEDY = 0.0, 0, 0
_REPEATS = 30
_FLUSHED = 256 * 2**20  # bytes, more than the L2 cache of any device


def candidates(default: Tiles, form: str) -> list[Tiles]:
    """Return the default tiles and the alternatives worth measuring."""
    rows, most = default.rows, default.elements
    if form != "fused":
        return _unique(
            default,
            (
                Tiles(rows, columns, elements, warps, 3, 255)
                for columns in (4, 8, 16, 32)
                for elements in (most // 2, most, most * 2)
                for warps in (4, 8)
                if 32 * warps <= rows * columns * elements <= 128 * 32 * warps
            ),
        )
    if rows >= 16:
        return _unique(
            default,
            (
                Tiles(rows, columns, elements, 4, stages, 255)
                for columns in (16, 32, 64)
                for elements in (most // 2, most, most * 2)
                for stages in (4, 8)
                if elements >= 16 and (rows + columns) * elements * stages <= 40960
            ),
        )
    by_vectors = [
        Tiles(rows, columns, elements, warps, 3, registers)
        for columns in (2, 4, 8)
        for elements in (most // 2, most)
        for warps, registers in ((4, 255), (4, 168), (8, 168))
        if rows * columns * elements <= 64 * 32 * warps and columns * elements >= 32 * warps
    ]
    by_matrices = [] if rows == 1 else [Tiles(16, c, 64, 4, 8, 255) for c in (16, 32)]
    return _unique(default, by_vectors + by_matrices)


def _unique(default: Tiles, others: Iterable[Tiles]) -> list[Tiles]:
    return list(dict.fromkeys([default, *others]))


def choose_tiles(
    tiles: Sequence[Tiles],
    prepare: Callable[[Tiles], tuple[Launch, Decisions]],
    measure: Callable[[Launch], float],
    device: torch.device,
) -> tuple[Tiles, dict[Tiles, float]]:
    """Return the fastest tiles, and all times, after checking that all give the same logits.

    Args:
        tiles: candidates; the logits of the first are the reference.
        prepare: makes a launch and its outputs.
        measure: times a launch, in any unit.
        device: where to launch.

    Raises:
        RuntimeError: some tiles give other logits than the first: a compiler or kernel bug.
    """
    times: dict[Tiles, float] = {}
    expected: Tensor | None = None
    for candidate in tiles:
        launch, decisions = prepare(candidate)
        launch.run(device)
        logits = decisions.logits.clone()
        expected = logits if expected is None else expected
        # The order of up to about 10,000 products differs.
        if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3):
            worst = (logits - expected).abs().max().item()
            raise RuntimeError(f"{candidate} gives other logits than {tiles[0]}, by {worst}")
        times[candidate] = measure(launch)
    return min(times, key=times.__getitem__), times


def tune(
    k: int,
    hidden: Sequence[int],
    dtype: torch.dtype,
    *,
    actions: int = 256,
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    forms: Sequence[str] = _FORMS,
    norm_chunks: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Measure and store the tiles for a width and dtype on the current device.

    Args:
        k: width of one feature layer, of the FC's output and of reduced features.
        hidden: widths of the policy's hidden layers.
        dtype: dtype of inputs and weights.
        actions: a.
        rows: numbers of rows, powers of two; without an FC only those up to 8 are measured.
        forms: any of "fused", "folded" and "features".
        norm_chunks: whether the features are normalised, see ``PolicyWeights``.
        report: called with a line for each choice.

    Raises:
        RuntimeError: there is no CUDA device, or tiles give different logits.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("tuning needs a CUDA device, but torch finds none")
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    flush = torch.empty(_FLUSHED, dtype=torch.int8, device=device)
    for form in forms:
        weights = random_policy(k, hidden, dtype, form, actions, norm_chunks, device)
        policy = policy_of(weights)
        assert form_of(policy) == form
        for count in rows:
            if form != "fused" and count > 8:
                continue
            inputs = tuple(
                torch.randn(count, k, device=device).to(dtype) for _ in range(policy.chunks)
            )
            default = default_tiles(policy, dtype.itemsize, count)
            chosen, times = choose_tiles(
                candidates(default, form),
                lambda tiles, weights=weights, inputs=inputs: prepare(weights, inputs, tiles),
                lambda launch: seconds(launch, device, flush),
                device,
            )
            store_tiles(name, form, k, dtype, count, chosen)
            forget_plans()
            report(
                f"{form}, k={k}, {dtype}, rows={count}: {chosen}, {times[chosen] * 1e6:.1f} us "
                f"(default {times[default] * 1e6:.1f} us)"
            )


def prepare(weights: Any, inputs: tuple[Tensor, ...], tiles: Tiles) -> tuple[Launch, Decisions]:
    """Prepare a launch without a cache in which every row is a sequence."""
    if weights.fc_weight is None:
        return prepare_policy_mlp(weights, inputs, None, None, None, None, _GREEDY, tiles=tiles)
    return prepare_fused_encode(
        weights, inputs, None, None, None, None, _GREEDY, return_features=True, tiles=tiles
    )


def seconds(launch: Launch, device: torch.device, flush: Tensor) -> float:
    """Return the median time of a launch on the device with its weights not in L2."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_REPEATS)]
    for start, end in events:
        flush.zero_()
        start.record()
        launch.run(device)
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def random_policy(
    k: int,
    hidden: Sequence[int],
    dtype: torch.dtype,
    form: str,
    actions: int,
    norm_chunks: int,
    device: torch.device,
) -> Any:
    """Return random weights with the attributes that launchers read."""
    joined = 0 if form == "features" else 3 * k
    widths = [joined if form == "folded" else k, *hidden, actions]
    matrices = [
        (torch.randn(rows, columns, device=device) * columns**-0.5).to(dtype)
        for columns, rows in itertools.pairwise(widths)
    ]
    vectors = [torch.randn(width, device=device) for width in widths[1:]]
    fused = form == "fused"
    return SimpleNamespace(
        hidden_weights=tuple(matrices[:-1]),
        hidden_biases=tuple(vectors[:-1]),
        output_weight=matrices[-1],
        output_bias=vectors[-1],
        actions=torch.ones(actions, 3, dtype=torch.int32, device=device),
        fc_weight=(torch.randn(k, joined, device=device) * joined**-0.5).to(dtype)
        if fused
        else None,
        fc_bias=None,
        norm_weight=torch.ones(joined, device=device) if fused and norm_chunks else None,
        norm_chunks=norm_chunks if joined else 0,
        eps=1e-6,
        activation="tanh",
        horizon=1,
        fallback_action=0,
        joined_size=joined or None,
        feature_size=None if form == "folded" else k,
        dtype=dtype,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m eaglerl.kernels.tune", description=__doc__)
    parser.add_argument("--k", type=int, nargs="+", required=True, help="widths of a feature layer")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--actions", type=int, default=256)
    parser.add_argument("--norm-chunks", type=int, default=0, choices=[0, 1, 3])
    options = parser.parse_args()
    for k in options.k:
        tune(
            k,
            options.hidden,
            getattr(torch, options.dtype),
            actions=options.actions,
            norm_chunks=options.norm_chunks,
        )
    print(f"stored in {tuning_path()}")  # noqa: T201


if __name__ == "__main__":
    main()
