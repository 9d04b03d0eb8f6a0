"""Prompt lookup where the draft is: the n-grams of several texts, in hash tables on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._encode_library import library
from eaglerl.ops._operands import check_int, check_kinds, check_operand, need_triton
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
        """Allocate.

        With `longest` of 16, 128 bytes per token of a capacity that is a power of two, and up to
        248 of others: tables have twice the capacity's places, rounded up to a power of two.

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
            check_int(name, value, least, most)
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
            TypeError: it is no sequence of ints.
            ValueError: a number is out of range. Nothing has changed.
        """
        chosen: slice | Tensor = slice(None)
        if slots is not None:
            _check_slots(slots, len(self.lengths))
            chosen = torch.tensor(slots, dtype=torch.int64, device=self.lengths.device)
        for tensor in (self.lengths, self.ends, *self.looked_up[:2]):
            tensor[chosen] = 0


def _check_slots(slots: Sequence[int], count: int) -> None:
    if not isinstance(slots, Sequence):
        raise TypeError(f"slots must be a sequence of ints, got {slots!r}")
    for slot in slots:
        if not isinstance(slot, int) or isinstance(slot, bool):
            raise TypeError(f"slots must be ints, got {slot!r}")
        if not 0 <= slot < count:
            raise ValueError(f"slots must lie in 0..{count - 1}, got {slot}")


def extend_ngrams(table: NgramTable, token_ids: Tensor, counts: Tensor) -> None:
    """Append tokens to texts, and look up what their ends propose.

    Args:
        table: the texts; changed in place.
        token_ids: (S, P) int64; P is at most 2^24.
        counts: (S,) int64, how many of them each text takes, clamped to 0..P; a text that takes
            none keeps its proposal.

    Raises:
        TypeError: an argument is no `NgramTable` or no tensor, or of another dtype.
        ValueError: a shape or device does not fit. Nothing has changed.
        RuntimeError: on a device without Triton.
    """
    check_kinds(table=(table, NgramTable), token_ids=(token_ids, Tensor), counts=(counts, Tensor))
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
    proposals = (f"looked_up.{name}" for name in LookedUp._fields)
    names = tuple(f"table.{name}" for name in ("texts", "lengths", "ends", *proposals))
    if len(tensors) != len(names):
        raise ValueError(f"there must be {len(names)} tensors: {', '.join(names)}")
    texts, lengths, ends, _, _, proposed = tensors
    if texts.ndim != 2 or ends.ndim != 3 or proposed.ndim != 2:
        given = [tuple(tensor.shape) for tensor in (texts, ends, proposed)]
        raise ValueError(
            "table.texts, table.ends and table.looked_up.token_ids must have shapes (S, C), "
            f"(S, N, H) and (S, L), got {given}"
        )
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
        raise ValueError(f"table.ends must be of {slots} slots, got {ends.shape[0]}")
    for name, tensor, shape in zip(names, tensors, shapes, strict=True):
        dtype = torch.int32 if tensor is ends else torch.int64
        check_operand(name, tensor, dtype, shape, lengths.device)
    return sizes


def _checked(*arguments: Any) -> TableSizes:
    tensors, token_ids, counts = arguments
    sizes = check_table(tensors)
    slots, device = len(tensors[1]), tensors[1].device
    if token_ids.ndim != 2:
        raise ValueError(f"token_ids must be (S, P), got shape {tuple(token_ids.shape)}")
    width, most = token_ids.shape[1], NGRAM_CONSTANTS["longest_text"]
    if width > most:
        raise ValueError(f"token_ids must have at most {most} columns, got {width}")
    check_operand("token_ids", token_ids, torch.int64, (slots, width), device)
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
