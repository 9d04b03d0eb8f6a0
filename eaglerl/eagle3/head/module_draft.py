"""A draft head run as a plain PyTorch module."""

import torch
from torch import nn

from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead


class ModuleDraft(CachedDraft):
    """A draft head run as a plain module, on any device; the reference for `PackedDraft`."""

    def __init__(self, head: Eagle3DraftHead, *, capacity: int, slots: int = 1) -> None:
        """Set up the cache.

        Args:
            head: the head; it must have an embedding table.
            capacity: rows per slot: stable rows and the scratch rows of the widest tree.
            slots: number of sequences.

        Raises:
            ValueError: the head has no embedding table.
        """
        super().__init__(head, capacity=capacity, slots=slots)
        self.head = head

    @torch.inference_mode()
    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map target features (R, 3k) to the draft's width (R, h)."""
        return self.head.reduce(features.to(self.head.fc.weight.dtype))

    @torch.inference_mode()
    def extend(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        slot: int = 0,
        *,
        reduced: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows; see `PackedDraft.extend`."""
        self._check_extend(token_ids, features, slot, reduced)
        start, rows = self.lengths[slot], len(token_ids)
        positions = torch.arange(start, start + rows, device=features.device)
        keys = torch.arange(start + rows, device=features.device)
        visible = keys <= positions[:, None]
        if self.head_config.sliding_window is not None:
            visible &= positions[:, None] - keys < self.head_config.sliding_window
        hidden = features if reduced else self.reduce(features)
        output, logits = self._run_one(token_ids, hidden, positions, positions, visible, slot)
        self.lengths[slot] = start + rows
        return output[-1], logits[-1]

    @torch.inference_mode()
    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one frontier; see `PackedDraft.expand`."""
        self._check_expand(token_ids, hidden, round, mask, slot)
        length, rows = self.lengths[slot], len(token_ids)
        positions = torch.full((rows,), length + round, device=hidden.device)
        # (K, (round + 1) K) bool, from the builder's bit words or from a device's own mask.
        ancestors = mask.to(hidden.device)
        if mask.dtype == torch.int64:
            block = torch.arange((round + 1) * rows, device=hidden.device)
            ancestors = (ancestors[:, block // 64] >> (block % 64) & 1).bool()
        visible = torch.cat((ancestors.new_ones(rows, length), ancestors), dim=1)
        if self.head_config.sliding_window is not None:
            rounds = torch.arange((round + 1) * rows, device=hidden.device) // rows
            keys = torch.cat((torch.arange(length, device=hidden.device), length + rounds))
            visible &= length + round - keys < self.head_config.sliding_window
        start = length + round * rows
        cache_rows = torch.arange(start, start + rows, device=hidden.device)
        return self._run_one(token_ids, hidden, positions, cache_rows, visible, slot)

    def _run_one(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache_rows: torch.Tensor,
        visible: torch.Tensor,
        slot: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a pass of one sequence; see `run`, without the dimension S."""
        output, logits = self.run(
            token_ids[None], hidden[None], positions[None], cache_rows[None], visible[None], slot
        )
        return output[0], logits[0]

    @torch.inference_mode()
    def run(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache_rows: torch.Tensor,
        visible: torch.Tensor,
        slot: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one pass whose rows and mask the caller knows; nothing is checked.

        Args:
            token_ids: (S, M) int64, M rows of each of S neighbouring slots.
            hidden: (S, M, h) features.
            positions: (S, M) int64 rotary positions.
            cache_rows: (S, M) int64 cache rows to write.
            visible: (S, M, columns) bool, which of the first cache rows of its slot each row sees,
                its own among them.
            slot: the first slot.

        Returns:
            Features for the next round (S, M, h) and draft logits (S, M, Vd).
        """
        slots, columns = slice(slot, slot + len(token_ids)), visible.shape[2]
        keys, values = self.cache.keys(0)[slots], self.cache.values(0)[slots]
        own = torch.arange(len(token_ids), device=cache_rows.device)[:, None]

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys.transpose(1, 2)[own, cache_rows] = k.to(keys.dtype)
            values.transpose(1, 2)[own, cache_rows] = v.to(values.dtype)
            attended = nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2),
                keys[:, :, :columns].to(q.dtype),
                values[:, :, :columns].to(q.dtype),
                attn_mask=visible[:, None],
                enable_gqa=True,
            )
            return attended.transpose(1, 2)

        head = self.head
        cos, sin = self._cos[positions], self._sin[positions]
        output = head.midlayer(head.embed(token_ids.to(self._device)), hidden, cos, sin, attention)
        return head.feedback(output), head.logits(output)
