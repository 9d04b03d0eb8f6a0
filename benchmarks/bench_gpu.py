"""Times of the policy's kernels and of the decoding loop on a CUDA device.

    python benchmarks/bench_gpu.py [--k 576 2048 4096] [--batch 1 8 64] [--json FILE] [--minutes 4]

For every width k of a target's layers and every number of sequences: the fused decision with and
without a decision that is kept, the folded one, and the choice of a draft's nodes after a pass;
microseconds between two events, the share of the device's copy bandwidth that reading the weights
reaches, launches, and waits of the host. Then cycles of the decoding loop, with a target of random
weights of that width made on the device: a constant tree beside `AutoPolicy` and `LimitedPolicy`,
call by call and in CUDA graphs, of as many sequences together, with the launches and waits of each
cycle. What does not fit the minutes or the memory is left out, and the result says so. With
`--device cpu` the same calls run on the CPU, one sequence after another, to see that they run;
those times are no results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eaglerl.eagle3 import FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.head.draft_config import Eagle3Config
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.named_policies import PolicyChoice
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.ops import (
    ActionCache,
    NodeSelection,
    PolicyWeights,
    SelectionSizes,
    fused_encode,
    pack_rule,
    select_draft_nodes,
    stack_rules,
)
from eaglerl.ops.node_selection import CONSTANTS
from eaglerl.policies import AutoPolicy, LimitedPolicy

HIDDEN, ACTIONS, REPEATS = (128, 128), 203, 50
FLUSHED = 256 * 2**20  # bytes, more than any device's L2
# Not cudaDeviceSynchronize, which leaving the profiler calls itself.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx",
            "cudaGraphLaunch")  # fmt: skip
SIZES = {"automatic": SelectionSizes(4, 5, 32, 12), "EAGLE's": SelectionSizes(10, 7, 60, 12)}
#: Layers, heads, key and value heads, width of the SwiGLU block: of SmolLM2-135M, Llama-3.2-1B and
#: Llama-3.1-8B.
SHAPES = {576: (30, 9, 3, 1536), 2048: (16, 32, 8, 8192), 4096: (32, 32, 8, 14336)}
VOCABULARY, DRAFT_VOCABULARY = 32_000, 16_000
Call = Callable[[], object]


class Clock:
    """Medians of a call's time: between two events on a device, by the host's clock elsewhere."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._device, self._repeats = device, repeats

    def __call__(self, call: Call, flush: torch.Tensor | None = None) -> float:
        """Return the median microseconds of a call; `flush` is overwritten before each."""
        for _ in range(min(5, self._repeats)):
            call()
        if self._device.type != "cuda":
            return statistics.median(self._on_host(call) for _ in range(self._repeats)) * 1e6
        pairs = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self._repeats)
        ]
        for start, end in pairs:
            if flush is not None:
                flush.zero_()
            # The host is let ahead, so that its own time is not in the device's.
            torch.cuda._sleep(200_000)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) * 1e3

    @staticmethod
    def _on_host(call: Call) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started


def profiler() -> torch.profiler.profile:
    """Return a profiler of the host's calls and of the device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    return torch.profiler.profile(activities=activities)


def count_launches(call: Call, device: torch.device) -> tuple[int, int]:
    """Return how many kernels a call starts, and how often the host waits; 0 without a device."""
    if device.type != "cuda":
        return 0, 0
    call()
    torch.cuda.synchronize()
    with profiler() as profile:
        call()
    events = list(profile.events())
    kernels = [
        event
        for event in events
        if event.device_type == torch.autograd.DeviceType.CUDA
        and "memcpy" not in event.name.lower()
    ]
    return len(kernels), sum(event.name in WAITS for event in events)


def copy_bandwidth(clock: Clock, device: torch.device) -> float:
    """Return the bytes a second that a copy within the device's memory reads and writes."""
    elements = 2**28 if device.type == "cuda" else 2**20
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (clock(lambda: target.copy_(source)) * 1e-6)


def decisions(k: int, batch: int, device: torch.device) -> Iterator[tuple[str, Call, int]]:
    """Yield the decisions from the target's features: name, call, bytes of its weights."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    widths = (k, *HIDDEN)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, HIDDEN, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], ACTIONS))
    actions = [[1 + i % 60, 1, 10] for i in range(ACTIONS)]
    fc = nn.Linear(3 * k, k, bias=False)
    weights = PolicyWeights.from_modules(mlp, actions, fc=fc)
    folded = weights.fold().to(device, dtype)
    weights = weights.to(device, dtype)
    taps = [torch.randn(batch, k, device=device).to(dtype) for _ in range(3)]
    size = weights.fc_weight.nbytes if weights.fc_weight is not None else 0
    rest = sum(m.nbytes for m in (*weights.hidden_weights, weights.output_weight))
    folded_bytes = sum(m.nbytes for m in (*folded.hidden_weights, folded.output_weight))
    keeping = ActionCache(batch, 2**30, device=device)
    yield "fused", lambda: fused_encode(*taps, weights), size + rest
    yield "fused, kept decision", lambda: fused_encode(*taps, weights, cache=keeping), size
    yield "folded", lambda: fused_encode(*taps, folded, return_features=False), folded_bytes


def selections(batch: int, device: torch.device) -> Iterator[tuple[str, Call, int]]:
    """Yield the choice of nodes after a pass; it reads no weights."""
    for name, sizes in SIZES.items():
        match = CONSTANTS["longest_match"] + 1
        rule = pack_rule(
            sizes,
            {
                "confidence": 1.0, "agree": [1.0] * match, "disagree": [-1.0] * match,
                "tail": [[0.5] * sizes.lookup_tokens] * match,
                "price": [0.02 * row for row in range(sizes.rows)],
                "pass_price": [0.0] * sizes.depth, "ratio": [0.9] * sizes.depth,
                "gain": [1.0] * sizes.depth,
            },
        )  # fmt: skip
        rules = stack_rules([rule] * batch, device)
        selection = NodeSelection(batch, sizes, device=device)
        roots = torch.zeros(batch, dtype=torch.int64, device=device)
        levels = []
        for level in range(2):
            shape = (batch, 1 if level == 0 else sizes.top_k, sizes.top_k)
            ids = torch.randint(VOCABULARY, shape, device=device)
            levels.append((ids, -torch.rand(shape, device=device)))
        # The first level begins a draft, so every call does all of its work.
        first = levels[0]

        def call(
            selection: NodeSelection = selection,
            rules: torch.Tensor = rules,
            roots: torch.Tensor = roots,
            first: tuple[torch.Tensor, torch.Tensor] = first,
        ) -> None:
            select_draft_nodes(selection, rules, 0, roots, *first)

        yield f"choice of nodes, {name} draft", call, 0


def random_pair(
    k: int, device: torch.device, layers: int | None, dtype: torch.dtype
) -> tuple[TargetModel, Eagle3DraftHead]:
    """Return a target and a head of random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    depth, heads, kv_heads, intermediate = SHAPES[k]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=k, intermediate_size=intermediate,
        num_hidden_layers=layers or depth, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=64 if k < 4096 else 128,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config).eval()
            head_config = Eagle3Config(
                hidden_size=k, intermediate_size=intermediate, num_attention_heads=heads,
                num_key_value_heads=kv_heads, head_dim=config.head_dim, vocab_size=VOCABULARY,
                draft_vocab_size=DRAFT_VOCABULARY,
            )  # fmt: skip
            head = Eagle3DraftHead(head_config)
        finally:
            torch.set_default_dtype(torch.float32)
    head.requires_grad_(False)
    return make_target(model, backend="transformers"), head


def loops(
    arguments: argparse.Namespace, k: int, deadline: float, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of all loops of a width; append to `left_out` what is left out."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    target, head = random_pair(k, device, arguments.layers, dtype)
    policies: dict[str, Callable[[], PolicyChoice]] = {
        "plain": lambda: TreeParams(1),
        "constant 32/5/4": lambda: TreeParams(32, 5, 4),
        "AutoPolicy": AutoPolicy,
        "LimitedPolicy": lambda: LimitedPolicy(FusedPolicy(limits_of(k))),
    }
    for batch in arguments.batch:
        prompts = torch.randint(VOCABULARY, (batch, 64)).tolist()
        for graphs in (False, True) if device.type == "cuda" else (False,):
            decoder = SpeculativeDecoder(target, head, cuda_graphs=graphs)
            for name, make in policies.items():
                if graphs and name == "plain":
                    continue
                full = f"{name}, graphs" if graphs else name
                shown = f"loop, {full}, k = {k}, {batch} sequences"
                if time.monotonic() > deadline:
                    left_out.append(shown)
                    continue
                try:
                    found = measure_loop(decoder, prompts, make(), arguments.tokens)
                    yield {"name": full, "k": k, "batch": batch, **found}
                except torch.OutOfMemoryError:
                    left_out.append(f"{shown}, for lack of memory")
            # Before the next ones are made: caches and graphs.
            del decoder
            if device.type == "cuda":
                torch.cuda.empty_cache()


def limits_of(k: int) -> PolicyWeights:
    """Return a network as large as those of the calls that chooses the limits of drafts."""
    layers: list[nn.Module] = []
    for width, size in pairwise((3 * k, *HIDDEN, 4)):
        layers += [nn.Linear(width, size), nn.Tanh()]
    actions = [(32, 5, 4, 12), (16, 3, 4, 12), (16, 5, 2, 4), (8, 1, 4, 0)]
    return PolicyWeights.from_modules(nn.Sequential(*layers[:-1]), actions, mlp_input="taps")


def measure_loop(
    decoder: SpeculativeDecoder, prompts: list[list[int]], policy: PolicyChoice, tokens: int
) -> dict[str, float]:
    """Return median microseconds, number, tokens, launches and waits of the cycles of a loop.

    A cycle's time is that of all sequences; its tokens are those of all sequences, on average.
    """
    # Graphs are captured when they are needed for the second time.
    for _ in range(2):
        decoder.generate(prompts, policy, max_new_tokens=tokens)
    output = decoder.generate(prompts, policy, max_new_tokens=tokens)
    # Cycles in which all sequences took part: a result has its share of the time.
    cycles = [*zip(*(one.cycles[2:] for one in output.per_sequence), strict=False)]
    seconds = [sum(result.seconds for result in cycle) for cycle in cycles]
    emitted = [sum(len(result.token_ids) for result in cycle) for cycle in cycles]
    launches, waits = count_of_cycle(decoder, prompts, policy)
    return {
        "cycle_us": statistics.median(seconds) * 1e6, "cycles": len(cycles),
        "tokens": statistics.mean(emitted), "launches": launches, "waits": waits,
    }  # fmt: skip


def count_of_cycle(
    decoder: SpeculativeDecoder, prompts: list[list[int]], policy: PolicyChoice
) -> tuple[float, float]:
    """Return launches and waits of a cycle, on average; 0 without a device.

    They are those of a longer text less those of a shorter one, which has the same prompts. Of more
    than 8 sequences, whose prompts would fill the profile, it is 8.
    """
    prompts = prompts[:8]
    if decoder.target.device.type != "cuda":
        return 0.0, 0.0
    counted = []
    for tokens in (8, 40):
        with profiler() as profile:
            output = decoder.generate(prompts, policy, max_new_tokens=tokens)
        names = [event.name for event in profile.events()]
        cycles = max(len(one.cycles) for one in output.per_sequence)
        counted.append((cycles, *(sum(name in wanted for name in names)
                                  for wanted in (LAUNCHES, WAITS))))  # fmt: skip
    cycles, launches, waits = (late - early for early, late in zip(*counted, strict=True))
    return launches / max(cycles, 1), waits / max(cycles, 1)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return all that there was time for."""
    device = torch.device(arguments.device)
    deadline = time.monotonic() + 60 * arguments.minutes
    clock = Clock(device, arguments.repeats)
    cuda = device.type == "cuda"
    flush = torch.empty(FLUSHED, dtype=torch.int8, device=device) if cuda else None
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "copy_bandwidth": copy_bandwidth(clock, device),
        "calls": [], "loops": [], "left_out": [],
    }  # fmt: skip
    for k in arguments.k:
        for batch in arguments.batch:
            if time.monotonic() > deadline:
                found["left_out"].append(f"calls, k = {k}, {batch} sequences")
                continue
            calls = [*decisions(k, batch, device)]
            if k == arguments.k[0]:
                calls += selections(batch, device)
            for name, call, size in calls:
                hot, cold = clock(call), clock(call, flush)
                launches, waits = count_launches(call, device)
                share = size / (cold * 1e-6) / found["copy_bandwidth"]
                found["calls"].append({
                    "name": name, "k": k, "batch": batch, "hot_us": hot, "cold_us": cold,
                    "bytes": size, "share": share, "launches": launches, "waits": waits,
                })  # fmt: skip
    for k in arguments.k:
        if time.monotonic() > deadline:
            found["left_out"].append(f"loop, k = {k}")
            continue
        found["loops"] += loops(arguments, k, deadline, found["left_out"])
        if cuda:
            torch.cuda.empty_cache()
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the result as tables."""
    lines = [
        f"{found['device']}, torch {found['torch']}; a copy within the device's memory reads and "
        f"writes {found['copy_bandwidth'] / 1e9:.0f} GB/s.",
        "",
        "| call | k | sequences | hot, us | cold, us | bandwidth | launches | waits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["calls"]:
        share = f"{row['share']:.0%}" if row["bytes"] else ""
        lines.append(
            f"| {row['name']} | {row['k']} | {row['batch']} | {row['hot_us']:.1f} | "
            f"{row['cold_us']:.1f} | {share} | {row['launches']} | {row['waits']} |"
        )
    lines += [
        "",
        "| loop | k | sequences | a cycle, us | cycles | tokens a cycle | launches | waits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["loops"]:
        lines.append(
            f"| {row['name']} | {row['k']} | {row['batch']} | {row['cycle_us']:.0f} | "
            f"{row['cycles']} | {row['tokens']:.1f} | {row['launches']:.1f} | {row['waits']:.1f} |"
        )
    if found["left_out"]:
        lines += [
            "",
            f"Left out for lack of time, unless it says otherwise: {'; '.join(found['left_out'])}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the tables, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to see that it runs")
    parser.add_argument("--k", type=int, nargs="+", default=[576, 2048, 4096], choices=[*SHAPES])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--tokens", type=int, default=128, help="of each text of the loop")
    parser.add_argument("--layers", type=int, help="of the target; default: those of its shape")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    found = measure(arguments)
    sys.stdout.write(markdown(found))
    if arguments.json is not None:
        temporary = arguments.json.with_name(f".{arguments.json.name}.tmp")
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        temporary.rename(arguments.json)


if __name__ == "__main__":
    main()
