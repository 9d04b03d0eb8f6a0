"""Reading a prompt in chunks, with one pass of the target per chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_model import TargetModel


class PromptReader:
    """A prompt that is read chunk by chunk, and the features of the part that was read.

    Attributes:
        token_ids: the prompt.
    """

    def __init__(
        self,
        token_ids: Sequence[int] = (),
        *,
        read: int = 0,
        features: torch.Tensor | None = None,
    ) -> None:
        """Take a prompt.

        Args:
            token_ids: the prompt.
            read: tokens at its beginning whose rows are in the cache already.
            features: (R, 3k) features of the last R of those.
        """
        self.token_ids = list(token_ids)
        self._read = read
        self._features = [] if features is None else [features]

    @property
    def unread(self) -> int:
        """Number of tokens that have not been read."""
        return len(self.token_ids) - self._read

    def read_chunk(
        self, target: TargetModel, cache: KVCache, slot: int, most_rows: int | None
    ) -> torch.Tensor | None:
        """Read the next chunk.

        Args:
            target: the target.
            cache: the target's KV cache, to which the chunk's rows are committed.
            slot: slot of the sequence.
            most_rows: most tokens of the chunk; None for the target's `chunk_size`.

        Returns:
            (1, V) logits after the prompt if this was the last chunk, else None.
        """
        start = self._read
        size = min(target.chunk_size, most_rows or target.chunk_size)
        chunk = self.token_ids[start : start + size]
        last = start + len(chunk) == len(self.token_ids)
        rows = RowBatch.causal(chunk, start, slot)
        output = target.forward(rows, cache, "last" if last else "none")
        cache.commit(range(len(chunk)), slot)
        # A copy: the features are a view of a buffer that the next pass overwrites.
        self._features.append(output.features.clone())
        self._read += len(chunk)
        return output.logits if last else None

    def take_features(self) -> torch.Tensor:
        """Return the features of the tokens that were read, and forget them.

        Returns:
            (n, 3k); behind a prefix whose rows were there, those that came with it and all further.
        """
        features = torch.cat(self._features)
        self._features.clear()
        return features

    @property
    def last_chunk(self) -> torch.Tensor:
        """(R, 3k) features of the chunk that was read last."""
        return self._features[-1]

    def take_all_but_last(self) -> tuple[list[int], torch.Tensor]:
        """Return the rows that were read, but the last one, and forget them.

        Returns:
            The token after each of R rows, and their (R, 3k) features.
        """
        features = torch.cat(self._features)
        # A copy, so that the others are not kept.
        self._features = [features[-1:].clone()]
        first = self._read - len(features)
        return self.token_ids[first + 1 : self._read], features[:-1]

    def clear(self) -> None:
        """Forget the features."""
        self._features.clear()
