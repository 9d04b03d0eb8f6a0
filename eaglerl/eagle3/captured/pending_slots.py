"""Accepted rows of several sequences that wait on a device for the head's pass."""

from __future__ import annotations

import torch

#: Accepted rows of a sequence that wait for the head's pass. More than that, as after a prompt, are
#: extended by a pass of their own shape.
MOST_PENDING = 64


class PendingSlots:
    """The queues of S sequences, in memory that keeps its place.

    Attributes:
        counts: (S,) int64 rows that wait.
        most: most rows of a sequence that can wait.
        token_ids: (S, most) int64 token after each row.
        reduced: whether the features are reduced.
    """

    def __init__(self, slots: int, most: int, device: torch.device) -> None:
        """Begin with empty queues.

        Args:
            slots: number S of sequences.
            most: most rows that wait.
            device: where everything lies.
        """
        self.most = most
        self.counts = torch.zeros(slots, dtype=torch.int64, device=device)
        self.token_ids = torch.zeros(slots, most, dtype=torch.int64, device=device)
        self.reduced = False
        # By whether they are reduced: allocated when first needed, for their width and dtype.
        self._features: dict[bool, torch.Tensor] = {}

    def features(self, *, reduced: bool) -> torch.Tensor:
        """Return (S, most, 3k) features, or (S, most, h) reduced ones."""
        return self._features[reduced]

    def set(
        self, slot: int, token_ids: torch.Tensor, features: torch.Tensor, *, reduced: bool
    ) -> None:
        """Replace the queue of a slot by rows whose number the host knows.

        Args:
            slot: place of the sequence.
            token_ids: (M,) int64.
            features: (M, 3k), or (M, h) if `reduced`, as those of all slots must then be.
            reduced: whether the features are reduced.
        """
        count = len(token_ids)
        self.token_ids[slot, :count].copy_(token_ids)
        self._memory(features, reduced)[slot, :count].copy_(features)
        self.counts[slot].fill_(count)
        self.reduced = reduced

    def append(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        counts: torch.Tensor,
        *,
        reduced: bool,
    ) -> None:
        """Append rows whose number only the device knows; there must be room for all of them.

        Args:
            token_ids: (S, P) int64, of which the first ones count.
            features: (S, P, 3k) or (S, P, h).
            counts: (S,) int64.
            reduced: whether the features are reduced.
        """
        device = token_ids.device
        places = self.counts[:, None] + torch.arange(token_ids.shape[1], device=device)
        slots = torch.arange(len(token_ids), device=device)[:, None]
        self.token_ids[slots, places] = token_ids
        self._memory(features, reduced)[slots, places] = features
        self.counts.add_(counts)

    def _memory(self, features: torch.Tensor, reduced: bool) -> torch.Tensor:
        if reduced not in self._features:
            shape = (*self.token_ids.shape, features.shape[-1])
            self._features[reduced] = features.new_zeros(shape)
        return self._features[reduced]
