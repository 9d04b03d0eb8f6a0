"""Prompt lookup of several sequences on a device, in tables for each number of proposed tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eaglerl.ops import NgramTable, extend_ngrams


class SlotTables:
    """The tables of S sequences, by the tokens that they propose; graphs hold their addresses.

    Attributes:
        table: the tables in use; None for no lookup.
    """

    def __init__(self, slots: int, capacity: int, device: torch.device) -> None:
        """Begin without tables.

        Args:
            slots: number S of sequences.
            capacity: most tokens of a text.
            device: where the tables are.
        """
        self._slots, self._capacity, self._device = slots, capacity, device
        self._tables: dict[int, NgramTable] = {}
        # How much of each text the tables have.
        self._indexed: dict[int, list[int]] = {}
        self._lookup = 0
        self.table: NgramTable | None = None

    def choose(self, lookup_tokens: int) -> None:
        """Use the tables that propose so many tokens; 0 for none."""
        if lookup_tokens and lookup_tokens not in self._tables:
            table = NgramTable(self._slots, self._capacity, lookup_tokens, device=self._device)
            self._tables[lookup_tokens] = table
            self._indexed[lookup_tokens] = [0] * self._slots
        self._lookup, self.table = lookup_tokens, self._tables.get(lookup_tokens)

    def forget(self) -> None:
        """Begin other texts."""
        for lookup_tokens, table in self._tables.items():
            table.reset()
            self._indexed[lookup_tokens] = [0] * self._slots

    def extend(self, texts: Sequence[Sequence[int]]) -> None:
        """Append what the tables have not yet; the host does not wait.

        Args:
            texts: of every slot.
        """
        if self.table is None:
            return
        indexed = self._indexed[self._lookup]
        new = [text[known:] for text, known in zip(texts, indexed, strict=True)]
        longest = max(map(len, new))
        if not longest:
            return
        ids = torch.tensor([[*own, *[0] * (longest - len(own))] for own in new])
        counts = torch.tensor([len(own) for own in new])
        extend_ngrams(self.table, ids.to(self._device), counts.to(self._device))
        self._indexed[self._lookup] = [max(len(text), known) for text, known in
                                       zip(texts, indexed, strict=True)]  # fmt: skip

    def count(self, slot: int, tokens: int) -> None:
        """Take note that a launch has appended tokens."""
        if self.table is not None:
            self._indexed[self._lookup][slot] += tokens
