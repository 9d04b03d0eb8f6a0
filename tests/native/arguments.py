"""Arguments of native operations, and ways to spoil them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

INTEGERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 5, 63, 2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**70)
REALS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 1e-45, 1e300)
OTHERS = (None, "text", b"bytes", True, 0.5, 3, [], [1.0], {}, object, 1 + 2j)
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.bool, torch.complex64,
)  # fmt: skip
EXTREMES = (-(2**31), -1, 0, 1, 3, 64, 2**31 - 1)


class Source(random.Random):
    """Decisions of one case, all of them by its seed."""

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.getrandbits(31))

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator())

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        values = torch.randint(low, high, shape, generator=self.generator())
        return values.to(dtype)

    def permuted(self, count: int, most: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randperm(most, generator=self.generator())[:count].to(dtype)


def _fill(tensor: Tensor, source: Source) -> Tensor:
    spoiled = tensor.clone()
    if spoiled.numel():
        place = source.randrange(spoiled.numel())
        if spoiled.dtype.is_floating_point:
            spoiled.view(-1)[place] = source.choice(REALS)
        elif spoiled.dtype == torch.int64:
            spoiled.view(-1)[place] = source.choice((-(2**63), 2**63 - 1, *EXTREMES))
        elif spoiled.dtype == torch.int32:
            spoiled.view(-1)[place] = source.choice(EXTREMES)
    return spoiled


def _shrink_storage(tensor: Tensor, source: Source) -> Tensor:
    spoiled = tensor.clone()
    storage = spoiled.untyped_storage()
    storage.resize_(storage.nbytes() * source.choice((0, 0, 1, 2)) // 4)
    return spoiled


def _misaligned(tensor: Tensor, source: Source) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.int32, torch.int64) or not tensor.numel():
        return tensor
    memory = bytearray(tensor.numel() * tensor.element_size() + 8)
    moved = torch.frombuffer(
        memory, dtype=tensor.dtype, count=tensor.numel(), offset=source.choice((1, 2, 4))
    ).view(tensor.shape)
    return moved.copy_(tensor)


def _other_size(tensor: Tensor, source: Source) -> Tensor:
    if tensor.ndim == 0:
        return tensor[None]
    axis = source.randrange(tensor.ndim)
    size = tensor.shape[axis]
    index = torch.arange(source.choice((0, 1, max(size - 1, 0), size + 1, 2 * size + 3)))
    return tensor.index_select(axis, index % size) if size else tensor


def _strided(tensor: Tensor, source: Source) -> Tensor:
    if tensor.ndim == 0:
        return tensor
    axis = source.randrange(tensor.ndim)
    return tensor.repeat_interleave(2, axis).unflatten(axis, (-1, 2)).select(axis + 1, 0)


def _expanded(tensor: Tensor, source: Source) -> Tensor:
    if tensor.ndim == 0 or not tensor.numel():
        return tensor
    axis = source.randrange(tensor.ndim)
    return tensor.narrow(axis, 0, 1).expand(tensor.shape)


SPOILED_TENSORS: tuple[Callable[[Tensor, Source], Any], ...] = (
    _fill,
    _fill,
    _shrink_storage,
    _misaligned,
    _other_size,
    _other_size,
    _strided,
    _expanded,
    lambda t, s: t.to(s.choice(DTYPES)),
    lambda t, s: t.to("meta"),
    lambda t, s: t.to_sparse() if t.ndim else t,
    lambda t, s: t.clone().requires_grad_(t.dtype.is_floating_point),
    lambda t, s: t.transpose(0, -1) if t.ndim > 1 else t,
    lambda t, s: t.unsqueeze(s.randrange(t.ndim + 1)),
    lambda t, s: t.flatten(),
    lambda t, s: t.new_empty(0),
    lambda t, s: t.new_zeros(()),
    lambda t, s: torch._neg_view(t) if t.dtype.is_floating_point else t,
    lambda t, s: t.numpy() if t.dtype != torch.bfloat16 else t,
    lambda t, s: s.choice(OTHERS),
)


def spoil(value: Any, source: Source) -> Any:
    """Return a value that is probably wrong where this one is right."""
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.is_contiguous():
        return source.choice(SPOILED_TENSORS)(value.detach(), source)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        place, parts = source.randrange(len(value)), list(value)
        parts[place] = spoil(parts[place], source)
        return source.choice((parts, parts, parts[:place], parts + parts[:1]))
    if source.random() < 0.2:
        return source.choice(OTHERS)
    if isinstance(value, float):
        return source.choice((*REALS, *INTEGERS))
    return source.choice(INTEGERS)


def spoil_some(arguments: dict[str, Any], source: Source) -> tuple[dict[str, Any], bool]:
    """Spoil none, one or a few of the arguments; return whether any was."""
    count = source.choice((0, 1, 1, 1, 2, 3))
    spoiled = dict(arguments)
    for name in source.sample(sorted(arguments), min(count, len(arguments))):
        spoiled[name] = spoil(arguments[name], source)
    return spoiled, count > 0
