"""Modes: the names under which a client asks for a way of drafting."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from eaglerl.eagle3 import NO_DRAFT, ConstantPolicy, TreeParams, TreePolicy
from eaglerl.eagle3.decoder import DEFAULT_TREE
from eaglerl.policies.lookup_rule import LookupRule, lookup_alone

#: The largest tree that a client may ask for: its pool of candidates grows with depth * top_k^2.
LARGEST = {"total_tokens": 128, "depth": 16, "top_k": 16}
# `tree:T/D/K`; other spellings of the tree are read, too, and tree-T-D-K, which was written before.
_TREE = re.compile(r"tree[:-](\d.*)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_LOOKUP_ALONE = 10
_MERGE_FROM, _MERGE_TOKENS = 2, 7
_ALONE_FROM, _ALONE_TOKENS = 6, 12


@dataclass(frozen=True)
class Mode:
    """A way of drafting.

    Attributes:
        name: what a client calls it.
        description: one sentence.
        make: makes its policy.
        learned: whether the policy was trained.
    """

    name: str
    description: str
    make: Callable[[], TreePolicy]
    learned: bool = False
    _free: list[TreePolicy] = field(default_factory=list, repr=False, compare=False)

    def take(self) -> TreePolicy:
        """A policy that nobody else uses until it is given back."""
        return self._free.pop() if self._free else self.make()

    def give_back(self, policy: TreePolicy) -> None:
        """End the use of a policy; what it has learned is kept."""
        self._free.append(policy)


class Modes:
    """The modes of a server.

    Attributes:
        default: name of the mode that is taken where none is asked for.
    """

    def __init__(self, modes: Iterable[Mode], default: str, *, drafts: bool = True) -> None:
        """Set up.

        Args:
            modes: the modes.
            default: one of their names, or that of a constant tree, which joins them.
            drafts: whether there is a draft head, so that any constant tree may be asked for.

        Raises:
            ValueError: a name that is malformed or occurs twice, or a default that is none of them.
        """
        self._drafts = drafts
        self._modes: dict[str, Mode] = {}
        for mode in modes:
            if not NAME.fullmatch(mode.name):
                raise ValueError(f"the name of a mode must match {NAME.pattern}, got {mode.name}")
            if mode.name in self._modes or _TREE.fullmatch(mode.name):
                raise ValueError(f"the mode {mode.name} is there already")
            self._modes[mode.name] = mode
        chosen = self.get(default)
        self.default = chosen.name
        if chosen.name not in self._modes:
            self._modes = {chosen.name: chosen, **self._modes}

    def side_by_side(self) -> list[str]:
        """Names of the two modes that say most beside each other: a policy and a constant tree.

        The first policy that was trained, else the default mode; beside it the default, or the best
        constant tree where the default is the policy itself, or plain decoding where that is it.
        """
        learned = next((mode.name for mode in self if mode.learned), self.default)
        others = (self.default, "best-constant", "plain")
        beside = (
            name
            for name in others
            if name != learned and name in self._modes and not self._modes[name].learned
        )
        return [learned, *islice(beside, 1)]

    def __iter__(self):
        return iter(self._modes.values())

    def get(self, name: str) -> Mode:
        """The mode of a name: one of the list, or ``tree:T/D/K`` for any constant tree.

        Raises:
            ValueError: there is none.
        """
        if (mode := self._modes.get(name)) is not None:
            return mode
        if not self._drafts:
            raise ValueError(
                f"mode must be one of {[*self._modes]}, there being no draft head, got {name[:80]}"
            )
        if (text := _TREE.fullmatch(name)) is None:
            raise ValueError(f"mode must be tree:T/D/K or one of {[*self._modes]}, got {name[:80]}")
        tree = TreeParams.from_text(text.group(1))
        for key, most in LARGEST.items():
            if getattr(tree, key) > most:
                raise ValueError(
                    f"{key} of a constant tree must be at most {most}, got {getattr(tree, key)}"
                )
        # Not kept: there are many.
        return constant_mode(f"tree:{tree}", tree)


def constant_mode(name: str, tree: TreeParams, description: str | None = None) -> Mode:
    """A constant tree under a name."""
    text = description or (
        f"A constant tree: {tree.total_tokens} rows verified, {tree.depth} expansion rounds after "
        f"the first, width {tree.top_k}."
    )
    return Mode(name, text, lambda: ConstantPolicy(tree))


def standard_modes(best: TreeParams = DEFAULT_TREE) -> list[Mode]:
    """The modes that need no training.

    Args:
        best: the best constant tree of this machine.
    """
    rule = LookupRule(best, _MERGE_FROM, _MERGE_TOKENS, _ALONE_FROM, _ALONE_TOKENS)
    return [
        constant_mode("best-constant", best, f"The best constant tree, {best}."),
        constant_mode("plain", NO_DRAFT, "No drafts: one token per pass of the target."),
        Mode(
            "lookup",
            f"Up to {_LOOKUP_ALONE} tokens that followed the last ones earlier in the text.",
            lambda: lookup_alone(_LOOKUP_ALONE),
        ),
        Mode(
            "tree-lookup",
            f"The tree {best}; with a match in the text its continuation is merged in, with a long "
            "one it is verified alone.",
            lambda: rule,
        ),
    ]
