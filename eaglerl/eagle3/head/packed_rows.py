"""What one native pass of a packed draft head works on, with the addresses that it takes."""

from dataclasses import dataclass

import torch

from eaglerl.eagle3.head.draft_head import RMSNorm


@dataclass(slots=True)
class RowBuffers:
    """Buffers of one number of rows M, with the addresses that a pass needs."""

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
    """Where the rows of a pass stand.

    Attributes:
        positions: Address of their rotary positions, (M,) int32.
        cache_rows: Address of the cache rows that they write, (M,) int32.
        first_row: The cache row that row 0 of `cache_rows`, and of what they see, stands for: what
            lies before it is outside their window.
    """

    positions: int
    cache_rows: int
    first_row: int


@dataclass(slots=True)
class Visible:
    """What the rows of a pass see.

    Attributes:
        prefix_lengths: Address of the lengths of the prefix that each sees whole, (M,) int32.
        block_length: Rows of the masked block behind the prefix.
        mask: (M, words) int64 over that block; None without one.
    """

    prefix_lengths: int
    block_length: int
    mask: torch.Tensor | None

    def arguments(self) -> tuple[int, int, int, int]:
        """As the native attention takes them."""
        if self.mask is None:
            return self.prefix_lengths, 0, 0, 0
        return self.prefix_lengths, self.mask.data_ptr(), self.mask.shape[1], self.block_length


@dataclass(slots=True)
class NormWeight:
    """A norm's weight, kept alive, and its address."""

    weight: torch.Tensor
    address: int

    @classmethod
    def of(cls, norm: RMSNorm) -> "NormWeight":
        weight = norm.weight.detach().float().contiguous()
        return cls(weight, weight.data_ptr())
