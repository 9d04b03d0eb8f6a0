"""The discrete actions of a policy: which draft trees it can choose from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.eagle3.tree.tree_row import TreeRow
from eaglerl.files import atomic_path
from eaglerl.json_file import Items, VersionedSchema, check_json, read_json
from eaglerl.ops.limits import MAX_ACTIONS

FORMAT = "eaglerl-actions"
VERSION = 1

#: Actions of Re-SpS.
RESPS_TOTAL_TOKENS = (32, 48, 64, 80, 96, 128)
RESPS_DEPTHS = (3, 4, 5, 6, 7, 8)
RESPS_TOP_KS = (8, 12, 16, 20, 32)


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is deprecated and goes with the next release: use {new}",
        DeprecationWarning,
        stacklevel=3,
    )


class ActionsSchema(VersionedSchema):
    """What a file, or a policy's settings, say of an action space."""

    format: Literal[FORMAT]
    version: Literal[VERSION]
    actions: Annotated[Items[TreeRow], Field(min_length=1, max_length=MAX_ACTIONS)]


class ActionSpace(Sequence[TreeParams]):
    """An ordered set of trees; an action is an index into it.

    Attributes:
        bins: (A, 3) int32, `total_tokens`, `depth` and `top_k` of every action.
    """

    def __init__(self, actions: Iterable[TreeParams]) -> None:
        """Keep the trees in the given order.

        Raises:
            TypeError: something that is not `TreeParams`.
            ValueError: no tree, or one that occurs twice.
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
        self.bins = torch.tensor(rows, dtype=torch.int32)

    @classmethod
    def grid(
        cls,
        total_tokens: Sequence[int],
        depths: Sequence[int],
        top_ks: Sequence[int],
        *,
        resps_rule: bool = False,
        published_rule: bool | None = None,
    ) -> ActionSpace:
        """All trees of a grid that exist, `total_tokens` slowest and `top_k` fastest.

        Args:
            total_tokens: values of T.
            depths: values of D.
            top_ks: values of K.
            resps_rule: keep only T <= K^(D - 1), the rule of Re-SpS. Without it the exact bound
                holds: T - 1 <= K + D K^2, the number of candidates.
            published_rule: the deprecated name of `resps_rule`.

        Raises:
            ValueError: no tree is left.
        """
        if published_rule is not None:
            _warn_renamed("published_rule", "resps_rule")
            resps_rule = published_rule
        actions = []
        for total, depth, top_k in product(total_tokens, depths, top_ks):
            fits = total - 1 <= top_k + depth * top_k**2
            if fits and (not resps_rule or total <= top_k ** (depth - 1)):
                actions.append(TreeParams(total, depth, top_k))
        return cls(actions)

    @classmethod
    def resps(cls) -> ActionSpace:
        """Return the 177 actions of Re-SpS: its grid of 180 less the 3 that its rule excludes."""
        return cls.grid(RESPS_TOTAL_TOKENS, RESPS_DEPTHS, RESPS_TOP_KS, resps_rule=True)

    @classmethod
    def resps_grid(cls) -> ActionSpace:
        """Return the whole grid of Re-SpS: 180 actions, all of which are possible trees."""
        return cls.grid(RESPS_TOTAL_TOKENS, RESPS_DEPTHS, RESPS_TOP_KS)

    @classmethod
    def published(cls) -> ActionSpace:
        """Return `resps()`; the deprecated name of it."""
        _warn_renamed("ActionSpace.published", "ActionSpace.resps")
        return cls.resps()

    @classmethod
    def published_bins(cls) -> ActionSpace:
        """Return `resps_grid()`; the deprecated name of it."""
        _warn_renamed("ActionSpace.published_bins", "ActionSpace.resps_grid")
        return cls.resps_grid()

    @classmethod
    def cpu_grid(cls) -> ActionSpace:
        """A fine grid of trees that a CPU can afford, not drafting included."""
        return cls.grid(
            (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64), (0, 1, 2, 3, 4, 5, 7), (1, 2, 4, 8)
        ).with_no_draft()

    @classmethod
    def cpu(cls) -> ActionSpace:
        """Eight trees for a CPU, from not drafting at all to a deep one."""
        trees = ((2, 0, 1), (3, 1, 2), (4, 2, 2), (6, 2, 4), (8, 4, 2), (12, 4, 4), (20, 7, 4))
        return cls(TreeParams(*tree) for tree in trees).with_no_draft()

    def with_no_draft(self) -> ActionSpace:
        """The same actions with T = 1, do not draft in this cycle, as the first."""
        return self if NO_DRAFT in self._indices else ActionSpace((NO_DRAFT, *self._actions))

    @classmethod
    def from_json(cls, path: str | Path) -> ActionSpace:
        """Read a file that `to_json` wrote.

        Raises:
            ValueError: the file is not one, or holds a tree that cannot exist.
        """
        content = read_json(path, ActionsSchema, "action space", form=(FORMAT, VERSION))
        return cls._of_content(content, f"the action space {str(path)!r}")

    @classmethod
    def from_dict(cls, content: object) -> ActionSpace:
        """The action space that `to_dict` described.

        Raises:
            ValueError: it is no such description, or holds a tree that cannot exist.
        """
        return cls._of_content(
            check_json(content, ActionsSchema, "the action space"), "the action space"
        )

    @classmethod
    def _of_content(cls, content: ActionsSchema, where: str) -> ActionSpace:
        try:
            return cls(content.actions)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, object]:
        """A description that JSON can hold."""
        return {"format": FORMAT, "version": VERSION, "actions": self.bins.tolist()}

    def to_json(self, path: str | Path) -> None:
        """Write the actions to a file."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def index(self, params: TreeParams) -> int:
        """The action that stands for a tree.

        Raises:
            ValueError: the tree is none of the actions.
        """
        try:
            return self._indices[params]
        except KeyError:
            raise ValueError(f"{params} is none of the {len(self)} actions") from None

    def subset(self, indices: Iterable[int]) -> ActionSpace:
        """The actions of some indices, in this space's order.

        Raises:
            IndexError: an index is out of range.
            ValueError: no index, or one that occurs twice.
        """
        return ActionSpace(self[index] for index in sorted(indices))

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, index):
        return self._actions[index]

    def __iter__(self) -> Iterator[TreeParams]:
        return iter(self._actions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and self._actions == other._actions

    def __hash__(self) -> int:
        return hash(self._actions)

    def __repr__(self) -> str:
        trees = ", ".join(str(tuple(row)) for row in self.bins[:4].tolist())
        return f"ActionSpace({len(self)} actions: {trees}{', ...' if len(self) > 4 else ''})"
