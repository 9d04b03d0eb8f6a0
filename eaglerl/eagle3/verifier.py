"""The interfaces of what chooses the target's tokens."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, runtime_checkable

import torch

from eaglerl.eagle3.tree.device_tree import TreeRows
from eaglerl.ops import DraftTree


class Verifier(Protocol):
    """The choice of the target's tokens, and with it of the accepted path through a tree."""

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Begin a sequence: all tokens that are chosen from now on belong to it."""

    def next_token(self, logits: torch.Tensor) -> int:
        """Choose the token after one row of logits (V,)."""

    def accept(self, logits: torch.Tensor, tree: DraftTree | TreeRows) -> tuple[list[int], int]:
        """Return the rows of the accepted path, the root first, and the bonus token."""


@runtime_checkable
class RowVerifier(Verifier, Protocol):
    """A verifier that needs the logits only, not the text, so that it can run on a device."""

    def choices(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose a token after each of (T, V) rows, (T,) int64, without leaving the device.

        The path from the root that follows these choices, and the last choice on it, are the
        result of `accept`, or have its distribution.
        """


@runtime_checkable
class CapturableVerifier(RowVerifier, Protocol):
    """A `RowVerifier` whose choices a CUDA graph can make, apart from its random numbers.

    Attributes:
        settings: equal for verifiers that choose alike from the same random numbers; None if a
            graph cannot choose so.
        draws: whether there are random numbers.
    """

    draws: bool

    @property
    def settings(self) -> Hashable | None:
        """See above."""

    def draw(self, times: torch.Tensor) -> None:
        """Fill (T, V) float32 with the random numbers of the next choices, without waiting."""

    def choices_by(self, logits: torch.Tensor, times: torch.Tensor | None) -> torch.Tensor:
        """Return `choices` by given random numbers; None where nothing is drawn."""
