"""A draft head's passes over rows whose place only the device knows."""

from __future__ import annotations

import torch

from eaglerl.eagle3.head.module_draft import ModuleDraft


class CapturedDraft:
    """Passes of a head that read the number of its stable rows from the device.

    Every pass attends to the first `columns` rows of the cache, and a mask hides those that it may
    not see. So its shapes are the same in every cycle, and it can be captured in a graph.

    Attributes:
        length: (1,) int64 stable rows.
        columns: cache rows that a pass attends to.
    """

    def __init__(self, draft: ModuleDraft, slot: int) -> None:
        """Set up.

        Args:
            draft: the head's runner.
            slot: the sequence.
        """
        self._draft = draft
        self._slot = slot
        self._device = draft.cache.data.device
        self.length = torch.zeros(1, dtype=torch.int64, device=self._device)
        self.columns = draft.cache.capacity

    def extend(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows, and rows behind them that count for nothing.

        Args:
            token_ids: (M,) int64 token after each row.
            hidden: (M, h) reduced features.
            count: (1,) int64, how many of the rows count; at least 1.

        Returns:
            The (h,) output and (Vd,) logits of the last row that counts.
        """
        positions = self.length + torch.arange(len(token_ids), device=self._device)
        distances = positions[:, None] - torch.arange(self.columns, device=self._device)
        output, logits = self._run(token_ids, hidden, positions, positions, distances >= 0,
                                   distances)  # fmt: skip
        self.length.add_(count)
        last = count - 1
        return output.index_select(0, last)[0], logits.index_select(0, last)[0]

    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one frontier; see `ModuleDraft.expand`.

        Args:
            token_ids: (K,) int64.
            hidden: (K, h).
            round: from 0.
            mask: (K, (round + 1) K) bool.
            slot: that of this object.
        """
        assert slot == self._slot, "the passes of one sequence"
        rows = len(token_ids)
        columns = torch.arange(self.columns, device=self._device)
        # Columns behind the stable rows, by their place among the scratch rows.
        place = columns - self.length
        scratch = (place >= 0) & (place < mask.shape[1])
        seen = mask[:, place.clamp(0, mask.shape[1] - 1)]
        visible = (place < 0) | (scratch & seen)
        cache_rows = self.length + torch.arange(
            round * rows, (round + 1) * rows, device=self._device
        )
        positions = (self.length + round).expand(rows)
        keys = torch.where(scratch, self.length + place.div(rows, rounding_mode="floor"), columns)
        return self._run(
            token_ids, hidden, positions, cache_rows, visible, positions[:, None] - keys
        )

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
