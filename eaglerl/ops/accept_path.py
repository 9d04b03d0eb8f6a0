"""Greedy acceptance: the path through a draft tree that the target would have taken."""

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.ops._check import check_contiguous, check_tensor


def accept_path(parents: Tensor, token_ids: Tensor, choices: Tensor) -> Tensor:
    """Follow the target's choices from the root as far as they are in the tree.

    From row r the path continues with the child of r whose token is ``choices[r]``, if there is
    one. Parents come before their children; row 0 is the root.

    Args:
        parents: int32 (T,), the parent of every row; that of the root is ignored.
        token_ids: int64 (T,), the token of every row.
        choices: int64 (T,), the token that the target chooses after every row.

    Returns:
        int32 (accepted rows,), the root first. ``choices`` at the last of them is the target's own
        next token.

    Raises:
        TypeError: if a tensor has the wrong dtype.
        ValueError: if shapes differ, there are no rows or more than 16,384, or a row's parent is
            not an earlier row.
    """
    check_tensor("parents", parents, torch.int32, 1)
    rows = parents.shape[0]
    if not 1 <= rows <= C.max_tree_rows:
        raise ValueError(
            f"parents must have 1 to {C.max_tree_rows} rows, root included, got {rows}"
        )
    check_contiguous("parents", parents, torch.int32, (rows,))
    check_contiguous("token_ids", token_ids, torch.int64, (rows,))
    check_contiguous("choices", choices, torch.int64, (rows,))
    out = torch.empty(rows, dtype=torch.int32)
    count = C.accept_path(
        parents.data_ptr(), token_ids.data_ptr(), choices.data_ptr(), rows, out.data_ptr()
    )
    return out[:count]


def accept_path_ref(parents: Tensor, token_ids: Tensor, choices: Tensor) -> Tensor:
    """Compute `accept_path` in plain torch, for tests."""
    path = [0]
    while True:
        row = path[-1]
        matches = (parents == row) & (token_ids == choices[row])
        matches[0] = False
        children = matches.nonzero().flatten()
        if len(children) == 0:
            return torch.tensor(path, dtype=torch.int32)
        path.append(int(children[0]))
