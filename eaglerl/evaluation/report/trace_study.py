"""Bounds, cached decisions and what policies predict, computed from traces and a cost table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import CycleState, StepResult, TreeParams
from eaglerl.envs.action_repeat import ActionRepeat
from eaglerl.evaluation.modes.policy_modes import find_policy
from eaglerl.evaluation.report.predictions import Prediction, predict_on_traces
from eaglerl.fingerprints import split_of
from eaglerl.policies.baselines import best_constant_tree
from eaglerl.resps.policies.load_saved import load_resps_policy
from eaglerl.resps.policies.policy_file import read_card
from eaglerl.traces.oracle import (
    Bounds,
    TraceTable,
    bounds,
    constant_seconds,
    known_actions,
    oracle_actions,
    trace_tables,
)
from eaglerl.traces.simulation import simulate, total
from eaglerl.traces.trace_set import Trace

Progress = Callable[[str, float], None]

#: Cache intervals of the sweep, in cycles.
INTERVALS = (1, 5, 10, 20, 50)
#: Limit and threshold of the adaptive cache, see `eaglerl.ops.ActionCache`.
ADAPTIVE_LIMIT, ADAPTIVE_THRESHOLD = 50, 0.9

# Numbers of looked-up tokens that the wider oracle chooses from, besides none.
_LOOKED_UP = (3, 6, 12)


@dataclass(frozen=True)
class CachedRun:
    """A run of a policy with cached decisions.

    Attributes:
        name: the cache interval, or "adaptive".
        tokens_per_second: speed by the cost table, without the policy's own time.
        decisions: share of the cycles in which the policy decided.
    """

    name: str
    tokens_per_second: float
    decisions: float


@dataclass(frozen=True)
class PolicyStudy:
    """Results of one policy on the traces; without seconds if it could not be loaded.

    Attributes:
        label: its name.
        problem: why it could not be loaded; empty if it could.
        seconds: time of all traces by the cost table.
        sweep: runs with different cache intervals; empty for policies without a cache.
        prediction: what it predicted and what came of it; None if it predicts nothing.
    """

    label: str
    problem: str = ""
    seconds: float | None = None
    sweep: Sequence[CachedRun] = ()
    prediction: Prediction | None = None


@dataclass(frozen=True)
class TraceStudy:
    """Bounds on some traces, and the results of policies on them.

    Attributes:
        prompts: number of traces.
        bounds: bounds without prompt lookup.
        tree: the best constant tree in hindsight.
        tuned: seconds with the constant tree of each split tuned on the other; None if not known.
        wider: seconds of an oracle that may also verify looked-up tokens.
        policies: results of the policies.
        machine: machine of the cost table.
    """

    prompts: int
    bounds: Bounds
    tree: TreeParams
    tuned: float | None
    wider: float
    policies: Sequence[PolicyStudy] = field(default_factory=tuple)
    machine: str = ""

    def captured(self, seconds: float, oracle: float) -> float | None:
        """Return the share of an oracle's gain over the tuned constant tree that is reached."""
        if self.tuned is None or oracle >= self.tuned:
            return None
        return (1 / seconds - 1 / self.tuned) / (1 / oracle - 1 / self.tuned)


def study_traces(
    traces: Sequence[Trace],
    cost: CostTable,
    policies: Mapping[str, str],
    *,
    head_id: str,
    chosen: Mapping[str, TreeParams] | None = None,
    progress: Progress = lambda stage, fraction: None,
) -> TraceStudy:
    """Compute bounds on traces, and the results of policies on them.

    Args:
        traces: traces of prompts that no policy was trained on.
        cost: cost table of the machine.
        policies: specs such as ``policy:FOLDER`` or ``auto`` by label.
        head_id: fingerprint of the traces' head.
        chosen: see `tuned_seconds`.
        progress: called with the current stage and the fraction done.

    Raises:
        ValueError: there are no traces.
    """
    if not traces:
        raise ValueError("traces must hold at least one trace")
    actions = known_actions(ActionSpace.cpu_grid(), traces, cost)
    progress("bounds on the traces", 0.0)
    found = bounds(traces, actions, cost)
    wider = sum(wider_oracle(trace, actions, cost) for trace in traces)
    studies = []
    for index, (label, spec) in enumerate(policies.items()):
        progress(f"{label} on the traces", (1 + index) / (1 + len(policies)))
        try:
            studies.append(_study(label, spec, traces, cost, head_id))
        except ValueError as error:
            studies.append(PolicyStudy(label, problem=str(error)))
    return TraceStudy(
        len(traces),
        found,
        actions[found.constant_action],
        tuned_seconds(traces, actions, cost, chosen or {}),
        float(wider),
        studies,
        cost.machine,
    )


def tuned_seconds(
    traces: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    chosen: Mapping[str, TreeParams],
) -> float | None:
    """Return the seconds of all traces, each split with a constant tree tuned on the other split.

    Args:
        traces: traces of the splits ``train``, ``test``, or both.
        actions: trees to choose from if the other split has traces.
        cost: cost table of the machine.
        chosen: trees tuned elsewhere, by the split that they are for; used if the other split has
            no traces.

    Returns:
        The seconds, or None if there is no tuned tree that the traces and the cost table cover.
    """
    halves = {
        split: [trace for trace in traces if split_of(trace.prompt_id) == split]
        for split in ("train", "test")
    }
    seconds = 0.0
    for own, other in (("train", "test"), ("test", "train")):
        if not halves[own]:
            continue
        if halves[other]:
            tree = best_constant_tree(halves[other], actions, cost)
        elif own in chosen and _known(chosen[own], halves[own], cost):
            tree = chosen[own]
        else:
            return None
        tables = trace_tables(halves[own], ActionSpace([tree]), cost)
        seconds += float(sum(constant_seconds(table)[0] for table in tables))
    return seconds


def _known(tree: TreeParams, traces: Sequence[Trace], cost: CostTable) -> bool:
    try:
        known_actions(ActionSpace([tree]), traces, cost)
    except ValueError:
        return False
    return True


def wider_oracle(trace: Trace, actions: Sequence[TreeParams], cost: CostTable) -> float:
    """Return the seconds of the fastest sequence of trees, with and without looked-up tokens.

    Rows that the tree and the looked-up tokens share are counted twice, so the true bound may be
    lower.
    """
    tree = TraceTable.of(trace, actions, cost)
    tokens, seconds = [tree.tokens], [tree.seconds]
    contexts = trace.context_lengths
    matched = trace.lookup_match > 0
    accepted = trace.lookup_accepted.astype(np.int64)
    lengths = trace.accepted_lengths(actions).astype(np.int64)
    for looked_up in _LOOKED_UP:
        if looked_up > trace.lookup_tokens:
            break
        longer = np.maximum(lengths, 1 + np.minimum(accepted, looked_up)[:, None])
        for column, action in enumerate(actions):
            rows = action.total_tokens + looked_up
            if rows > cost.total_tokens[-1]:
                continue
            extra = cost.verify_seconds(rows, contexts)
            extra = extra - cost.verify_seconds(action.total_tokens, contexts)
            tokens.append(np.minimum(longer[:, column], trace.remaining)[:, None])
            # Without a match there is nothing to look up: never the best choice.
            duration = np.where(matched, tree.seconds[:, column] + extra, np.inf)
            seconds.append(duration[:, None])
    table = TraceTable(trace.domain, np.hstack(tokens), np.hstack(seconds))
    return float(oracle_actions(table)[0][0])


class TreeChooser(Protocol):
    """A `TreePolicy` that always chooses a tree, as PPO and DQN do."""

    def reset(self) -> None:
        """See `TreePolicy`."""

    def choose(self, state: CycleState) -> TreeParams:
        """See `TreePolicy`."""

    def observe(self, result: StepResult) -> None:
        """See `TreePolicy`."""


class CachedDecisions:
    """A policy whose decisions serve several cycles, as with `eaglerl.ops.ActionCache`.

    Attributes:
        decisions: number of decisions.
    """

    def __init__(self, policy: TreeChooser, interval: int, threshold: float | None = None) -> None:
        """Set up.

        Args:
            policy: the policy that decides.
            interval: cycles that a decision serves, the deciding one included.
            threshold: a decision is kept while the cosine similarity of the features to those of
                the decision is at least this; None keeps it in any case.
        """
        self._policy = policy
        self._kept = ActionRepeat(interval, threshold)
        self.decisions = 0

    def reset(self) -> None:
        """Forget the sequence with its decision."""
        self._policy.reset()
        self._kept.forget()

    def choose(self, state: CycleState) -> TreeParams:
        """Return the decision in force, or a new one."""
        kept = self._kept.serve(state.features.numpy)
        if kept is not None:
            return kept
        self.decisions += 1
        choice = self._policy.choose(state)
        return self._kept.take([choice], state.features.numpy().copy())

    def observe(self, result: StepResult) -> None:
        """Pass the result on."""
        self._policy.observe(result)


def _study(
    label: str, spec: str, traces: Sequence[Trace], cost: CostTable, head_id: str
) -> PolicyStudy:
    kind, _, path = spec.partition(":")
    if kind in ("auto", "auto-trees"):
        seconds, prediction = predict_on_traces(traces, cost, lookups=kind == "auto")
        return PolicyStudy(label, seconds=seconds, prediction=prediction)
    files = find_policy(Path(path))
    own = read_card(files.path)["head_id"]
    if own not in (None, head_id):
        raise ValueError(f"head_id of the policy must be that of the traces, {head_id}, got {own}")
    policy = load_resps_policy(files.path)
    seconds = total(simulate(policy, traces, cost)).seconds
    return PolicyStudy(label, seconds=seconds, sweep=sweep_intervals(policy, traces, cost))


def sweep_intervals(policy: Any, traces: Sequence[Trace], cost: CostTable) -> list[CachedRun]:
    """Run a PPO or DQN policy with different cache intervals.

    Args:
        policy: policy from `load_resps_policy`; its own cache is switched off meanwhile.
        traces: traces to decode.
        cost: cost table of the machine.
    """
    before = policy.settings.action_cache_enabled
    policy.set_action_cache(enabled=False)
    kinds: list[tuple[str, int, float | None]] = [(str(n), n, None) for n in INTERVALS]
    kinds.append(("adaptive", ADAPTIVE_LIMIT, ADAPTIVE_THRESHOLD))
    runs = []
    try:
        for name, interval, threshold in kinds:
            cached = CachedDecisions(policy, interval, threshold)
            outcome = total(simulate(cached, traces, cost))
            share = cached.decisions / outcome.cycles
            runs.append(CachedRun(name, outcome.tokens_per_second, share))
    finally:
        policy.set_action_cache(enabled=before)
    return runs
