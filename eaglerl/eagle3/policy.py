"""What a policy and the decoding loop tell each other: trees and plans, states, results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from eaglerl._renamed import renamed_fields
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup, Lookup

# Nine digits: no larger number is a tree's, and Python refuses to read very long ones.
_TREE_TEXT = re.compile(r"(\d{1,9})([/,-])(\d{1,9})\2(\d{1,9})")


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

    @classmethod
    def from_text(cls, text: str) -> TreeParams:
        """Read ``T/D/K``; ``T,D,K`` and ``T-D-K`` are accepted as well.

        Raises:
            ValueError: not three whole numbers, or numbers that make no tree.
        """
        found = _TREE_TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"a tree must be three whole numbers T/D/K such as 8/2/4, got {text[:80]!r}"
            )
        return cls(*(int(found.group(place)) for place in (1, 3, 4)))

    def __str__(self) -> str:
        """``T/D/K``, as everywhere in files, tables and options."""
        return f"{self.total_tokens}/{self.depth}/{self.top_k}"

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


NO_DRAFT = TreeParams(1, 0, 1)
"""Verify the root alone: one token per cycle, as in plain decoding."""


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """Where the drafts of a cycle come from: the head's tree, the text itself, both, or neither.

    A chain that is looked up in the text (see `ContextLookup`) costs no pass of the draft, only
    rows of the verification. With a tree, the two are merged: what they share is verified once.

    Attributes:
        tree: the head's tree; None for none.
        lookup_tokens: longest chain to look up; 0 for none.

    Raises:
        TypeError: `tree` is no tree.
        ValueError: `lookup_tokens` is negative.
    """

    tree: TreeParams | None = None
    lookup_tokens: int = 0

    def __post_init__(self) -> None:
        if self.tree is not None and not isinstance(self.tree, TreeParams):
            raise TypeError(f"tree must be TreeParams or None, got {self.tree!r}")
        if not isinstance(self.lookup_tokens, int) or isinstance(self.lookup_tokens, bool):
            raise TypeError(f"lookup_tokens must be an int, got {self.lookup_tokens!r}")
        if self.lookup_tokens < 0:
            raise ValueError(f"lookup_tokens must be 0 or positive, got {self.lookup_tokens}")

    @property
    def params(self) -> TreeParams:
        """The head's tree, `NO_DRAFT` for none."""
        return NO_DRAFT if self.tree is None else self.tree

    @property
    def most_rows(self) -> int:
        """Rows that the target verifies at most."""
        return self.params.total_tokens + self.lookup_tokens

    def limited_to(self, levels: int) -> DraftPlan:
        """The same with no node deeper than `levels`."""
        tree, tokens = self.params.limited_to(levels), min(self.lookup_tokens, max(levels, 0))
        # Most cycles are far from the end, and a new plan is checked anew.
        if tree is self.tree and tokens == self.lookup_tokens:
            return self
        return DraftPlan(tree, tokens)


def as_plan(choice: TreeParams | DraftPlan) -> DraftPlan:
    """Wrap a bare tree.

    Raises:
        TypeError: `choice` is neither.
    """
    if isinstance(choice, DraftPlan):
        return choice
    if isinstance(choice, TreeParams):
        return DraftPlan(choice)
    raise TypeError(f"a cycle needs TreeParams or a DraftPlan, got {type(choice).__name__}")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one cycle gave.

    Attributes:
        token_ids: emitted tokens: the accepted ones, then the bonus.
        params: the head's tree as it was drafted (a policy's choice may have been cut to what was
            left); `NO_DRAFT` where it had none.
        accepted: accepted drafted tokens; the acceptance length of the cycle is this + 1.
        draft_seconds: time of the draft passes, the first pass over newly accepted rows included.
        verify_seconds: time of the target's pass, the acceptance and the cache's compaction.
        features: (3 * hidden_size,) target features of the last accepted token.
        context_length: tokens after the cycle, the bonus included.
        lookup: the chain from the text itself that was verified too.
        lookup_accepted: leading tokens of that chain that were accepted; they may be the tree's
            own as well.
        rows: rows that the target verified.
        policy_seconds: the policy's time: to observe the cycle before, to choose, and to decide
            between the draft's passes, with what it is shown. What falls between the passes is
            part of `draft_seconds`. For a `FusedPolicy` the host's time of the call that decides,
            which is part of `verify_seconds`; on the CPU without what reducing the draft's
            features takes of it.
    """

    token_ids: tuple[int, ...]
    params: TreeParams
    accepted: int
    draft_seconds: float
    verify_seconds: float
    features: torch.Tensor
    context_length: int
    lookup: Lookup = NO_LOOKUP
    lookup_accepted: int = 0
    rows: int = 1
    policy_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Duration of the cycle."""
        return self.draft_seconds + self.verify_seconds


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
        text: gives the index of the sequence so far; `lookup` asks it.
        confidence: gives the (1 to 8,) float32 best log-probabilities, falling, of the first draft
            pass in the last cycle that drafted; or None before the first one that does.
    """

    features: torch.Tensor
    context_length: int
    last_result: StepResult | None
    decision: TreeParams | None = None
    text: Callable[[], ContextLookup] | None = None
    confidence: Callable[[], np.ndarray | None] | None = None

    def lookup(self, max_tokens: int) -> Lookup:
        """The chain of up to `max_tokens` tokens that the text itself proposes, and its match.

        The text is indexed when this is first asked for, and from then on token by token.
        """
        return NO_LOOKUP if self.text is None else self.text().propose(max_tokens)


@runtime_checkable
class TreePolicy(Protocol):
    """Chooses the draft tree of every cycle.

    The loop calls `reset` once when a sequence starts, then `choose` before and `observe` after
    every cycle. All three are called on the thread that decodes, so their time counts as decoding
    time.

    A sequence has its policy for itself. For sequences that are decoded at the same time a policy
    may have a method ``fork() -> TreePolicy``: the policy for one more sequence, with a memory of
    that sequence alone, and what was learned from all in common. Without it a second generation
    that is given the same object is refused.
    """

    def reset(self) -> None:
        """Forget the sequence before."""

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """The tree of the next cycle, or a plan that names other sources of drafts too."""

    def observe(self, result: StepResult) -> None:
        """Learn what came of the last choice."""


@dataclass(frozen=True, slots=True)
class DraftProgress:
    """A draft at work, after one of its passes.

    Attributes:
        top_k: its width K.
        depth: rounds done after the first, 0 to D.
        scores: (K + depth K^2,) float32 cumulative log-probabilities of the candidates so far, in
            the order of the rounds.
        context_length: tokens before the tree, the root included.
        lookup: the tokens that the plan looked up in the text.
        lookup_nodes: (depth + 1,) int64 index in `scores` of the looked-up token at each level; -1
            from the first level on whose token the draft did not propose. None without a lookup.
    """

    top_k: int
    depth: int
    scores: np.ndarray
    context_length: int
    lookup: Lookup = NO_LOOKUP
    lookup_nodes: np.ndarray | None = None


@renamed_fields(chain_tokens="lookup_tokens")
@dataclass(frozen=True, slots=True)
class Selection:
    """The part of a draft and of the looked-up tokens that is verified.

    Attributes:
        nodes: indices of the draft's candidates, ancestors included.
        lookup_tokens: number of leading looked-up tokens; those that the draft proposed too are
            among `nodes`.
    """

    nodes: np.ndarray
    lookup_tokens: int = 0

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Rows to verify, the root included."""
        nodes = progress.lookup_nodes
        shared = 0 if nodes is None else int((nodes >= 0).sum())
        return 1 + len(self.nodes) + max(0, self.lookup_tokens - shared)


@runtime_checkable
class StagedPolicy(Protocol):
    """A `TreePolicy` that also decides while the draft is at work.

    The tree of `choose` is its limit: after every pass `should_continue` may end it before
    ``depth`` rounds are done, and in the end `choose_total_tokens` says how many nodes are
    verified. Such a policy reads what the draft has found, so it decides on the host.
    """

    def should_continue(self, progress: DraftProgress) -> bool:
        """Whether to draft another round."""

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """total_tokens of the tree, the root included: 1 to 1 + len(progress.scores)."""


@runtime_checkable
class SelectingPolicy(StagedPolicy, Protocol):
    """A `StagedPolicy` that names the nodes itself, and how many looked-up tokens to verify.

    `select` is called instead of `choose_total_tokens`.
    """

    def select(self, progress: DraftProgress) -> Selection:
        """The nodes to verify."""


@dataclass(frozen=True, slots=True)
class ConstantPolicy:
    """The same tree, or the same plan, at every cycle."""

    params: TreeParams | DraftPlan

    def fork(self) -> ConstantPolicy:
        """Itself: there is nothing that one sequence could disturb in another."""
        return self

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Always `params`."""
        return self.params

    def observe(self, result: StepResult) -> None:
        """Nothing to learn."""


def as_policy(policy: TreeParams | DraftPlan | TreePolicy) -> TreePolicy:
    """Wrap a bare tree or plan into a `ConstantPolicy`.

    Raises:
        TypeError: `policy` is neither, nor has the methods of a `TreePolicy`.
    """
    if isinstance(policy, TreeParams | DraftPlan):
        return ConstantPolicy(policy)
    if isinstance(policy, TreePolicy):
        return policy
    raise TypeError(
        f"policy must be TreeParams, a DraftPlan or a TreePolicy, got {type(policy).__name__}"
    )
