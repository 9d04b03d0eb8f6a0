"""Reading a prompt in chunks: one pass of the target for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_model import TargetModel


class PromptReader:
    """A prompt, and the features of what was read of it.

    Attributes:
        token_ids: the prompt.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        """Begin a prompt; nothing is read yet."""
        self.token_ids = list(token_ids)
        self._features: list[torch.Tensor] = []

    @property
    def unread(self) -> int:
        """Tokens that have yet to be read."""
        return len(self.token_ids) - sum(len(part) for part in self._features)

    def read_chunk(
        self, target: TargetModel, cache: KVCache, slot: int, most_rows: int | None
    ) -> torch.Tensor | None:
        """Read the next chunk.

        Args:
            target: the target.
            cache: its KV cache, whose slot gets the chunk's rows.
            slot: the sequence.
            most_rows: tokens of the chunk at most; None for the target's `chunk_size`.

        Returns:
            (1, V) logits after the prompt if that was the last chunk, else None.
        """
        start = len(self.token_ids) - self.unread
        size = min(target.chunk_size, most_rows or target.chunk_size)
        chunk = self.token_ids[start : start + size]
        last = start + len(chunk) == len(self.token_ids)
        rows = RowBatch.causal(chunk, start, slot)
        output = target.forward(rows, cache, "last" if last else "none")
        cache.commit(range(len(chunk)), slot)
        # A copy, for the next chunk's features overwrite these.
        self._features.append(output.features.clone())
        return output.logits if last else None

    def take_features(self) -> torch.Tensor:
        """Return the (n, 3k) features of what was read, and forget them."""
        features = torch.cat(self._features)
        self._features.clear()
        return features

    def clear(self) -> None:
        """Forget the features."""
        self._features.clear()
