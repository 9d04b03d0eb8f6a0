"""The baselines of `eaglerl.policies` by name, and how a comparison sets them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import TreeParams, TreePolicy
from eaglerl.policies.baselines import (
    DraftConfidencePolicy,
    Exp3Policy,
    RandomPolicy,
    TierPolicy,
    UCB1Policy,
    best_constant,
)
from eaglerl.policies.lookup_rule import best_lookup_rule, lookup_alone
from eaglerl.policies.online_policy import OnlinePolicy
from eaglerl.traces.trace_set import Trace

#: Looked-up tokens of the baseline without a tree, transformers' default for prompt lookup.
LOOKUP_TOKENS = 10

# The largest tree of the draft's bare confidence: K = 4 was best in docs/results/policy-log.md.
_CONFIDENCE_WIDTH, _CONFIDENCE_DEPTH = 4, 7


@dataclass(frozen=True)
class BaselineInputs:
    """The inputs that baselines are set up from.

    Attributes:
        actions: trees to choose from in every cycle.
        grid: constant trees, alone or combined with prompt lookup.
        cost: cost table of this machine.
        traces: traces of prompts that the comparison does not decode.
        seed: seed of all random numbers.
    """

    actions: ActionSpace
    grid: Sequence[TreeParams]
    cost: CostTable | None = None
    traces: Sequence[Trace] = ()
    seed: int = 0


@dataclass(frozen=True)
class Baseline:
    """A baseline by name.

    Attributes:
        help: one line that says what it is.
        make: sets it up.
        needs: "cost" and "traces", if it cannot be set up without them.
    """

    help: str
    make: Callable[[BaselineInputs], TreePolicy]
    needs: tuple[str, ...] = ()


def make_baseline(name: str, inputs: BaselineInputs) -> TreePolicy:
    """Set up a baseline.

    Raises:
        ValueError: an input that it needs is missing.
    """
    baseline = BASELINES[name]
    for need in baseline.needs:
        if not getattr(inputs, need):
            raise ValueError(f"the baseline {name!r} needs {need}, got none")
    return baseline.make(inputs)


def tiers_of(actions: Sequence[TreeParams]) -> list[TreeParams]:
    """Return the first tree of every depth that drafts anything, by ascending depth."""
    by_depth: dict[int, TreeParams] = {}
    for tree in actions:
        if tree.total_tokens > 1:
            by_depth.setdefault(tree.depth, tree)
    return [by_depth[depth] for depth in sorted(by_depth)]


def _cost(inputs: BaselineInputs) -> CostTable:
    # `make_baseline` has checked what a baseline needs.
    assert inputs.cost is not None
    return inputs.cost


def _confidence(inputs: BaselineInputs) -> TreePolicy:
    cost = _cost(inputs)
    width, depth = _CONFIDENCE_WIDTH, _CONFIDENCE_DEPTH
    pool = width + depth * width**2
    rows = min(cost.total_tokens[-1], pool + 1)
    return DraftConfidencePolicy(cost, limit=TreeParams(rows, depth, width))


BASELINES: Mapping[str, Baseline] = {
    "best-constant": Baseline(
        "the constant tree that is fastest on traces of other prompts, by the cost table",
        lambda given: best_constant(given.traces, ActionSpace(given.grid), _cost(given)),
        ("traces", "cost"),
    ),
    "random": Baseline(
        "a random tree in every cycle",
        lambda given: RandomPolicy(given.actions, given.seed),
    ),
    "ucb1": Baseline("UCB1 over the trees", lambda given: UCB1Policy(given.actions)),
    "exp3": Baseline(
        "Exp3 over the trees", lambda given: Exp3Policy(given.actions, seed=given.seed)
    ),
    "tiers": Baseline(
        "tiers by the recent acceptance length",
        lambda given: TierPolicy(tiers_of(given.actions)),
    ),
    "confidence": Baseline(
        "grows the tree while the draft's own confidence is worth its cost, without training",
        _confidence,
        ("cost",),
    ),
    "online": Baseline(
        "learns acceptance while decoding, with prompt lookup and without training",
        lambda given: OnlinePolicy(_cost(given)),
        ("cost",),
    ),
    "lookup-alone": Baseline(
        f"prompt lookup of {LOOKUP_TOKENS} tokens, without a tree",
        lambda given: lookup_alone(LOOKUP_TOKENS),
    ),
    "lookup-rule": Baseline(
        "the best fixed rule with prompt lookup, tuned on traces of other prompts",
        lambda given: best_lookup_rule(given.traces, _cost(given), given.grid),
        ("traces", "cost"),
    ),
}
