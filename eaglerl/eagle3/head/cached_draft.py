"""A draft head's KV cache and the rules of its rows, which its runners share."""

import copy
from abc import ABC, abstractmethod
from typing import Self

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.rope import check_rope_length, head_rope_tables


class CachedDraft(ABC):
    """The base of the draft runners: a KV cache and the rules of its rows.

    A slot's stable rows pair the features of token t with the embedding of token t + 1, at rotary
    position t. Drafting writes scratch rows behind them. These are never kept, since their features
    are the head's own and not the target's: the next `extend` overwrites them with the accepted
    tokens, so no row is ever moved.

    Attributes:
        head_config: the head's configuration.
        cache: the KV cache, with one layer.
        draft_to_target: (Vd,) int64 target id of every draft id; None if the two vocabularies are
            equal.
    """

    def __init__(self, head: Eagle3DraftHead, *, capacity: int, slots: int) -> None:
        if not head.has_embedding:
            raise ValueError("head must have embed_tokens: give it the target's table")
        self.head_config = head.config
        self.draft_to_target = head.draft_to_target
        self._device = head.fc.weight.device
        self._rope = head_rope_tables(
            head.config.head_dim,
            head.config.rope_parameters,
            max_position_embeddings=head.config.max_position_embeddings,
            device=self._device,
        )
        self._allocate(capacity, slots)

    def _allocate(self, capacity: int, slots: int) -> None:
        config = self.head_config
        self.cache = KVCache(
            1,
            config.num_key_value_heads,
            config.head_dim,
            capacity,
            slots=slots,
            device=self._device,
        )
        self._cos, self._sin = self._rope.first(capacity)

    def with_own_cache(self, capacity: int, slots: int = 1) -> Self:
        """Return a runner that shares the weights but has an empty cache of its own.

        Two threads may use the two runners at the same time.

        Args:
            capacity: rows per slot.
            slots: number of sequences.

        Raises:
            ValueError: RoPE has no table of ``capacity`` rows.
        """
        other = copy.copy(self)
        other._allocate(capacity, slots)
        return other

    def resize(self, capacity: int) -> None:
        """Make room for ``capacity`` rows per slot; keep the rows and the packed weights.

        Raises:
            ValueError: ``capacity`` is less than the rows of a slot.
        """
        before = self.cache
        if capacity < max(before.lengths):
            raise ValueError(
                f"capacity must be at least {max(before.lengths)}, the rows of the longest slot, "
                f"got {capacity}"
            )
        self._allocate(capacity, before.slots)
        self.cache.copy_committed(before)

    @abstractmethod
    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Map target features (R, 3k) to the draft's width (R, h)."""

    @abstractmethod
    def extend(
        self,
        token_ids: torch.Tensor,
        features: torch.Tensor,
        slot: int = 0,
        *,
        reduced: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append stable rows; see `PackedDraft.extend`."""

    @abstractmethod
    def expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the frontier of one round; see `PackedDraft.expand`."""

    @property
    def lengths(self) -> list[int]:
        """Stable rows of every slot."""
        return self.cache.lengths

    @property
    def draft_vocab_size(self) -> int:
        """Vd, the number of tokens that can be drafted."""
        return self.head_config.draft_vocab_size

    def reset(self, slot: int = 0) -> None:
        """Forget a slot's rows."""
        self.cache.truncate(0, slot)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forget a slot's stable rows from ``length`` on.

        Raises:
            ValueError: ``length`` is negative or more than there are.
        """
        self.cache.truncate(length, slot)

    def _check_extend(
        self, token_ids: torch.Tensor, features: torch.Tensor, slot: int, reduced: bool
    ) -> None:
        config = self.head_config
        rows = token_ids.shape[0] if token_ids.dim() == 1 else 0
        if rows < 1 or token_ids.dtype != torch.int64:
            raise ValueError(
                "token_ids must be a row of at least one int64 id, got "
                f"{tuple(token_ids.shape)} {token_ids.dtype}"
            )
        width = config.hidden_size if reduced else 3 * config.feature_hidden_size
        if features.shape != (rows, width):
            raise ValueError(
                f"features must have shape {(rows, width)}, got {tuple(features.shape)}"
            )
        # Ids on a device are the target's own choices; checking them would mean a synchronisation.
        if token_ids.device.type == "cpu":
            low, high = (int(bound) for bound in token_ids.aminmax())
            if low < 0 or high >= config.vocab_size:
                raise ValueError(
                    f"token_ids must lie in 0..{config.vocab_size - 1}, got {low}..{high}"
                )
        check_rope_length(
            config.rope_parameters, self.lengths[slot] + rows, config.max_position_embeddings
        )
        self.cache.check_room(rows, slot)

    def _check_expand(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        round: int,
        mask: torch.Tensor,
        slot: int,
    ) -> None:
        rows = token_ids.shape[0]
        block = (round + 1) * rows
        if hidden.shape != (rows, self.head_config.hidden_size):
            expected = (rows, self.head_config.hidden_size)
            raise ValueError(f"hidden must have shape {expected}, got {tuple(hidden.shape)}")
        bits = {torch.int64: 64, torch.bool: 1}.get(mask.dtype, 0)
        if mask.shape[0] != rows or bits * mask.shape[1] < block:
            raise ValueError(
                f"mask must be int64 of {rows} rows with at least {block} bits each, or as many "
                f"columns of bool, got {tuple(mask.shape)} {mask.dtype}"
            )
        if self.cache.lengths[slot] < 1:
            raise ValueError("expand needs stable rows: call extend first")
        self.cache.check_room(block, slot)
