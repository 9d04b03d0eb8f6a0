"""The discrete actions of a policy: the draft trees to choose from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast, overload

import torch
from pydantic import Field

from eaglerl._renamed import RenamedAttribute, renamed_arguments
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.eagle3.tree.tree_row import TreeRow
from eaglerl.files import atomic_path
from eaglerl.json_file import Items, VersionedSchema, check_json, read_json
from eaglerl.ops.limits import MAX_ACTIONS

FORMAT: Final = "eaglerl-actions"
VERSION: Final = 1

#: Values of Re-SpS (https://arxiv.org/abs/2601.12212).
RESPS_TOTAL_TOKENS = (32, 48, 64, 80, 96, 128)
RESPS_DEPTHS = (3, 4, 5, 6, 7, 8)
RESPS_TOP_KS = (8, 12, 16, 20, 32)


class ActionsSchema(VersionedSchema):
    """An action space in a file or in a policy's settings."""

    format: Literal["eaglerl-actions"]
    version: Literal[1]
    actions: Annotated[Items[TreeRow], Field(min_length=1, max_length=MAX_ACTIONS)]


class ActionSpace(Sequence[TreeParams]):
    """An ordered set of trees; an action is an index into it.

    Attributes:
        tensor: (A, 3) int32, `total_tokens`, `depth` and `top_k` of every action.
    """

    bins = RenamedAttribute("tensor")

    def __init__(self, actions: Iterable[TreeParams]) -> None:
        """Keep the trees in the given order.

        Raises:
            TypeError: an action is not `TreeParams`.
            ValueError: there are no trees, or one occurs twice.
        """
        self._actions = tuple(actions)
        if not self._actions:
            raise ValueError("actions must hold at least one tree, got none")
        self._indices: dict[TreeParams, int] = {}
        for index, action in enumerate(self._actions):
            if not isinstance(action, TreeParams):
                raise TypeError(f"actions must be TreeParams, got {action!r} at {index}")
            if action in self._indices:
                raise ValueError(f"actions must be distinct, got {action} twice")
            self._indices[action] = index
        rows = [(tree.total_tokens, tree.depth, tree.top_k) for tree in self._actions]
        self.tensor = torch.tensor(rows, dtype=torch.int32)

    @classmethod
    @renamed_arguments(published_rule="resps_rule")
    def grid(
        cls,
        total_tokens: Sequence[int],
        depths: Sequence[int],
        top_ks: Sequence[int],
        *,
        resps_rule: bool = False,
    ) -> ActionSpace:
        """Make the trees of a grid that can exist, in order of T, then D, then K.

        Args:
            total_tokens: values of T.
            depths: values of D.
            top_ks: values of K.
            resps_rule: keep only T <= K^(D - 1), the rule of Re-SpS, in addition to the true
                bound T - 1 <= K + D K^2, the number of candidates.

        Raises:
            ValueError: no tree is left.
        """
        actions = []
        for total, depth, top_k in product(total_tokens, depths, top_ks):
            fits = total - 1 <= top_k + depth * top_k**2
            if fits and (not resps_rule or total <= top_k ** (depth - 1)):
                actions.append(TreeParams(total, depth, top_k))
        return cls(actions)

    @classmethod
    def resps(cls) -> ActionSpace:
        """Make the 177 actions of Re-SpS: its grid of 180 without three that its rule excludes."""
        return cls.grid(RESPS_TOTAL_TOKENS, RESPS_DEPTHS, RESPS_TOP_KS, resps_rule=True)

    published = RenamedAttribute("resps")

    @classmethod
    def resps_grid(cls) -> ActionSpace:
        """Make the whole grid of Re-SpS, 180 actions, all of which can exist."""
        return cls.grid(RESPS_TOTAL_TOKENS, RESPS_DEPTHS, RESPS_TOP_KS)

    published_bins = RenamedAttribute("resps_grid")

    @classmethod
    def cpu_grid(cls) -> ActionSpace:
        """Make a fine grid of trees that suit a CPU, plain decoding included."""
        return cls.grid(
            (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64), (0, 1, 2, 3, 4, 5, 7), (1, 2, 4, 8)
        ).with_no_draft()

    @classmethod
    def cpu(cls) -> ActionSpace:
        """Make eight trees for a CPU, from plain decoding to a deep tree."""
        trees = ((2, 0, 1), (3, 1, 2), (4, 2, 2), (6, 2, 4), (8, 4, 2), (12, 4, 4), (20, 7, 4))
        return cls(TreeParams(*tree) for tree in trees).with_no_draft()

    def with_no_draft(self) -> ActionSpace:
        """Return the actions with T = 1, plain decoding, as the first one."""
        return self if NO_DRAFT in self._indices else ActionSpace((NO_DRAFT, *self._actions))

    @classmethod
    def from_json(cls, path: str | Path) -> ActionSpace:
        """Read a file that `to_json` wrote.

        Raises:
            ValueError: the file is not an action space, or holds a tree that cannot exist.
        """
        content = read_json(path, ActionsSchema, "action space", form=(FORMAT, VERSION))
        return cls._of_content(content, f"the action space {str(path)!r}")

    @classmethod
    def from_dict(cls, content: object) -> ActionSpace:
        """Make the action space that `to_dict` described.

        Raises:
            ValueError: `content` is not such a description, or holds a tree that cannot exist.
        """
        return cls._of_content(
            check_json(content, ActionsSchema, "the action space"), "the action space"
        )

    @classmethod
    def _of_content(cls, content: ActionsSchema, where: str) -> ActionSpace:
        try:
            # The validator of `TreeRow` has made each row a tree.
            return cls(cast("tuple[TreeParams, ...]", content.actions))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, object]:
        """Return a description of JSON values."""
        return {"format": FORMAT, "version": VERSION, "actions": self.tensor.tolist()}

    def to_json(self, path: str | Path) -> None:
        """Write the actions to a file."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the index of a tree; `start` and `stop` are those of `Sequence.index`.

        Raises:
            ValueError: the tree is not among the actions.
        """
        index = self._indices.get(value)
        if index is None or index not in range(len(self))[start:stop]:
            raise ValueError(f"{value} is none of the {len(self)} actions")
        return index

    def subset(self, indices: Iterable[int]) -> ActionSpace:
        """Return the actions of some indices, in this space's order.

        Raises:
            IndexError: an index is out of range.
            ValueError: there are no indices, or one occurs twice.
        """
        return ActionSpace(self[index] for index in sorted(indices))

    def __len__(self) -> int:
        return len(self._actions)

    @overload
    def __getitem__(self, index: int) -> TreeParams: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TreeParams, ...]: ...

    def __getitem__(self, index: int | slice) -> TreeParams | tuple[TreeParams, ...]:
        return self._actions[index]

    def __iter__(self) -> Iterator[TreeParams]:
        return iter(self._actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and self._actions == other._actions

    def __hash__(self) -> int:
        return hash(self._actions)

    def __repr__(self) -> str:
        trees = ", ".join(str(tuple(row)) for row in self.tensor[:4].tolist())
        return f"ActionSpace({len(self)} actions: {trees}{', ...' if len(self) > 4 else ''})"
