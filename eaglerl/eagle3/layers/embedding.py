"""An embedding table whose rows are computed when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch


class EmbeddingSource(ABC):
    """A table on the CPU that need not be in memory as float32; it never changes.

    Attributes:
        shape: (vocab_size, hidden_size).
    """

    shape: tuple[int, int]

    @abstractmethod
    def rows(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (..., hidden_size) float32 of int64 ids (...).

        Raises:
            ValueError: an id is not in the vocabulary.
        """

    @abstractmethod
    def write_rows(self, token_ids: int, count: int, out: int, threads: int) -> None:
        """Write the embeddings of `count` ids without a tensor of their own.

        Args:
            token_ids: address of (count,) int64 ids.
            count: number of rows.
            out: address of (count, hidden_size) float32.
            threads: threads to use.

        Raises:
            ValueError: an id is not in the vocabulary.
        """

    @abstractmethod
    def table(self) -> torch.Tensor:
        """Return the whole table in float32, expanded when first asked for."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the source itself."""
        return self
