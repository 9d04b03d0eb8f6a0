"""Sliding windows of a draft layer: a row sees the last W positions, its own included.

The rule is that of transformers and vLLM, ``query position - key position < W``. It counts rotary
positions and not cache rows: all rows of round i are i positions after the last stable row,
while they lie in the scratch rows i K to (i + 1) K - 1. Masks are bit words, as the native
attention takes them.
"""

import numpy as np
import torch

_WORD_BITS = 64


def first_visible(position: int, window: int | None) -> int:
    """Return the first position that a row at ``position`` sees; ``window`` None for no window."""
    return 0 if window is None else max(0, position - window + 1)


def stable_mask(position: int, rows: int, window: int) -> tuple[int, torch.Tensor]:
    """Make the masks of consecutive stable rows, whose windows begin at different rows.

    Args:
        position: position of the first row. Stable rows lie in the cache row of their position.
        rows: number M of rows.
        window: W.

    Returns:
        The first cache row b that any of them sees, and (M, words) int64 masks over the cache rows
        from b to that of the last row.
    """
    begin = first_visible(position, window)
    keys = np.arange(begin, position + rows)
    distance = np.arange(position, position + rows)[:, None] - keys
    return begin, _words((distance >= 0) & (distance < window))


def scratch_window(round: int, rows: int, window: int) -> torch.Tensor | None:
    """Make the mask of the scratch rows that are within the window of a round's rows.

    Args:
        round: number of the round, from 0; its rows are scratch rows from ``round * rows`` on.
        rows: rows K of every round.
        window: W.

    Returns:
        (words,) int64 mask over the scratch rows up to this round's; None if all are visible.
    """
    # The oldest scratch rows are `round` positions back.
    if round < window:
        return None
    rounds = np.arange((round + 1) * rows) // rows
    return _words((round - rounds < window)[None])[0]


def _words(bits: np.ndarray) -> torch.Tensor:
    """Pack (M, n) bool into (M, words) int64: bit j % 64 of word j // 64."""
    padding = -bits.shape[1] % _WORD_BITS
    padded = np.pad(bits, ((0, 0), (0, padding)))
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int64))
