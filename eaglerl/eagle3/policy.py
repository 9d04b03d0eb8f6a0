"""The interface between a policy and the decoding loop: trees and plans, states, results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from eaglerl._ext import C
from eaglerl._renamed import renamed_fields
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup, Lookup

# Nine digits at most: no tree needs more, and int() raises on strings of more than 4,300.
_TREE_TEXT = re.compile(r"(\d{1,9})([/,-])(\d{1,9})\2(\d{1,9})")


@dataclass(frozen=True, slots=True)
class TreeParams:
    """Size and shape of one draft tree, as EAGLE's command line defines them.

    Attributes:
        total_tokens: rows that the target verifies, the root included; 1 drafts nothing.
        depth: expansion rounds after the first one; drafted tokens are on levels 1 to
            ``depth + 1``.
        top_k: width of the frontier, and number of children of each of its nodes.

    Raises:
        TypeError: a value is not an int.
        ValueError: a value is below its minimum, or the tree is larger than the pool of
            ``top_k + depth * top_k**2`` candidates (EAGLE-2, section 4.1) from which it is chosen.
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
            ValueError: `text` is not three whole numbers, or they make no tree.
        """
        found = _TREE_TEXT.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"a tree must be three whole numbers T/D/K such as 8/2/4, got {text[:80]!r}"
            )
        return cls(*(int(found.group(place)) for place in (1, 3, 4)))

    def __str__(self) -> str:
        """Return ``T/D/K``, the form used in files, tables and options."""
        return f"{self.total_tokens}/{self.depth}/{self.top_k}"

    @property
    def pool_size(self) -> int:
        """Number of candidate nodes from which the tree is chosen."""
        return self.top_k + self.depth * self.top_k**2

    def limited_to(self, levels: int) -> TreeParams:
        """Return the same tree without nodes deeper than `levels`; 0 drafts nothing."""
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
    """The sources of a cycle's drafts: the head's tree, prompt lookup, both, or neither.

    Looked-up tokens (see `ContextLookup`) cost no pass of the draft, only rows of the
    verification. They are merged into the tree: a token in both is verified once.

    Attributes:
        tree: the head's tree; None drafts none.
        lookup_tokens: most tokens to look up; 0 looks up none.

    Raises:
        TypeError: `tree` is no `TreeParams`, or `lookup_tokens` is no int.
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
        """The head's tree; `NO_DRAFT` without one."""
        return NO_DRAFT if self.tree is None else self.tree

    @property
    def most_rows(self) -> int:
        """Most rows that the target verifies."""
        return self.params.total_tokens + self.lookup_tokens

    def limited_to(self, levels: int) -> DraftPlan:
        """Return the same plan without nodes deeper than `levels`."""
        params = self.params
        tree, tokens = params.limited_to(levels), min(self.lookup_tokens, max(levels, 0))
        # Most cycles are far from the end and cut nothing; a new plan would be validated again.
        if tree is params and tokens == self.lookup_tokens:
            return self
        return DraftPlan(tree, tokens)


class DraftLimits(NamedTuple):
    """The most that a draft may end with: a policy's action with ``lookup_tokens``.

    Attributes:
        total_tokens: rows that the target verifies, the root and looked-up tokens included.
        depth: rounds after the first one.
        top_k: children of a node, and expanded nodes.
        lookup_tokens: looked-up tokens.
    """

    total_tokens: int
    depth: int
    top_k: int
    lookup_tokens: int

    @property
    def tree(self) -> TreeParams:
        """The largest tree within the limits."""
        most = 1 + self.top_k + self.depth * self.top_k**2
        return TreeParams(min(self.total_tokens, most), self.depth, self.top_k)


def as_plan(choice: TreeParams | DraftPlan) -> DraftPlan:
    """Return a plan as it is; wrap a bare tree in one.

    Raises:
        TypeError: `choice` is neither a plan nor a tree.
    """
    if isinstance(choice, DraftPlan):
        return choice
    if isinstance(choice, TreeParams):
        return DraftPlan(choice)
    raise TypeError(f"a cycle needs TreeParams or a DraftPlan, got {type(choice).__name__}")


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one cycle.

    Attributes:
        token_ids: emitted tokens: the accepted ones, then the bonus.
        params: the head's tree as it was drafted; smaller than the policy's choice if fewer tokens
            were left to generate, and `NO_DRAFT` without a tree.
        accepted: number of accepted drafted tokens; the acceptance length of the cycle is this + 1.
        draft_seconds: time of the draft passes, the first pass over newly accepted rows included.
        verify_seconds: time of the target's pass, the acceptance and the move of accepted rows in
            the cache.
        features: (3 * hidden_size,) target features of the last accepted token.
        context_length: tokens after the cycle, the bonus included.
        lookup: the looked-up tokens that were verified.
        lookup_accepted: number of leading tokens of `lookup` that were accepted. The head's tree
            may hold them, too.
        rows: rows that the target verified.
        policy_seconds: the policy's time: to observe the previous cycle, to choose, and to decide
            between the draft's passes, including the time to prepare its input. The time between
            the passes is part of `draft_seconds` as well. For a `FusedPolicy` it is the host's time
            of the call that decides, which is part of `verify_seconds` as well; on the CPU the time
            of reducing the draft's features is subtracted.
        accepted_rows: rows of the verified tree that were accepted, ascending, without the root.
            The nodes of a `Selection` take rows 1 to n in ascending order, and the looked-up tokens
            that are not among them follow. Empty where the tree is on a device, unless a rule has
            chosen it there.
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
    accepted_rows: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration of the cycle."""
        return self.draft_seconds + self.verify_seconds


@dataclass(frozen=True, slots=True)
class CycleState:
    """The input of a policy before a cycle.

    Attributes:
        features: (3 * hidden_size,) low, mid and high features, concatenated, of the last token
            that the target has processed; a view that the next cycle overwrites.
        context_length: committed tokens, the root included.
        last_result: result of the previous cycle; None before the first one.
        decision: what a `FusedPolicy` chose when the last token was accepted: a tree, or limits if
            its actions have lookup_tokens; None in a session without one.
        text: returns the index of the sequence so far, which `lookup` searches.
        confidence: returns the (1 to 8,) float32 best log-probabilities, in falling order, of the
            first draft pass in the last cycle that drafted; None before the first such cycle.
        on_device: whether drafts stay on a device, see `RuledPolicy`.
    """

    features: torch.Tensor
    context_length: int
    last_result: StepResult | None
    decision: TreeParams | DraftLimits | None = None
    text: Callable[[], ContextLookup] | None = None
    confidence: Callable[[], np.ndarray | None] | None = None
    on_device: bool = False

    def lookup(self, max_tokens: int) -> Lookup:
        """Look up at most `max_tokens` tokens in the text, with the length of their match.

        The first call indexes the whole text; later calls add the new tokens to the index.
        """
        return NO_LOOKUP if self.text is None else self.text().propose(max_tokens)


@runtime_checkable
class TreePolicy(Protocol):
    """A policy that chooses the draft tree of every cycle.

    The loop calls `reset` once when a sequence starts, then `choose` before and `observe` after
    every cycle. All three run on the thread that decodes, so their time counts as decoding time.

    A policy serves one sequence at a time. To serve sequences that are decoded at the same time, it
    may have a method ``fork() -> TreePolicy`` that returns a policy for one more sequence, with its
    own memory of that sequence and with shared knowledge of all. Without `fork`, a second
    generation that is given the same object is refused.
    """

    def reset(self) -> None:
        """Forget the previous sequence."""

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the tree of the next cycle, or a plan that may add looked-up tokens."""

    def observe(self, result: StepResult) -> None:
        """Receive the result of the last choice."""


@dataclass(frozen=True, slots=True)
class DraftProgress:
    """The state of a draft after one of its passes.

    Attributes:
        top_k: width K of the draft.
        depth: rounds done after the first one, 0 to D.
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
        """Return the number of rows to verify, the root included."""
        nodes = progress.lookup_nodes
        shared = 0 if nodes is None else int((nodes >= 0).sum())
        return 1 + len(self.nodes) + max(0, self.lookup_tokens - shared)


@runtime_checkable
class StagedPolicy(Protocol):
    """A `TreePolicy` that also decides between the passes of the draft.

    The tree of `choose` is the limit: after every pass `should_continue` may end the draft before
    ``depth`` rounds are done, and at the end `choose_total_tokens` says how many rows are verified.
    Such a policy reads the draft's scores, so it runs on the host, unless it can state its
    decisions as a rule: see `eaglerl.eagle3.ruled_policy.RuledPolicy`.
    """

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return whether to draft another round."""

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the tree's total_tokens, the root included: 1 to 1 + len(progress.scores)."""


@runtime_checkable
class SelectingPolicy(StagedPolicy, Protocol):
    """A `StagedPolicy` that names the nodes itself, and how many looked-up tokens to verify.

    `select` is called instead of `choose_total_tokens`.
    """

    def select(self, progress: DraftProgress) -> Selection:
        """Return the nodes to verify."""


@runtime_checkable
class PlannedPolicy(Protocol):
    """A `SelectingPolicy` whose decisions between the passes are native.

    The loop asks `native_cycle` instead of `should_continue` and `select`, for the same decisions:
    a `DraftProgress`, which costs 15 us after every pass, is not made.

    Attributes:
        native_cycle: the planner; None if `should_continue` and `select` are to be asked.
    """

    @property
    def native_cycle(self) -> C.OnlineCycle | None:
        """The planner of this sequence."""


@dataclass(frozen=True, slots=True)
class ConstantPolicy:
    """A policy that chooses the same tree, or the same plan, in every cycle."""

    params: TreeParams | DraftPlan

    def fork(self) -> ConstantPolicy:
        """Return itself: without memory, sequences cannot disturb each other."""
        return self

    def reset(self) -> None:
        """Do nothing: there is no memory."""

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return `params`."""
        return self.params

    def observe(self, result: StepResult) -> None:
        """Do nothing: there is no memory."""


def as_policy(policy: TreeParams | DraftPlan | TreePolicy) -> TreePolicy:
    """Return a policy as it is; wrap a bare tree or plan in a `ConstantPolicy`.

    Raises:
        TypeError: `policy` is none of these.
    """
    if isinstance(policy, TreeParams | DraftPlan):
        return ConstantPolicy(policy)
    if isinstance(policy, TreePolicy):
        return policy
    raise TypeError(
        f"policy must be TreeParams, a DraftPlan or a TreePolicy, got {type(policy).__name__}"
    )
