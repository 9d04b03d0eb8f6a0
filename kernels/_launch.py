"""What the launchers share: memory of a stream, and a launch as data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eaglerl.kernels._plan import Plan

# Counters that a launch may need: one for each row tile of up to 1,024 rows.
_TICKETS = 1024


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that it is called with.

    Attributes:
        kernel: The Triton kernel.
        grid: Programs.
        arguments: Its arguments by name.
        plan: Its constants.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    plan: Plan

    def options(self, *, nvidia: bool) -> dict[str, Any]:
        """Options of the compiler.

        Contraction to fused multiply-adds is asked for by name, because what Triton does by itself
        differs between releases.
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
        """Make the outputs that every launch has."""
        return cls(
            features=None,
            logits=torch.empty((sequences, weights.output_weight.shape[0]), device=device),
            action=torch.empty((sequences,), dtype=torch.int32, device=device),
            params=torch.empty((sequences, 3), dtype=torch.int32, device=device),
        )


@dataclass
class _Workspace:
    tickets: Tensor
    # The last one is in use; a captured graph may still write to an earlier, smaller one.
    scratch: list[Tensor]


_workspaces: dict[tuple[torch.device, int], _Workspace] = {}


def workspace(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Return the current stream's scratch memory, at least ``size`` float32s, and its tickets.

    Launches on one stream follow each other and may share them; those of two streams may not.
    Tickets are zero, and every launch leaves them so.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    kept = _workspaces.get((device, stream))
    if kept is None:
        tickets = torch.zeros(_TICKETS, dtype=torch.int32, device=device)
        kept = _Workspace(tickets, [torch.empty(size, device=device)])
        _workspaces[device, stream] = kept
    elif kept.scratch[-1].numel() < size:
        # At least doubled, so that all of them together stay within twice the largest.
        kept.scratch.append(torch.empty(max(size, 2 * kept.scratch[-1].numel()), device=device))
    return kept.scratch[-1], kept.tickets


def split_words(number: int) -> tuple[int, int]:
    """Return low and high 32 bits of a number below 2**64, each as a signed word.

    As they are, integers would compile another kernel for every size that Triton tells apart.
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
    """Return the arguments that all kernels with an MLP have."""
    temperature, seed, offset = draw
    seed_low, seed_high = split_words(seed)
    offset_low, offset_high = split_words(offset)
    return {
        "weights": (*weights.hidden_weights, weights.output_weight),
        "biases": (*weights.hidden_biases, weights.output_bias),
        "bins_ptr": weights.bins,
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
