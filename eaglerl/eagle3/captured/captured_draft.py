"""A draft head's passes over rows whose place only the device knows."""

from __future__ import annotations

import torch

from eaglerl.eagle3.head.module_draft import ModuleDraft


class CapturedDraft:
    """Passes of a head over S sequences that read the numbers of stable rows from the device.

    Every pass attends to the first `columns` rows of each slot's cache, and a mask hides those that
    it may not see. So its shapes are the same in every cycle, and it can be captured in a graph.

    Attributes:
        lengths: (S,) int64 stable rows.
        columns: cache rows that a pass attends to.
    """

    def __init__(self, draft: ModuleDraft, slot: int, slots: int) -> None:
        """Set up.

        Args:
            draft: the head's runner.
            slot: the first sequence.
            slots: number S of them, in neighbouring slots.
        """
        self._draft = draft
        self._slot = slot
        self._device = draft.cache.data.device
        self.lengths = torch.zeros(slots, dtype=torch.int64, device=self._device)
        self.columns = draft.cache.capacity

    def extend(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows, and rows behind them that count for nothing.

        Args:
            token_ids: (S, M) int64 token after each row.
            hidden: (S, M, h) reduced features.
            counts: (S,) int64, how many of the rows count; 0 for a sequence that has ended.

        Returns:
            The (S, h) outputs and (S, Vd) logits of the last rows that count.
        """
        rows = torch.arange(token_ids.shape[1], device=self._device)
        positions = self.lengths[:, None] + rows
        columns = torch.arange(self.columns, device=self._device)
        distances = positions[:, :, None] - columns
        output, logits = self._run(token_ids, hidden, positions, positions, distances >= 0,
                                   distances)  # fmt: skip
        self.lengths.add_(counts)
        slots = torch.arange(len(token_ids), device=self._device)
        last = (counts - 1).clamp(min=0)
        return output[slots, last], logits[slots, last]

    def expand_slots(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, round: int, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one frontier of every sequence; see `ExpandingSlots` and `ModuleDraft.expand`."""
        slots, rows = token_ids.shape
        lengths = self.lengths[:, None]
        columns = torch.arange(self.columns, device=self._device)
        # Columns behind the stable rows, by their place among the scratch rows.
        place = columns - lengths
        scratch = (place >= 0) & (place < mask.shape[2])
        places = place.clamp(0, mask.shape[2] - 1)[:, None].expand(-1, rows, -1)
        visible = (place < 0)[:, None] | (scratch[:, None] & mask.gather(2, places))
        cache_rows = lengths + torch.arange(round * rows, (round + 1) * rows, device=self._device)
        positions = (lengths + round).expand(slots, rows)
        keys = torch.where(scratch, lengths + place.div(rows, rounding_mode="floor"), columns)
        distances = positions[:, :, None] - keys[:, None]
        return self._run(token_ids, hidden, positions, cache_rows, visible, distances)

    def _run(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache_rows: torch.Tensor,
        visible: torch.Tensor,
        distances: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window = self._draft.head_config.sliding_window
        if window is not None:
            visible = visible & (distances < window)
        return self._draft.run(token_ids, hidden, positions, cache_rows, visible, self._slot)
