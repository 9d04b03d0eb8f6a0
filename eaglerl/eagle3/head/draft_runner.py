"""The interface that tree drafting needs of a draft head."""

from __future__ import annotations

from typing import Protocol

import torch


class Expanding(Protocol):
    """The part of a `DraftRunner` that the levels of a draft need."""

    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one pass over K frontier nodes; return (K, h) outputs and (K, Vd) logits."""


class ExpandingSlots(Protocol):
    """The same for several sequences at once, whose drafts are of one size."""

    def expand_slots(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, round: int, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one pass over K frontier nodes of each of S sequences.

        Args:
            token_ids: (S, K) int64.
            hidden: (S, K, h) features.
            round: from 0.
            mask: (S, K, (round + 1) K) bool, which scratch rows each node sees.

        Returns:
            (S, K, h) outputs and (S, K, Vd) logits.
        """


class OneSlot:
    """One sequence of a runner as `ExpandingSlots`."""

    def __init__(self, draft: Expanding, slot: int) -> None:
        self._draft, self._slot = draft, slot

    def expand_slots(
        self, token_ids: torch.Tensor, hidden: torch.Tensor, round: int, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExpandingSlots`; S is 1."""
        output, logits = self._draft.expand(token_ids[0], hidden[0], round, mask[0], self._slot)
        return output[None], logits[None]


class DraftRunner(Expanding, Protocol):
    """Inference with a draft head over its own KV cache, one sequence per slot."""

    @property
    def lengths(self) -> list[int]:
        """Stable rows of every slot."""

    @property
    def draft_to_target(self) -> torch.Tensor | None:
        """(Vd,) int64 target id of every draft id; None if the two vocabularies are equal."""

    @property
    def draft_vocab_size(self) -> int:
        """Vd, the number of tokens that can be drafted."""

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map (R, 3k) target features to (R, h)."""

    def extend(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        slot: int = 0,
        *,
        reduced: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append R stable rows; return the (h,) output and (Vd,) logits of the last one."""

    def reset(self, slot: int = 0) -> None:
        """Forget a sequence."""

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget the rows from `length` on."""
