"""Calls of the choice of a draft's nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from arguments import Source
from memory import Memory, Step, spoil_numbers
from torch import Tensor

from eaglerl import ops
from eaglerl._ext import C
from eaglerl.ops.node_selection import rule_layout

Call = tuple[Callable[..., Any], dict[str, Any], Callable[[], Any] | None]
_SIZES = ((2, 2, 6, 3), (1, 3, 4, 0), (3, 0, 1, 2))


def _selection(source: Source) -> tuple[ops.NodeSelection, dict[str, Any]]:
    sizes, slots = ops.SelectionSizes(*source.choice(_SIZES)), source.choice((1, 2, 5))
    selection = ops.NodeSelection(slots, sizes)
    words = rule_layout(sizes)["words"]
    ratios = {"ratio": 1024, "gain": 1000, "pass_price": 1 << 16}
    rule = source.integers(0, 900, slots, words, dtype=torch.int32)
    for name, most in ratios.items():
        begin = rule_layout(sizes)[name]
        drawn = source.integers(0, most, slots, sizes.depth, dtype=torch.int32)
        rule[:, begin : begin + sizes.depth] = drawn
    rule[:, rule_layout(sizes)["most_levels"]] = source.choice((1, 2, 100))
    arguments = {
        "rule": rule,
        "level": 0,
        "roots": source.integers(0, 9, slots, dtype=torch.int64),
        "token_ids": source.integers(0, 9, slots, 1, sizes.top_k, dtype=torch.int64),
        "log_probs": -source.floats(slots, 1, sizes.top_k).abs(),
        "lookup": ops.LookedUp(
            source.integers(-1, 20, slots, dtype=torch.int64),
            source.integers(-1, 6, slots, dtype=torch.int64),
            source.integers(0, 9, slots, sizes.lookup_tokens, dtype=torch.int64),
        ),
    }
    if source.random() < 0.5:
        arguments["limits"] = source.integers(-1, 9, slots, 4, dtype=torch.int32)
    if sizes.depth and source.random() < 0.5:
        ops.select_draft_nodes(selection, **arguments)
        arguments |= {
            "level": 1,
            "token_ids": source.integers(0, 9, slots, sizes.top_k, sizes.top_k, dtype=torch.int64),
            "log_probs": -source.floats(slots, sizes.top_k, sizes.top_k).abs(),
        }
    return selection, arguments


def select_draft_nodes(source: Source) -> Call:
    selection, arguments = _selection(source)
    judge = ops.NodeSelection(selection.slots, selection.sizes)
    for name, tensor in selection.tensors.items():
        judge.tensors[name].copy_(tensor)
    plain = dict(arguments)

    def result(compute: Callable[..., None], of: ops.NodeSelection, **given: Any) -> Tensor:
        lookup = given.pop("lookup")
        # Spoiled, it may be a list.
        given["lookup"] = ops.LookedUp(*lookup) if isinstance(lookup, list | tuple) else lookup
        compute(of, **given)
        return torch.cat([each.double().flatten() for each in of.tensors.values()][:-1])

    return (
        lambda **given: result(ops.select_draft_nodes, selection, **given),
        arguments,
        lambda: result(ops.select_draft_nodes_ref, judge, **plain),
    )


def operator_select(source: Source) -> Call:
    selection, arguments = _selection(source)
    names = ("roots", "token_ids", "log_probs")
    given = {
        "tensors": list(selection.tensors.values()),
        "tables": selection.tables,
        "rule": arguments["rule"],
        "sizes": list(selection.sizes),
        "level": arguments["level"],
        "drafted": [*(arguments[name] for name in names), *arguments["lookup"]],
        "limits": arguments.get("limits"),
    }
    if source.random() < 0.3:  # what anyone may write to the state
        victim = source.choice(given["tensors"][:-1])
        if victim.dtype in (torch.int32, torch.int64):
            shape = victim.shape
            victim.copy_(source.integers(-(2**31), 2**31 - 1, *shape, dtype=victim.dtype))
    return torch.ops.eaglerl.select_draft_nodes, given, None


def native_select(source: Source, memory: Memory) -> Step:
    sizes, slots = [2, 2, 6, 3], source.choice((1, 2))
    words = slots * C.selection_rule_layout(sizes)["words"]
    rule = memory.int32(words)
    memory.kept[-1].fill_(1)
    state = [
        memory.int32(8 * slots), memory(10 * slots), memory.int64(10 * slots),
        memory.int32(10 * slots), memory.int32(10 * slots), memory.int32(3 * slots),
        memory.int64(6 * slots),
    ]  # fmt: skip
    rows = [
        memory.int64(6 * slots), memory.int64(6 * slots), memory.int64(6 * slots),
        memory.int32(6 * slots), memory(36 * slots, torch.bool), memory(6 * slots, torch.bool),
    ]  # fmt: skip
    drafted = [
        memory.int64(slots), memory.int64(4 * slots), memory(4 * slots), memory.int64(slots),
        memory.int64(slots), memory.int64(3 * slots),
    ]  # fmt: skip
    lists = [sizes, state, rows, drafted]
    if source.random() < 0.3:
        place = source.randrange(4)
        lists[place] = spoil_numbers(lists[place], source)[: source.choice((3, 7))]
    sizes, state, rows, drafted = lists
    limits = memory.int32(4 * slots) if source.random() < 0.5 else 0
    return C.select_draft_nodes, [sizes, slots, rule, 0, state, rows, drafted, limits]


def native_layout(source: Source, memory: Memory) -> Step:
    return C.selection_rule_layout, [spoil_numbers(list(source.choice(_SIZES)), source)]
