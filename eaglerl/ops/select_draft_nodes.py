"""The choice of a draft's nodes after each of its passes, without the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._encode_library import library
from eaglerl.ops._operands import check_operand, need_triton
from eaglerl.ops.node_selection import (
    STATE_TENSORS,
    LookedUp,
    NodeSelection,
    SelectionSizes,
    check_sizes,
    rule_layout,
    tensor_layout,
)

library.define(
    "select_draft_nodes(Tensor(a!)[] tensors, Tensor[] tables, Tensor rule, int[] sizes, "
    "int level, Tensor[] drafted, Tensor? limits=None) -> ()"
)


def select_draft_nodes(
    selection: NodeSelection,
    rule: Tensor,
    level: int,
    roots: Tensor,
    token_ids: Tensor,
    log_probs: Tensor,
    lookup: LookedUp | None = None,
    limits: Tensor | None = None,
) -> None:
    """Take a level of every slot's draft, choose the rows to verify, and whether drafting goes on.

    Every candidate's survival, the probability that the target accepts it and all of its ancestors,
    is predicted from the draft's own probability by a logistic rule (`pack_rule`). The rows are
    those of the largest expected number of tokens less the price of so many rows. Drafting goes on
    if the best candidates of further levels, were they to survive as often beside this level's as
    the rule says, would add more than the passes cost. After a level that ends a slot's draft,
    further calls leave it as it is: a fixed number of passes can be captured in a graph. The next
    pass expands the K candidates that the draft itself holds most probable, as EAGLE-2 does
    (section 4.1).

    All of this is computed in whole numbers: results have the same bits on every device.

    Limits may make a slot's draft smaller than the sizes of the selection, for instance to what a
    policy has chosen and an `ActionCache` keeps. Children of a node beyond the first top_k are then
    no candidates: their logits are the least, and they are neither chosen nor expanded. Places of
    the frontier beyond top_k repeat the last one, and what the draft finds below them is ignored.

    Args:
        selection: the drafts so far and the chosen rows; changed in place.
        rule: (S, words) int32, see `pack_rule` and `stack_rules`.
        level: 0 for the root's children; it begins a draft. Then 1, 2, ..., at most D.
        roots: (S,) int64 tokens of the roots.
        token_ids: (S, M, K) int64 the best children of the M nodes of ``selection.frontier``; M is
            1 at level 0 and K at others. With limits, the best child comes first.
        log_probs: (S, M, K) float32 their log-probabilities, at most 0.
        lookup: what prompt lookup proposes; None for nothing. The same at all levels of a draft.
        limits: (S, 4) int32 total_tokens, depth, top_k and lookup_tokens, such as the ``params`` of
            `fused_encode`: at most so many rows with the root, passes after the first one, children
            of a node and expanded nodes, and looked-up tokens. Looked-up tokens may reach further
            down than depth. Numbers out of range count as the nearest in range. None for no limits
            but the sizes. The same at all levels of a draft.

    Raises:
        TypeError: an argument is no tensor, or of another dtype.
        ValueError: a shape, device or number does not fit, or on the CPU a level was left out or
            the rule has a number out of range. Nothing has changed.
        RuntimeError: on a device without Triton.
    """
    looked_up = selection.no_lookup if lookup is None else lookup
    torch.ops.eaglerl.select_draft_nodes(
        [*selection.tensors.values()], selection.tables, rule, list(selection.sizes), level,
        [roots, token_ids, log_probs, *looked_up], limits,
    )  # fmt: skip


# Of a selection; confidences and survivals; roots, children, log-probabilities, three of a lookup.
_TENSORS = (len(tensor_layout(1, SelectionSizes(1, 0, 1))), 2, 6)


class _Call(NamedTuple):
    """The operator's arguments."""

    tensors: Sequence[Tensor]
    tables: Sequence[Tensor]
    rule: Tensor
    sizes: SelectionSizes
    level: int
    drafted: Sequence[Tensor]
    limits: Tensor | None


def _checked(
    tensors: Sequence[Tensor],
    tables: Sequence[Tensor],
    rule: Tensor,
    numbers: Sequence[int],
    level: int,
    drafted: Sequence[Tensor],
    limits: Tensor | None = None,
) -> _Call:
    """Check the operator's arguments, which may come from anywhere.

    Raises:
        TypeError: see `select_draft_nodes`.
        ValueError: see `select_draft_nodes`.
    """
    if len(numbers) != len(SelectionSizes._fields):
        raise ValueError(f"sizes must be {', '.join(SelectionSizes._fields)}, got {numbers}")
    sizes = SelectionSizes(*numbers)
    check_sizes(sizes)
    if not 0 <= level <= sizes.depth:
        raise ValueError(f"level must be in 0..{sizes.depth}, got {level}")
    slots = tensors[0].shape[0] if tensors and tensors[0].ndim else 0
    expected = _expected(slots, sizes, level)
    given = (*tensors, *tables, rule, *drafted)
    if (len(tensors), len(tables), len(drafted)) != _TENSORS:
        raise ValueError(f"there must be {len(expected)} tensors: {', '.join(expected)}")
    for (name, (dtype, shape)), tensor in zip(expected.items(), given, strict=True):
        check_operand(name, tensor, dtype, shape, rule.device)
    if limits is not None:
        shape = (slots, len(C.action_columns))
        check_operand("limits", limits, torch.int32, shape, rule.device)
    return _Call(tensors, tables, rule, sizes, level, drafted, limits)


# A call comes after every pass of every draft, with few sizes: this would be most of its time.
@functools.lru_cache
def _expected(
    slots: int, sizes: SelectionSizes, level: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of all tensors of a call, in their order."""
    kept = tensor_layout(slots, sizes)
    confidences, survivals = (len(table) for table in C.selection_tables())
    children = (slots, 1 if level == 0 else sizes.top_k, sizes.top_k)
    whole, word = torch.int64, torch.int32
    return kept | {
        "confidences": (word, (confidences,)),
        "survivals": (word, (survivals,)),
        "rule": (word, (slots, rule_layout(sizes)["words"])),
        "roots": (whole, (slots,)),
        "token_ids": (whole, children),
        "log_probs": (torch.float32, children),
        "lookup.match_lengths": (whole, (slots,)),
        "lookup.counts": (whole, (slots,)),
        "lookup.token_ids": (whole, (slots, sizes.lookup_tokens)),
    }


def _on_cpu(*arguments: Any) -> None:
    call = _checked(*arguments)
    addresses = [tensor.data_ptr() for tensor in call.tensors]
    C.select_draft_nodes(
        list(call.sizes), len(call.rule), call.rule.data_ptr(), call.level,
        addresses[:STATE_TENSORS], addresses[STATE_TENSORS:-1],
        [tensor.data_ptr() for tensor in call.drafted],
        0 if call.limits is None else call.limits.data_ptr(),
    )  # fmt: skip


def _on_device(*arguments: Any) -> None:
    need_triton("select_draft_nodes")
    from eaglerl.kernels.select_draft_nodes_kernel import prepare_select_draft_nodes

    call = _checked(*arguments)
    prepare_select_draft_nodes(*call).run(call.rule.device)


def _fake(*arguments: Any) -> None:
    _checked(*arguments)


library.impl("select_draft_nodes", _on_cpu, "CPU")
library.impl("select_draft_nodes", _on_device, "CUDA")
torch.library.register_fake("eaglerl::select_draft_nodes", _fake, lib=library)
