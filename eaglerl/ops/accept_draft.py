"""The accepted path of a verified tree, and the lookup behind it, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._encode_library import library
from eaglerl.ops._operands import check_int, check_kinds, check_operand, need_triton
from eaglerl.ops.ngram_table import NGRAM_CONSTANTS, NgramTable, TableSizes, check_table

_TREE = ("token_ids", "parents", "levels", "ancestors", "enabled", "choices")

library.define("accept_draft(Tensor[] tree, Tensor(a!)[] accepted, Tensor(b!)[] table) -> ()")


class AcceptedDrafts:
    """What was accepted of the trees of S slots.

    Attributes:
        rows: (S, P) int64 rows of the path, the root first, padded with row 0.
        counts: (S,) int64 rows in the path.
        token_ids: (S, P) int64 the target's choice after each row: the accepted tokens, then the
            bonus token, then padding.
    """

    def __init__(
        self, slots: int, longest_path: int, *, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate.

        Args:
            slots: number S of sequences, at least 1.
            longest_path: most rows P of a path, the root included; 1 to 256.
            device: where everything lies.

        Raises:
            TypeError: a number is not an int.
            ValueError: a number is out of range.
        """
        most = NGRAM_CONSTANTS["most_rows"]
        check_int("slots", slots, 1, 2**30)
        check_int("longest_path", longest_path, 1, most)
        self.rows = torch.zeros(slots, longest_path, dtype=torch.int64, device=device)
        self.counts = torch.zeros(slots, dtype=torch.int64, device=device)
        self.token_ids = torch.zeros_like(self.rows)


def accept_draft(
    token_ids: Tensor,
    parents: Tensor,
    levels: Tensor,
    ancestors: Tensor,
    enabled: Tensor,
    choices: Tensor,
    accepted: AcceptedDrafts,
    table: NgramTable | None = None,
) -> None:
    """Follow the target's choices from the root as far as each slot's tree goes.

    A row is accepted if it and all of its ancestors are the choices of their parents' rows.
    Siblings have distinct tokens, so the accepted rows are one path. The tree's tensors are those
    that `NodeSelection` has.

    Args:
        token_ids: (S, R) int64 tokens of the rows, the root first; R is at most 256.
        parents: (S, R) int64 rows of the parents; the root's is 0.
        levels: (S, R) int64 distance from the root.
        ancestors: (S, R, R) bool, whether a column is the row itself or an ancestor of it.
        enabled: (S, R) bool, whether a path may lead through the row.
        choices: (S, R) int64 the target's token after each row.
        accepted: is overwritten.
        table: takes the accepted tokens and the bonus token, and proposes what follows them, see
            `extend_ngrams`; None for no lookup.

    Raises:
        TypeError: an argument is of another type, or a tensor of another dtype.
        ValueError: a shape or device does not fit. Nothing has changed.
        RuntimeError: on a device without Triton.
    """
    tree = [token_ids, parents, levels, ancestors, enabled, choices]
    for name, tensor in zip(_TREE, tree, strict=True):
        check_kinds(**{name: (tensor, Tensor)})
    check_kinds(accepted=(accepted, AcceptedDrafts))
    if table is not None:
        check_kinds(table=(table, NgramTable))
    torch.ops.eaglerl.accept_draft(
        tree,
        [accepted.rows, accepted.counts, accepted.token_ids],
        [] if table is None else table.tensors,
    )


def _checked(*arguments: Any) -> TableSizes | None:
    """Check the operator's arguments, which may come from anywhere.

    Raises:
        TypeError: see `accept_draft`.
        ValueError: see `accept_draft`.
    """
    tree, accepted, table = arguments
    if (len(tree), len(accepted)) != (6, 3):
        raise ValueError(
            f"tree and accepted must be 6 and 3 tensors, got {len(tree)} and {len(accepted)}"
        )
    if tree[0].ndim != 2 or accepted[0].ndim != 2:
        shapes = tuple(tree[0].shape), tuple(accepted[0].shape)
        raise ValueError(f"token_ids and accepted.rows must be (S, R) and (S, P), got {shapes}")
    (slots, rows), longest = tree[0].shape, accepted[0].shape[1]
    most, device = NGRAM_CONSTANTS["most_rows"], tree[0].device
    for name, value in (("token_ids", rows), ("accepted.rows", longest)):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must have 1..{most} columns, got {value}")
    for name, tensor in zip(_TREE, tree, strict=True):
        flag = name in ("ancestors", "enabled")
        shape = (slots, rows, rows) if name == "ancestors" else (slots, rows)
        check_operand(name, tensor, torch.bool if flag else torch.int64, shape, device)
    for name, tensor in zip(("rows", "counts", "token_ids"), accepted, strict=True):
        sizes = (slots,) if name == "counts" else (slots, longest)
        check_operand(f"accepted.{name}", tensor, torch.int64, sizes, device)
    if not table:
        return None
    table_sizes = check_table(table)
    if (len(table[1]), table[1].device) != (slots, device):
        raise ValueError(
            f"table must have {slots} slots on {device}, got {len(table[1])} on {table[1].device}"
        )
    return table_sizes


def _on_cpu(*arguments: Any) -> None:
    tree, accepted, table = arguments
    sizes = _checked(*arguments)

    def addresses(tensors: Sequence[Tensor]) -> list[int]:
        return [tensor.data_ptr() for tensor in tensors]

    C.accept_draft(
        [*tree[0].shape, accepted[0].shape[1]], addresses(tree), addresses(accepted),
        None if sizes is None else list(sizes), None if sizes is None else addresses(table),
    )  # fmt: skip


def _on_device(*arguments: Any) -> None:
    need_triton("accept_draft")
    from eaglerl.kernels.accept_draft_kernel import prepare_accept_draft

    sizes = _checked(*arguments)
    prepare_accept_draft(*arguments, sizes).run(arguments[0][0].device)


def _fake(*arguments: Any) -> None:
    _checked(*arguments)


library.impl("accept_draft", _on_cpu, "CPU")
library.impl("accept_draft", _on_device, "CUDA")
torch.library.register_fake("eaglerl::accept_draft", _fake, lib=library)
