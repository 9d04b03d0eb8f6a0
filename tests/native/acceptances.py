"""Calls of acceptance and of prompt lookup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from arguments import Source
from memory import Memory, Step, spoil_numbers
from torch import Tensor

from eaglerl import ops
from eaglerl._ext import C

Call = tuple[Callable[..., Any], dict[str, Any], Callable[[], Any] | None]
_TREE = ("token_ids", "parents", "levels", "ancestors", "enabled", "choices")


def _table(source: Source, slots: int) -> ops.NgramTable:
    longest = source.choice((2, 5, 16))
    table = ops.NgramTable(slots, source.choice((1, 9, 40)), source.choice((0, 3)), longest=longest)
    words = source.integers(0, 3, slots, 5, dtype=torch.int64)
    ops.extend_ngrams(table, words, source.integers(0, 6, slots, dtype=torch.int64))
    return table


def _copy(table: ops.NgramTable) -> ops.NgramTable:
    (slots, capacity), proposed = table.texts.shape, table.looked_up.token_ids.shape[1]
    other = ops.NgramTable(slots, capacity, proposed, longest=table.ends.shape[1] + 1)
    for mine, theirs in zip(other.tensors, table.tensors, strict=True):
        mine.copy_(theirs)
    return other


def _values(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors])


def _text(table: ops.NgramTable) -> list[Tensor]:
    """All but the tables, which the reference does not have."""
    return [tensor for tensor in table.tensors if tensor is not table.ends]


def extend_ngrams(source: Source) -> Call:
    slots = source.choice((1, 2, 5))
    table = _table(source, slots)
    judge = _copy(table)
    width = source.choice((0, 1, 6))
    arguments = {
        "token_ids": source.integers(0, 3, slots, width, dtype=torch.int64),
        "counts": source.integers(-1, 9, slots, dtype=torch.int64),
    }
    plain = dict(arguments)

    def result(compute: Callable[..., None], of: ops.NgramTable, **given: Any) -> Tensor:
        compute(of, **given)
        return _values(_text(of))

    return (
        lambda **given: result(ops.extend_ngrams, table, **given),
        arguments,
        lambda: result(ops.extend_ngrams_ref, judge, **plain),
    )


def _tree(source: Source, slots: int, rows: int) -> dict[str, Tensor]:
    def numbers(most: int, *shape: int) -> Tensor:
        return source.integers(0, most, *shape, dtype=torch.int64)

    # Every row is the only one of its level, so that accepted rows are one path.
    levels = torch.arange(rows).expand(slots, -1).contiguous()
    return {
        "token_ids": numbers(2, slots, rows),
        "parents": numbers(rows - 1, slots, rows),
        "levels": levels,
        "ancestors": numbers(1, slots, rows, rows) > 0,
        "enabled": numbers(9, slots, rows) > 0,
        "choices": numbers(2, slots, rows),
    }


def accept_draft(source: Source) -> Call:
    slots, rows = source.choice((1, 2, 5)), source.choice((1, 4, 70))
    arguments: dict[str, Any] = _tree(source, slots, rows)
    longest = source.choice((1, 3, 70))
    accepted, expected = (ops.AcceptedDrafts(slots, longest) for _ in range(2))
    table = _table(source, slots) if source.random() < 0.5 else None
    judge = None if table is None else _copy(table)
    plain = dict(arguments)

    def result(
        compute: Callable[..., None], of: ops.AcceptedDrafts, text: ops.NgramTable | None,
        **given: Any,
    ) -> Tensor:  # fmt: skip
        compute(*(given[name] for name in _TREE), of, text)
        rest = [] if text is None else _text(text)
        return _values([of.rows, of.counts, of.token_ids, *rest])

    return (
        lambda **given: result(ops.accept_draft, accepted, table, **given),
        arguments,
        lambda: result(ops.accept_draft_ref, expected, judge, **plain),
    )


def operator_extend(source: Source) -> Call:
    slots = source.choice((1, 2))
    given = {
        "table": _table(source, slots).tensors,
        "token_ids": source.integers(0, 3, slots, 4, dtype=torch.int64),
        "counts": source.integers(-1, 9, slots, dtype=torch.int64),
    }
    _write_anything(source, given["table"])
    return torch.ops.eaglerl.extend_ngrams, given, None


def operator_accept(source: Source) -> Call:
    slots, rows = source.choice((1, 2)), source.choice((1, 4, 9))
    tree, accepted = [*_tree(source, slots, rows).values()], ops.AcceptedDrafts(slots, 3)
    given = {
        "tree": tree,
        "accepted": [accepted.rows, accepted.counts, accepted.token_ids],
        "table": _table(source, slots).tensors if source.random() < 0.5 else [],
    }
    _write_anything(source, [*tree, *given["table"]])
    return torch.ops.eaglerl.accept_draft, given, None


def _write_anything(source: Source, tensors: list[Tensor]) -> None:
    """What anyone may write into tensors of numbers."""
    victim = source.choice(tensors)
    if source.random() < 0.3 and victim.dtype in (torch.int32, torch.int64):
        shape = victim.shape
        victim.copy_(source.integers(-(2**31), 2**31 - 1, *shape, dtype=victim.dtype))


_TABLE_SIZES = (6, 3, 16, 2)


def _table_memory(memory: Memory, slots: int) -> list[int]:
    capacity, orders, places, proposed = _TABLE_SIZES
    return [
        memory.int64(capacity * slots), memory.int64(slots), memory.int32(orders * places * slots),
        memory.int64(slots), memory.int64(slots), memory.int64(proposed * slots),
    ]  # fmt: skip


def native_extend(source: Source, memory: Memory) -> Step:
    slots = source.choice((1, 2))
    sizes, addresses = [*_TABLE_SIZES], _table_memory(memory, slots)
    tokens, counts = memory.int64(4 * slots), memory.int64(slots)
    if source.random() < 0.3:
        sizes = spoil_numbers(sizes, source)[: source.choice((3, 4))]
    return C.extend_ngrams, [slots, sizes, addresses, 4, tokens, counts]


def native_accept(source: Source, memory: Memory) -> Step:
    slots, rows, longest = source.choice((1, 2)), 4, 3
    tree = [memory.int64(rows * slots) for _ in range(3)]
    tree += [memory(rows * rows * slots, torch.bool), memory(rows * slots, torch.bool)]
    tree.append(memory.int64(rows * slots))
    out = [memory.int64(longest * slots), memory.int64(slots), memory.int64(longest * slots)]
    looks_up = source.random() < 0.5
    table = [[*_TABLE_SIZES], _table_memory(memory, slots)] if looks_up else [None, None]
    if source.random() < 0.3:
        tree = tree[: source.choice((3, 5))]
    if source.random() < 0.2:  # half of a table
        table[source.randrange(2)] = None
    return C.accept_draft, [[slots, rows, longest], tree, out, *table]
