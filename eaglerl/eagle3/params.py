"""Parameters of a draft tree, and what the decoding loop needs of a policy that chooses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from eaglerl.eagle3.session import StepResult


@dataclass(frozen=True, slots=True)
class TreeParams:
    """Size and shape of one draft tree, with the meaning of EAGLE's command line.

    Attributes:
        total_tokens: rows that the target verifies, the root included; 1 drafts nothing.
        depth: expansion rounds after the first one; drafted tokens stand on levels 1 to ``depth +
            1``.
        top_k: width of the frontier, and number of children of each of its nodes.

    Raises:
        ValueError: a value below its minimum, or a tree that is larger than the pool of candidates
            ``top_k + depth * top_k**2`` (EAGLE-2, section 4.1) from which it is chosen.
    """

    total_tokens: int
    depth: int = 0
    top_k: int = 1

    def __post_init__(self) -> None:
        for name, minimum in (("total_tokens", 1), ("depth", 0), ("top_k", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if self.total_tokens - 1 > self.pool_size:
            raise ValueError(
                f"total_tokens={self.total_tokens} asks for {self.total_tokens - 1} drafted nodes, "
                f"but depth={self.depth} and top_k={self.top_k} give a pool of only "
                f"{self.pool_size} (top_k + depth * top_k**2)"
            )

    @property
    def pool_size(self) -> int:
        """Number of candidate nodes from which the tree is chosen."""
        return self.top_k + self.depth * self.top_k**2

    def limited_to(self, levels: int) -> TreeParams:
        """The same tree with no node deeper than `levels`; 0 drafts nothing."""
        if self.total_tokens == 1 or levels > self.depth:
            return self
        if levels <= 0:
            return NO_DRAFT
        depth = levels - 1
        pool = self.top_k + depth * self.top_k**2
        return TreeParams(min(self.total_tokens, pool + 1), depth, self.top_k)


#: Verify the root alone: one token per cycle, as in plain decoding.
NO_DRAFT = TreeParams(1, 0, 1)


@dataclass(frozen=True, slots=True)
class CycleState:
    """What a policy may look at before a cycle.

    Attributes:
        features: (3 * hidden_size,) target features of the last token whose features are known,
            low, mid and high concatenated; a view that the next cycle overwrites.
        context_length: committed tokens, the root included.
        last_result: result of the cycle before; None in the first one.
        decision: the tree that a `FusedPolicy` chose when the last token was accepted; None in a
            session without one.
    """

    features: torch.Tensor
    context_length: int
    last_result: StepResult | None
    decision: TreeParams | None = None


@runtime_checkable
class TreePolicy(Protocol):
    """Chooses the draft tree of every cycle.

    The loop calls `reset` once when a sequence starts, then `choose` before and `observe` after
    every cycle. All three are called on the thread that decodes, so their time counts as decoding
    time.
    """

    def reset(self) -> None:
        """Forget the sequence before."""

    def choose(self, state: CycleState) -> TreeParams:
        """The tree of the next cycle."""

    def observe(self, result: StepResult) -> None:
        """Learn what came of the last choice."""


@dataclass(frozen=True, slots=True)
class ConstantPolicy:
    """The same tree at every cycle."""

    params: TreeParams

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state: CycleState) -> TreeParams:
        """Always `params`."""
        return self.params

    def observe(self, result: StepResult) -> None:
        """Nothing to learn."""


def as_policy(policy: TreeParams | TreePolicy) -> TreePolicy:
    """Wrap bare `TreeParams` into a `ConstantPolicy`.

    Raises:
        TypeError: `policy` is neither `TreeParams` nor has the methods of a `TreePolicy`.
    """
    if isinstance(policy, TreeParams):
        return ConstantPolicy(policy)
    if isinstance(policy, TreePolicy):
        return policy
    raise TypeError(f"policy must be TreeParams or a TreePolicy, got {type(policy).__name__}")
