"""Modes: ways of drafting that a client can ask for by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from itertools import islice

from eaglerl.eagle3 import NO_DRAFT, ConstantPolicy, TreeParams, TreePolicy
from eaglerl.eagle3.decoder import DEFAULT_TREE
from eaglerl.policies.lookup_rule import LookupRule, lookup_alone

#: The largest tree that a client may ask for; the pool of candidates grows with depth * top_k^2.
LARGEST = {"total_tokens": 128, "depth": 16, "top_k": 16}
# `tree:T/D/K`; other spellings of the tree are also accepted, and tree-T-D-K, the older form.
_TREE = re.compile(r"tree[:-](\d.*)")
#: Name of the mode that learns while decoding.
AUTO = "auto"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_LOOKUP_ALONE = 10
_MERGE_FROM, _MERGE_TOKENS = 2, 7
_ALONE_FROM, _ALONE_TOKENS = 6, 12


@dataclass(frozen=True)
class Mode:
    """A way of drafting.

    Attributes:
        name: the name that clients use.
        description: one sentence.
        make: makes its policy.
        trained: whether the policy was trained.
        joint: whether, in a batch, the batch's joint policy takes the place of this one.
    """

    name: str
    description: str
    make: Callable[[], TreePolicy]
    trained: bool = False
    joint: bool = False
    _free: list[TreePolicy] = field(default_factory=list, repr=False, compare=False)
    # `trained` under its old name.
    learned: InitVar[bool | None] = None

    def __post_init__(self, learned: bool | None) -> None:
        if learned is not None:
            _warn_of_learned()
            object.__setattr__(self, "trained", learned)

    def take(self) -> TreePolicy:
        """Take a policy for exclusive use, until it is given back."""
        return self._free.pop() if self._free else self.make()

    def give_back(self, policy: TreePolicy) -> None:
        """Give a policy back; what it has learned is kept."""
        self._free.append(policy)


def _warn_of_learned() -> None:
    warnings.warn(
        "learned of Mode is deprecated and goes with the next release: it is called trained",
        DeprecationWarning,
        stacklevel=4,
    )


def _learned(mode: Mode) -> bool:
    _warn_of_learned()
    return mode.trained


# Only after the dataclass is made, which would take a property for the default of the argument.
setattr(Mode, "learned", property(_learned))  # noqa: B010


class Modes:
    """The modes of a server.

    Attributes:
        default: name of the mode that is used if a request names none.
    """

    def __init__(self, modes: Iterable[Mode], default: str, *, drafts: bool = True) -> None:
        """Set up.

        Args:
            modes: the modes.
            default: one of their names, or that of a constant tree, which joins them.
            drafts: whether there is a draft head, so that clients may ask for any constant tree.

        Raises:
            ValueError: a name is malformed or occurs twice, or the default is not among them.
        """
        self._drafts = drafts
        self._modes: dict[str, Mode] = {}
        for mode in modes:
            if not NAME.fullmatch(mode.name):
                raise ValueError(f"the name of a mode must match {NAME.pattern}, got {mode.name}")
            if mode.name in self._modes or _TREE.fullmatch(mode.name):
                raise ValueError(f"the names of modes must be distinct, got {mode.name} twice")
            self._modes[mode.name] = mode
        chosen = self.get(default)
        self.default = chosen.name
        if chosen.name not in self._modes:
            self._modes = {chosen.name: chosen, **self._modes}

    def side_by_side(self) -> list[str]:
        """Return the names of the two modes that the live view shows first.

        The first is the policy that learns while decoding, else a trained one, else the default
        mode. The second is the first of these that is neither the same mode nor trained: the
        default, the best constant tree, plain decoding.
        """
        trained = (mode.name for mode in self if mode.trained)
        policy = AUTO if AUTO in self._modes else next(trained, self.default)
        others = (self.default, "best-constant", "plain")
        beside = (
            name
            for name in others
            if name != policy and name in self._modes and not self._modes[name].trained
        )
        return [policy, *islice(beside, 1)]

    def __iter__(self) -> Iterator[Mode]:
        return iter(self._modes.values())

    def get(self, name: str) -> Mode:
        """Return the mode of a name: one of the list, or ``tree:T/D/K`` for any constant tree.

        Raises:
            ValueError: there is no such mode.
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
        # Not kept, because a client could name any number of them.
        return constant_mode(f"tree:{tree}", tree)


def auto_mode(policy: TreePolicy) -> Mode:
    """Make the mode of a policy that learns while decoding; all requests learn together.

    Args:
        policy: decides for what is decoded outside of the batch, as by live sessions.
    """
    return Mode(
        AUTO,
        "Learns from every cycle what drafts cost and which are accepted; drafts where it pays.",
        getattr(policy, "fork", lambda: policy),
        joint=True,
    )


def constant_mode(name: str, tree: TreeParams, description: str | None = None) -> Mode:
    """Make the mode of a constant tree."""
    text = description or (
        f"A constant tree: {tree.total_tokens} rows verified, {tree.depth} expansion rounds after "
        f"the first, width {tree.top_k}."
    )
    return Mode(name, text, lambda: ConstantPolicy(tree))


def standard_modes(best: TreeParams = DEFAULT_TREE) -> list[Mode]:
    """Make the modes that need no training.

    Args:
        best: the best constant tree of this machine.
    """
    rule = LookupRule(best, _MERGE_FROM, _MERGE_TOKENS, _ALONE_FROM, _ALONE_TOKENS)
    return [
        constant_mode("best-constant", best, f"The best constant tree, {best}."),
        constant_mode("plain", NO_DRAFT, "No drafts: one token per pass of the target."),
        Mode(
            "lookup",
            f"Prompt lookup alone: up to {_LOOKUP_ALONE} tokens that followed the last ones "
            "earlier in the text.",
            lambda: lookup_alone(_LOOKUP_ALONE),
        ),
        Mode(
            "tree-lookup",
            f"The tree {best}; looked-up tokens are merged into it, or verified alone after a long "
            "match.",
            lambda: rule,
        ),
    ]
