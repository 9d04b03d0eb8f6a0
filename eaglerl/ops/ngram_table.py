"""Prompt lookup where the draft is: the n-grams of several texts, in hash tables on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_memory
from eaglerl.ops._encode_library import library
from eaglerl.ops.action_cache import check_slots
from eaglerl.ops.node_selection import LookedUp, power_of_two

#: Limits and the hash of an n-gram, by the names of ``csrc/lookup/ngram_table.h``.
NGRAM_CONSTANTS: dict[str, int] = dict(C.ngram_constants)

library.define("extend_ngrams(Tensor(a!)[] table, Tensor token_ids, Tensor counts) -> ()")


class NgramTable:
    """The texts of S slots, where each of their n-grams ended last, and what they propose.

    The rule is that of prompt lookup: of the n-grams at the end of a text, from 2 to `longest`
    tokens, the longest one that occurred before, and of its earlier occurrences the last. What
    followed it there is proposed; a match at the end of the text is repeated. With a table for each
    n, all n are looked up at once, and a text of any length takes the same time. A place of a table
    says where the n-gram ended, and its tokens are compared: results do not depend on the hash.

    All tensors are allocated once, so a CUDA graph may hold `extend_ngrams` and `accept_draft`.

    Attributes:
        texts: (S, C) int64 tokens.
        lengths: (S,) int64 tokens of each text; -1 for a text that did not fit, which proposes
            nothing until it is reset.
        ends: (S, N, H) int32, for each n of 2 to `longest` a table of H places: tokens up to the
            end of an n-gram; 0 for an empty place.
        looked_up: what the ends of the texts propose, in tensors that keep their addresses.
    """

    texts: Tensor
    lengths: Tensor
    ends: Tensor
    looked_up: LookedUp

    def __init__(
        self,
        slots: int,
        capacity: int,
        lookup_tokens: int,
        *,
        longest: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate: 128 bytes per token of the capacity with `longest` of 16.

        Args:
            slots: number S of texts, at least 1.
            capacity: most tokens C of a text; 1 to 2^24.
            lookup_tokens: tokens L that a match proposes; 0 to 64.
            longest: longest match; 2 to 64; longer ones count as this long.
            device: where everything lies.

        Raises:
            TypeError: a number is not an int.
            ValueError: a number is out of range.
        """
        limits = {
            "slots": (slots, 1, 2**30),
            "capacity": (capacity, 1, NGRAM_CONSTANTS["longest_text"]),
            "lookup_tokens": (lookup_tokens, 0, NGRAM_CONSTANTS["most_proposed"]),
            "longest": (longest, NGRAM_CONSTANTS["shortest"], NGRAM_CONSTANTS["longest"]),
        }
        for name, (value, least, most) in limits.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if not least <= value <= most:
                raise ValueError(f"{name} must be in {least}..{most}, got {value}")
        places = power_of_two(2 * capacity)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        self.texts, self.lengths = zeros(capacity), zeros()
        self.ends = zeros(longest - 1, places, dtype=torch.int32)
        self.looked_up = LookedUp(zeros(), zeros(), zeros(lookup_tokens))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the operators."""
        return [self.texts, self.lengths, self.ends, *self.looked_up]

    def reset(self, slots: Sequence[int] | None = None) -> None:
        """Forget texts.

        Args:
            slots: numbers of slots; None for all.

        Raises:
            ValueError: a number is out of range.
        """
        chosen: slice | Tensor = slice(None)
        if slots is not None:
            numbers = torch.as_tensor(slots, dtype=torch.int64)
            check_slots(numbers, len(self.lengths))
            chosen = numbers.to(self.lengths.device)
        for tensor in (self.lengths, self.ends, *self.looked_up[:2]):
            tensor[chosen] = 0


def extend_ngrams(table: NgramTable, token_ids: Tensor, counts: Tensor) -> None:
    """Append tokens to texts, and look up what their ends propose.

    Args:
        table: the texts; changed in place.
        token_ids: (S, P) int64.
        counts: (S,) int64, how many of them each text takes, clamped to 0..P; a text that takes
            none keeps its proposal.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a shape or device does not fit. Nothing has changed.
        RuntimeError: on a device without Triton.
    """
    torch.ops.eaglerl.extend_ngrams(table.tensors, token_ids, counts)


class TableSizes(NamedTuple):
    """Sizes of a table, in the order of the extension."""

    capacity: int
    orders: int
    places: int
    proposed: int


def check_table(tensors: Sequence[Tensor]) -> TableSizes:
    """Check an operator's tensors of a table, which may come from anywhere.

    Raises:
        TypeError: one has another dtype.
        ValueError: one has another shape or device, or their sizes do not fit.
    """
    names = ("texts", "lengths", "ends", "match_lengths", "counts", "looked_up")
    if len(tensors) != len(names):
        raise ValueError(f"the table must be {len(names)} tensors, {', '.join(names)}")
    texts, lengths, ends, _, _, proposed = tensors
    if texts.ndim != 2 or ends.ndim != 3 or proposed.ndim != 2:
        given = [tuple(tensor.shape) for tensor in (texts, ends, proposed)]
        raise ValueError(f"texts, ends, looked_up must be (S, C), (S, N, H), (S, L), got {given}")
    slots, capacity = texts.shape
    sizes = TableSizes(capacity, ends.shape[1], ends.shape[2], proposed.shape[1])
    orders = NGRAM_CONSTANTS["longest"] - NGRAM_CONSTANTS["shortest"] + 1
    fits = 1 <= sizes.orders <= orders and sizes.places == power_of_two(2 * max(capacity, 1))
    fits &= 1 <= capacity <= NGRAM_CONSTANTS["longest_text"]
    if not fits or sizes.proposed > NGRAM_CONSTANTS["most_proposed"]:
        raise ValueError(f"the table must be that of an NgramTable, got {sizes}")
    shapes: list[tuple[int, ...]] = [(slots, capacity), (slots,), tuple(ends.shape), (slots,)]
    shapes += [(slots,), (slots, sizes.proposed)]
    if ends.shape[0] != slots:
        raise ValueError(f"ends must be of {slots} slots, got {ends.shape[0]}")
    for name, tensor, shape in zip(names, tensors, shapes, strict=True):
        dtype = torch.int32 if name == "ends" else torch.int64
        check_operand(name, tensor, dtype, shape, lengths.device)
    return sizes


def check_operand(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Check a tensor of an operator.

    Raises:
        TypeError: it has another dtype.
        ValueError: it has another shape or device, or is not contiguous.
    """
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    check_memory(name, tensor)
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous and have shape {shape}, got shape {tuple(tensor.shape)} "
            f"and strides {tensor.stride()}"
        )
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def need_triton(operation: str) -> None:
    """Check that a device's kernels can run.

    Raises:
        RuntimeError: there is no Triton.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(f"{operation} on a device needs Triton: pip install triton")


def _checked(*arguments: Any) -> TableSizes:
    tensors, token_ids, counts = arguments
    sizes = check_table(tensors)
    slots, device = len(tensors[1]), tensors[1].device
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids must be (S, P), got shape {tuple(token_ids.shape)}")
    check_operand("token_ids", token_ids, torch.int64, (slots, token_ids.shape[1]), device)
    check_operand("counts", counts, torch.int64, (slots,), device)
    return sizes


def _on_cpu(*arguments: Any) -> None:
    tensors, token_ids, counts = arguments
    sizes = _checked(*arguments)
    addresses = [tensor.data_ptr() for tensor in tensors]
    C.extend_ngrams(
        len(counts), list(sizes), addresses, token_ids.shape[1], token_ids.data_ptr(),
        counts.data_ptr(),
    )  # fmt: skip


def _on_device(*arguments: Any) -> None:
    need_triton("extend_ngrams")
    from eaglerl.kernels.accept_draft_kernel import prepare_extend_ngrams

    sizes = _checked(*arguments)
    prepare_extend_ngrams(*arguments, sizes).run(arguments[1].device)


def _fake(*arguments: Any) -> None:
    _checked(*arguments)


library.impl("extend_ngrams", _on_cpu, "CPU")
library.impl("extend_ngrams", _on_device, "CUDA")
torch.library.register_fake("eaglerl::extend_ngrams", _fake, lib=library)
