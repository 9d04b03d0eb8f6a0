"""Shared by the launchers: a launch as data, and scratch memory of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eaglerl.kernels._plan import Plan

# Most counters of a launch: one and up to 32 parts' for each row tile of up to 1,024 rows.
_TICKETS = 1024 * 33


@dataclass(frozen=True)
class Launch:
    """A kernel with all of its arguments.

    Attributes:
        kernel: the Triton kernel.
        grid: numbers of programs.
        arguments: the arguments by name.
        plan: the constants.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    plan: Plan

    def options(self, *, nvidia: bool) -> dict[str, Any]:
        """Return the options of the compiler.

        Contraction to fused multiply-adds is requested explicitly, because Triton's default differs
        between releases.
        """
        tiles = self.plan.tiles
        options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
        if nvidia:
            options["maxnreg"] = tiles.max_registers
        return options | {"enable_fp_fusion": True}

    def run(self, device: torch.device) -> None:
        """Start the kernel on the current stream of a device; an empty grid starts nothing."""
        if 0 in self.grid:
            return
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            options = self.options(nvidia=torch.version.hip is None)
            self.kernel[self.grid](**self.arguments, PLAN=self.plan, **options)


@dataclass
class Decisions:
    """Outputs of a launch; see ``FusedEncodeOutput``."""

    features: Tensor | None
    logits: Tensor
    action: Tensor
    params: Tensor

    @classmethod
    def empty(cls, weights: Any, sequences: int, device: torch.device) -> Decisions:
        """Allocate the outputs that every launch has."""
        return cls(
            features=None,
            logits=torch.empty((sequences, weights.output_weight.shape[0]), device=device),
            action=torch.empty((sequences,), dtype=torch.int32, device=device),
            params=torch.empty(
                (sequences, weights.actions.shape[1]), dtype=torch.int32, device=device
            ),
        )


@dataclass
class _Workspace:
    tickets: Tensor
    # The last one is in use. A captured CUDA graph may still write to earlier, smaller ones.
    scratch: list[Tensor]


_workspaces: dict[tuple[torch.device, int], _Workspace] = {}


def workspace(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Return the current stream's scratch memory, at least ``size`` float32s, and its tickets.

    Launches on one stream run one after the other and may share them; those on two streams may not.
    Tickets are zero, and every launch resets them to zero.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    kept = _workspaces.get((device, stream))
    if kept is None:
        tickets = torch.zeros(_TICKETS, dtype=torch.int32, device=device)
        kept = _Workspace(tickets, [torch.empty(size, device=device)])
        _workspaces[device, stream] = kept
    elif kept.scratch[-1].numel() < size:
        # At least doubled, so that all together take at most twice the largest.
        kept.scratch.append(torch.empty(max(size, 2 * kept.scratch[-1].numel()), device=device))
    return kept.scratch[-1], kept.tickets


def split_words(number: int) -> tuple[int, int]:
    """Return low and high 32 bits of a number below 2**64, each as a signed word.

    Triton compiles a kernel for each width of an integer argument; signed words have one width.
    """
    low, high = number & 0xFFFFFFFF, number >> 32
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)


def shared_arguments(
    weights: Any,
    inputs: tuple[Tensor, ...],
    sequences: int,
    cache: Any,
    slots: Tensor | None,
    decisions: Decisions,
    draw: tuple[float, int, int],
) -> dict[str, Any]:
    """Return the arguments that all kernels with an MLP share."""
    temperature, seed, offset = draw
    seed_low, seed_high = split_words(seed)
    offset_low, offset_high = split_words(offset)
    return {
        "weights": (*weights.hidden_weights, weights.output_weight),
        "biases": (*weights.hidden_biases, weights.output_bias),
        "actions_ptr": weights.actions,
        "cache": cache_pointers(cache, slots),
        "outputs": (decisions.logits, decisions.action, decisions.params),
        "n_sequences": sequences,
        "n_slots": 0 if cache is None else cache.state.shape[0],
        "strides": tuple(part.stride(0) for part in inputs),
        "temperature": float(temperature),
        "seed_low": seed_low,
        "seed_high": seed_high,
        "offset_low": offset_low,
        "offset_high": offset_high,
    }


def cache_pointers(cache: Any, slots: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return record, references, ring and slots as the kernels take them."""
    return (None,) * 4 if cache is None else (cache.state, cache.reference, cache.ring, slots)
