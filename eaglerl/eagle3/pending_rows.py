"""Rows that the target has committed but the draft head has not processed yet."""

from __future__ import annotations

from collections.abc import Callable

import torch


class PendingRows:
    """A queue of rows for the draft head: a token's features and the token after it.

    Features that a `FusedPolicy` has read are reduced already, and the draft's FC does not run
    over them again. All others are reduced when the draft takes the rows. Plain decoding never
    does, so it never runs the FC.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, torch.Tensor, bool]] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def clear(self) -> None:
        """Forget all rows."""
        self._parts.clear()
        self._rows = 0

    def add(self, token_ids: torch.Tensor, features: torch.Tensor, *, reduced: bool) -> None:
        """Append rows.

        Args:
            token_ids: (R,) int64 token after each row.
            features: (R, 3k), or (R, h) if `reduced`; kept, not copied.
            reduced: whether the FC has run over them.
        """
        self._parts.append((token_ids, features, reduced))
        self._rows += len(token_ids)

    def reduce_last(self, features: torch.Tensor) -> None:
        """Replace the features of the rows that were added last by (R, h) reduced ones."""
        token_ids, _, _ = self._parts[-1]
        self._parts[-1] = (token_ids, features, True)

    def take_as_they_are(
        self, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Return all rows and forget them; reduce them only if some are reduced already.

        Args:
            reduce: maps (R, 3k) features to (R, h).

        Returns:
            Token ids (R,) int64, features (R, 3k) or (R, h), and whether they are reduced.
        """
        if any(reduced for _, _, reduced in self._parts):
            return (*self.take(reduce), True)
        return (*self.take(lambda raw: raw), False)

    def take(
        self, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all rows and forget them.

        Args:
            reduce: maps (R, 3k) features to (R, h).

        Returns:
            Token ids (R,) int64 and reduced features (R, h).
        """
        tokens = [part[0] for part in self._parts]
        hidden: list[torch.Tensor] = []
        raw: list[torch.Tensor] = []
        for _, features, reduced in self._parts:
            if not reduced:
                raw.append(features)
                continue
            _flush(raw, hidden, reduce)
            hidden.append(features)
        _flush(raw, hidden, reduce)
        self.clear()
        return _join(tokens), _join(hidden)


def _flush(
    raw: list[torch.Tensor],
    hidden: list[torch.Tensor],
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Reduce consecutive rows in one matrix product, which reads the FC's weight once."""
    if raw:
        hidden.append(reduce(_join(raw)))
        raw.clear()


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
