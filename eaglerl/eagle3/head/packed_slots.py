"""Passes of a packed draft head over rows of several slots at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.head.packed_rows import AttentionCaches, Place, Visible
from eaglerl.ops.cached_attention import cache_dtype_number
from eaglerl.ops.draft_tree import mask_words


class SlotRows(NamedTuple):
    """The rows of one slot in a pass of several.

    Attributes:
        slot: the slot.
        token_ids: (R,) int64 target ids.
        hidden: (R, h) fp32 inputs: reduced features, or what the pass before returned.
        mask: (R, words) int64 bits over the slot's scratch rows, see `PackedDraft.expand`; None for
            stable rows.
    """

    slot: int
    token_ids: torch.Tensor
    hidden: torch.Tensor
    mask: torch.Tensor | None = None


class PackedSlots:
    """Passes over rows of several slots, each of which does what the runner does for one slot.

    One pass reads the head's weights once for all slots.
    """

    def __init__(self, draft: PackedDraft) -> None:
        """Take a runner, which must not be resized afterwards.

        Args:
            draft: the runner; its cache has the slots.

        Raises:
            ValueError: the head has a sliding window, whose rows have no common prefix.
        """
        if draft.head_config.sliding_window is not None:
            raise ValueError("a head with a sliding window drafts for one slot at a time")
        self._draft = draft
        cache = draft.cache
        self._keys, self._values = cache.keys(0), cache.values(0)
        self._shape = (cache.slots, cache.data.stride(0), cache.capacity)
        self._dtype = cache_dtype_number("cache", cache.data.dtype)

    @torch.inference_mode()
    def extend_slots(self, rows: Sequence[SlotRows]) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows to several slots in one pass; see `PackedDraft.extend`.

        MLP and LM head run for the last row of each slot alone.

        Args:
            rows: the rows of S distinct slots, their features reduced.

        Returns:
            The last rows' features for the next pass (S, h) and their draft logits (S, Vd).

        Raises:
            ValueError: shapes or dtypes are wrong, an id is unknown, or a slot's cache is full.
                Nothing was computed then.
        """
        draft = self._draft
        for part in rows:
            draft._check_extend(part.token_ids, part.hidden, part.slot, True)
        counts = np.array([len(part.token_ids) for part in rows])
        ends = counts.cumsum()
        starts = self._lengths(rows)
        own = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        here = np.repeat(starts, counts) + own
        attended, residual = self._attend(rows, counts, here, here, here + 1, None, 0)
        for part, count in zip(rows, counts.tolist(), strict=True):
            draft.lengths[part.slot] += count
        last = torch.from_numpy(ends - 1)
        return draft._finish(attended[last], residual[last])

    @torch.inference_mode()
    def expand_slots(
        self, rows: Sequence[SlotRows], round: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the frontiers of several slots in one pass; see `PackedDraft.expand`.

        Args:
            rows: the frontiers of distinct slots, with their masks; their widths may differ.
            round: number of the round, from 0, the same for all.

        Returns:
            Features for the next round (M, h) and draft logits (M, Vd), one slot after another.

        Raises:
            ValueError: shapes or dtypes are wrong, an id is unknown, or a slot lacks room for the
                scratch rows of the widest frontier.
        """
        block = (round + 1) * max(len(part.token_ids) for part in rows)
        masks = []
        for part in rows:
            assert part.mask is not None, "a frontier has a mask"
            self._draft._check_expand(part.token_ids, part.hidden, round, part.mask, part.slot)
            self._draft.cache.check_room(block, part.slot)
            masks.append(pad(part.mask, (0, mask_words(block) - part.mask.shape[1])))
        counts = np.array([len(part.token_ids) for part in rows])
        ends = counts.cumsum()
        prefix = np.repeat(self._lengths(rows), counts)
        own = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        cache_rows = prefix + round * np.repeat(counts, counts) + own
        mask = torch.cat(masks)
        attended, residual = self._attend(
            rows, counts, prefix + round, cache_rows, prefix, mask, block
        )
        return self._draft._finish(attended, residual)

    def _lengths(self, rows: Sequence[SlotRows]) -> np.ndarray:
        lengths = self._draft.lengths
        return np.array([lengths[part.slot] for part in rows])

    def _attend(
        self,
        rows: Sequence[SlotRows],
        counts: np.ndarray,
        positions: np.ndarray,
        cache_rows: np.ndarray,
        prefix: np.ndarray,
        mask: torch.Tensor | None,
        block: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots = np.repeat([part.slot for part in rows], counts)
        # One array per index, kept until the call has returned.
        numbers = np.stack((positions, cache_rows, prefix, slots)).astype(np.int32)
        place, row, length, slot = (numbers[index].ctypes.data for index in range(4))
        caches: AttentionCaches = (
            slot, self._keys.data_ptr(), self._values.data_ptr(), *self._shape, self._dtype
        )  # fmt: skip
        token_ids = torch.cat([part.token_ids for part in rows])
        hidden = torch.cat([part.hidden for part in rows])
        return self._draft._attend(
            token_ids, hidden, caches, Place(place, row, 0), Visible(length, block, mask)
        )
