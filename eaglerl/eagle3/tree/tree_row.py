"""A draft tree in a file: ``[total_tokens, depth, top_k]``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from eaglerl.eagle3.policy import TreeParams
from eaglerl.ops.limits import LARGEST_POOL, LARGEST_TREE


def _as_tree(row: tuple[int, int, int]) -> TreeParams:
    tree = TreeParams(*row)
    if tree.pool_size > LARGEST_POOL:
        raise ValueError(
            f"must have at most {LARGEST_POOL:,} candidates, top_k + depth * top_k^2, got "
            f"{tree.pool_size:,}"
        )
    return tree


#: A list in JSON, a `TreeParams` after reading.
TreeRow = Annotated[
    tuple[
        Annotated[int, Field(ge=1, le=LARGEST_TREE["total_tokens"])],
        Annotated[int, Field(ge=0, le=LARGEST_TREE["depth"])],
        Annotated[int, Field(ge=1, le=LARGEST_TREE["top_k"])],
    ],
    AfterValidator(_as_tree),
]
