"""The embedding table of a target, in the blocks of its GGUF file."""

from __future__ import annotations

import torch

from eaglerl._ext import C, thread_count
from eaglerl.eagle3.layers.embedding import EmbeddingSource


class BlockEmbedding(EmbeddingSource):
    """Rows of a block matrix: SmolLM2-135M's table takes 30 MB so, and 113 MB in float32."""

    def __init__(self, matrix: C.BlockMatrix) -> None:
        """Read the rows of a packed matrix."""
        self._matrix = matrix
        self.shape = matrix.shape
        self._table: torch.Tensor | None = None

    def rows(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids; see `EmbeddingSource.rows`."""
        ids = token_ids.to(torch.int64).contiguous()
        found = torch.empty(*ids.shape, self.shape[1])
        self.write_rows(ids.data_ptr(), ids.numel(), found.data_ptr(), thread_count())
        return found

    def write_rows(self, token_ids: int, count: int, out: int, threads: int) -> None:
        """Write the embeddings of token ids; see `EmbeddingSource.write_rows`."""
        self._matrix.gather(token_ids=token_ids, rows=count, out=out, threads=threads)

    def table(self) -> torch.Tensor:
        """Return the whole table in float32, expanded when first asked for."""
        if self._table is None:
            self._table = torch.from_numpy(self._matrix.dequantise(begin=0, end=self.shape[0]))
        return self._table
