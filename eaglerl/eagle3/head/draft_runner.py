"""Inference with a draft head over a KV cache: what is common, and the plain PyTorch runner."""

import copy
import warnings
from typing import Literal, Self

import torch
from torch import nn

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.layers.rope import check_rope_length, head_rope_tables

DraftDtype = Literal["auto", "float32", "bfloat16", "int8"]


class CachedDraft:
    """A draft head's KV cache and the rules of its rows; runners derive from it.

    A slot's stable rows pair the features of token t with the embedding of token t + 1 at rotary
    position t. Drafting writes scratch rows behind them, which the next call of `extend`
    overwrites: nothing has to be moved.

    Attributes:
        head_config: The head's configuration.
        cache: The KV cache, of one layer.
        draft_to_target: (Vd,) int64 target id of every draft id; None if the two are equal.
    """

    def __init__(self, head: Eagle3DraftHead, *, capacity: int, slots: int) -> None:
        if head.embed_tokens is None:
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
        """Returns a runner of the same weights, which are shared, over an empty cache of its own.

        Either may be used while another thread uses the other.

        Args:
            capacity: Rows per slot.
            slots: Number of sequences.

        Raises:
            ValueError: RoPE has no table of ``capacity`` rows.
        """
        other = copy.copy(self)
        other._allocate(capacity, slots)
        return other

    def resize(self, capacity: int) -> None:
        """Makes room for ``capacity`` rows per slot, without packing weights anew; keeps the rows.

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

    @property
    def lengths(self) -> list[int]:
        """Stable rows of every slot."""
        return self.cache.lengths

    @property
    def draft_vocab_size(self) -> int:
        """Vd, the number of tokens that can be drafted."""
        return self.head_config.draft_vocab_size

    def reset(self, slot: int = 0) -> None:
        """Forgets a slot's rows."""
        self.cache.truncate(0, slot)

    def truncate(self, length: int, slot: int = 0) -> None:
        """Forgets a slot's stable rows from ``length`` on.

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
        # Ids on a device are the target's own choices; to look at them would be to wait for it.
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


class ModuleDraft(CachedDraft):
    """A draft head run as a plain module, on any device; the reference of the fast one."""

    def __init__(self, head: Eagle3DraftHead, *, capacity: int, slots: int = 1) -> None:
        """Prepares inference.

        Args:
            head: The head; it must have an embedding table.
            capacity: Rows per slot: stable rows and the scratch rows of the widest tree.
            slots: Number of sequences.

        Raises:
            ValueError: The head has no embedding table.
        """
        super().__init__(head, capacity=capacity, slots=slots)
        self.head = head

    @torch.inference_mode()
    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Maps target features (R, 3k) to the draft's width (R, h)."""
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
        """Takes in stable rows; see `PackedDraft.extend`."""
        self._check_extend(token_ids, features, slot, reduced)
        start, rows = self.lengths[slot], len(token_ids)
        positions = torch.arange(start, start + rows, device=features.device)
        keys = torch.arange(start + rows, device=features.device)
        visible = keys <= positions[:, None]
        if self.head_config.sliding_window is not None:
            visible &= positions[:, None] - keys < self.head_config.sliding_window
        hidden = features if reduced else self.reduce(features)
        output, logits = self._run(token_ids, hidden, positions, start, visible, slot)
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
        """Runs one frontier; see `PackedDraft.expand`."""
        self._check_expand(token_ids, hidden, round, mask, slot)
        length, rows = self.lengths[slot], len(token_ids)
        positions = torch.full((rows,), length + round, device=hidden.device)
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
        return self._run(token_ids, hidden, positions, start, visible, slot)

    def _run(
        self,
        token_ids: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        start: int,
        visible: torch.Tensor,
        slot: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass whose rows are written from cache row ``start`` on.

        Args:
            token_ids: (M,) int64.
            hidden: (M, h) features.
            positions: (M,) rotary positions.
            start: First cache row to write.
            visible: (M, start + M) bool, the cache rows that each row sees.
            slot: The sequence.

        Returns:
            Feedback (M, h) and logits (M, Vd).
        """
        keys, values = self.cache.keys(0)[slot], self.cache.values(0)[slot]
        end = start + len(token_ids)

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys[:, start:end] = k.transpose(0, 1)
            values[:, start:end] = v.transpose(0, 1)
            attended = nn.functional.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[None, :, :end].to(q.dtype),
                values[None, :, :end].to(q.dtype),
                attn_mask=visible,
                enable_gqa=True,
            )
            return attended[0].transpose(0, 1)

        head = self.head
        cos, sin = self._cos[positions], self._sin[positions]
        output = head.midlayer(head.embed(token_ids.to(self._device)), hidden, cos, sin, attention)
        return head.feedback(output), head.logits(output)


def make_runner(
    head: Eagle3DraftHead, *, capacity: int, slots: int = 1, dtype: DraftDtype = "auto"
) -> CachedDraft:
    """Returns the fastest runner for a head: `PackedDraft` on the CPU, else `ModuleDraft`.

    A head on the CPU that cannot be packed runs as a module with ``dtype="auto"``, and a warning
    says so.

    Args:
        head: The head; it must have an embedding table.
        capacity: Rows per slot: stable rows and the scratch rows of the widest tree.
        slots: Number of sequences.
        dtype: What the packed products run in; "auto" takes int8. Elsewhere than on the CPU the
            head's own dtype counts.

    Raises:
        ValueError: The head has no embedding table, an argument is out of range, or a ``dtype``
            was asked for and the head cannot be packed.
    """
    from eaglerl.eagle3.head.packed_draft import PackedDraft, why_not_packed

    if head.fc.weight.device.type != "cpu":
        return ModuleDraft(head, capacity=capacity, slots=slots)
    reason = why_not_packed(head)
    if reason is not None and dtype == "auto":
        warnings.warn(f"the draft head runs unpacked, which is slower: {reason}", stacklevel=2)
        return ModuleDraft(head, capacity=capacity, slots=slots)
    packed_dtype = "int8" if dtype == "auto" else dtype
    return PackedDraft(head, capacity=capacity, slots=slots, dtype=packed_dtype)
