"""Zeroed memory for slots, each of which can be given back alone."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence

import torch

# Linux's number; Python has a name for it from 3.13 on. Slots are as long as the longest sequence,
# and together may be larger than the machine: what is never written takes no memory.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class SlotMemory:
    """Memory that the system provides page by page when it is first written.

    Attributes:
        data: (slots, ...) tensor of zeros.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Allocate.

        Args:
            shape: of the tensor; the first axis counts slots.
            dtype: of the tensor.
            device: pages of a CPU alone are given back.

        Raises:
            MemoryError: the system does not provide as much.
        """
        self._pages: mmap.mmap | None = None
        size = dtype.itemsize
        for length in shape:
            size *= length
        if torch.device(device).type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
            self.data = torch.zeros(tuple(shape), dtype=dtype, device=device)
            return
        # Private: pages of shared memory, which is the default, stay when they are not needed.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        try:
            self._pages = mmap.mmap(-1, max(size, 1), flags=flags)
        except (OSError, OverflowError) as error:
            raise MemoryError(
                f"{shape[0]} slots of {size // max(shape[0], 1):,} bytes cannot be had: {error}"
            ) from error
        self.data = torch.frombuffer(self._pages, dtype=dtype, count=size // dtype.itemsize)
        self.data = self.data.view(tuple(shape))

    def clear(self, slot: int) -> None:
        """Make a slot zeros again, and give its pages back."""
        if self._pages is None:
            self.data[slot].zero_()
            return
        values = self.data[slot].reshape(-1)
        size = values.numel() * values.itemsize
        begin, end = slot * size, (slot + 1) * size
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            values.zero_()
            return
        # Pages that reach into another slot.
        values[: (first - begin) // values.itemsize].zero_()
        values[(last - begin) // values.itemsize :].zero_()
        self._pages.madvise(mmap.MADV_DONTNEED, first, last - first)
