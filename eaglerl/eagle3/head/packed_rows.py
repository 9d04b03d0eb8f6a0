"""Buffers and arguments of one native pass of a packed draft head, with their addresses."""

from dataclasses import dataclass
from typing import TypeAlias

import torch

from eaglerl.eagle3.head.draft_head import RMSNorm

#: A layer's cache as the native attention takes it: the addresses of the rows' slots (0 if all are
#: in slot 0), of its keys and of its values; number of slots, slot stride, capacity and dtype.
AttentionCaches: TypeAlias = tuple[int, int, int, int, int, int, int]


@dataclass(slots=True)
class RowBuffers:
    """Buffers for M rows, and their addresses.

    Attributes:
        pair: (M, 2 h): the normed embedding on the left, the normed hidden state on the right.
        attended: (M, Hq D) outputs of the attention heads.
        normed: (M, h) input of the MLP and, later in the pass, of the LM head.
        activated: (M, intermediate_size) input of the MLP's second product.
    """

    pair: torch.Tensor
    pair_left: int
    pair_right: int
    attended: torch.Tensor
    attended_address: int
    normed: torch.Tensor
    normed_address: int
    activated: torch.Tensor
    activated_address: int


@dataclass(slots=True)
class Place:
    """Positions and cache rows of a pass's rows.

    Attributes:
        positions: address of their rotary positions, (M,) int32.
        cache_rows: address of the cache rows that they write, (M,) int32.
        first_row: the cache row from which `cache_rows` and `Visible` count. The rows before it
            are outside the window.
    """

    positions: int
    cache_rows: int
    first_row: int


@dataclass(slots=True)
class Visible:
    """What the rows of a pass attend to: a prefix, and a masked block behind it.

    Attributes:
        prefix_lengths: address of the length of each row's prefix, (M,) int32.
        block_length: rows of the masked block behind the prefix.
        mask: (M, words) int64 bits over that block; None without a block.
    """

    prefix_lengths: int
    block_length: int
    mask: torch.Tensor | None

    def arguments(self) -> tuple[int, int, int, int]:
        """Return them as the native attention takes them."""
        if self.mask is None:
            return self.prefix_lengths, 0, 0, 0
        return self.prefix_lengths, self.mask.data_ptr(), self.mask.shape[1], self.block_length


@dataclass(slots=True)
class NormWeight:
    """A norm's weight and its address, which is valid while the weight is kept here."""

    weight: torch.Tensor
    address: int

    @classmethod
    def of(cls, norm: RMSNorm) -> "NormWeight":
        """Take the weight of a module."""
        weight = norm.weight.detach().float().contiguous()
        return cls(weight, weight.data_ptr())
