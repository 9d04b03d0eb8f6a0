"""Rows that the head has not read yet, because nothing was drafted in their steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Rows of a pass of the head, of all requests, one request after another.

    Attributes:
        token_ids: (M,) the tokens at these positions.
        positions: (M,).
        hidden_states: (M, 3 * hidden_size) the target's features.
        last: (N,) int32, each request's row after which a token is drafted; None for the last one.
        metadata: vLLM's CommonAttentionMetadata.
    """

    token_ids: Tensor
    positions: Tensor
    hidden_states: Tensor
    last: Tensor | None
    metadata: Any


class _Kept:
    """Rows of one request."""

    def __init__(self) -> None:
        self.token_ids: list[Tensor] = []
        self.hidden_states: list[Tensor] = []
        self.begin = self.end = 0

    def __len__(self) -> int:
        return self.end - self.begin


class UnreadRows:
    """Keeps the rows of steps without a draft, and adds them to the head's next pass.

    The head's KV cache so has no gaps: its drafts after a pause are those that it would have made
    without one.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def __getitem__(self, request: str) -> int:
        """Return the number of a request's rows."""
        kept = self._kept.get(request)
        return 0 if kept is None else len(kept)

    @property
    def total(self) -> int:
        """The number of all rows."""
        return sum(len(kept) for kept in self._kept.values())

    def forget(self, request: str) -> None:
        """Drop a request's rows."""
        self._kept.pop(request, None)

    def keep(self, requests: Sequence[str], rows: Rows, rejected: Tensor | None) -> None:
        """Keep the rows of a step, without those of rejected tokens.

        Args:
            requests: N ids.
            rows: the rows.
            rejected: (N,) number of rejected tokens at the end of each request; None for none.
        """
        starts = rows.metadata.query_start_loc_cpu.tolist()
        lost = [0] * len(requests) if rejected is None else rejected.tolist()
        for index, request in enumerate(requests):
            first, end = starts[index], starts[index + 1] - lost[index]
            if end <= first:
                continue
            position = int(rows.positions[first])
            kept = self._kept.get(request)
            if kept is None or kept.end != position:
                kept = self._kept[request] = _Kept()
                kept.begin = kept.end = position
            kept.end += end - first
            kept.token_ids.append(rows.token_ids[first:end].clone())
            kept.hidden_states.append(rows.hidden_states[first:end].clone())

    def merge(self, requests: Sequence[str], rows: Rows, block_size: int, most: int) -> Rows:
        """Put the kept rows of each request before those of this step, and keep none of them.

        Args:
            requests: N ids.
            rows: the rows of the step.
            block_size: positions of a block of the KV cache.
            most: most rows of a pass; kept rows beyond them are lost.

        Returns:
            All rows.
        """
        starts = rows.metadata.query_start_loc_cpu.tolist()
        room = most - starts[len(requests)]
        added: list[_Kept | None] = []
        for index, request in enumerate(requests):
            kept = self._kept.pop(request, None)
            # After a preemption a request begins again.
            if kept is not None and kept.end != int(rows.positions[starts[index]]):
                kept = None
            if kept is not None and len(kept) > room:
                kept = None
            room -= 0 if kept is None else len(kept)
            added.append(kept)
        if not any(added):
            return rows
        return _merged(rows, added, starts, block_size)


def _merged(rows: Rows, added: list[_Kept | None], starts: list[int], block_size: int) -> Rows:
    metadata = rows.metadata
    token_ids, positions, hidden_states, slots = [], [], [], []
    counts = [0 if kept is None else len(kept) for kept in added]
    for index, kept in enumerate(added):
        own = slice(starts[index], starts[index + 1])
        if kept is not None:
            token_ids += kept.token_ids
            hidden_states += kept.hidden_states
            before = torch.arange(kept.begin, kept.end, dtype=rows.positions.dtype)
            before = before.to(rows.positions.device)
            blocks = metadata.block_table_tensor[index, before // block_size]
            positions.append(before)
            slots.append((blocks * block_size + before % block_size).to(metadata.slot_mapping))
        token_ids.append(rows.token_ids[own])
        positions.append(rows.positions[own])
        hidden_states.append(rows.hidden_states[own])
        slots.append(metadata.slot_mapping[own])
    shift = torch.tensor([0, *counts], dtype=metadata.query_start_loc_cpu.dtype).cumsum(0)
    shift = shift.to(metadata.query_start_loc_cpu.dtype)
    on_device = shift.to(metadata.query_start_loc.device)
    lengths = [starts[i + 1] - starts[i] + count for i, count in enumerate(counts)]
    last = rows.last
    if last is not None:
        last = last + on_device[1:].to(last.dtype)
    return Rows(
        torch.cat(token_ids),
        torch.cat(positions),
        torch.cat(hidden_states),
        last,
        dataclasses.replace(
            metadata,
            query_start_loc=metadata.query_start_loc + on_device,
            query_start_loc_cpu=metadata.query_start_loc_cpu + shift,
            num_actual_tokens=metadata.num_actual_tokens + sum(counts),
            max_query_len=max(lengths),
            slot_mapping=torch.cat(slots),
        ),
    )
