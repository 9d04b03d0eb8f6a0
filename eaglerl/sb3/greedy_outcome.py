"""The outcome of a policy's best actions on traces, all of them side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from eaglerl.envs.action_repeat import decide
from eaglerl.envs.trace_windows import TraceWalk, TraceWindows
from eaglerl.ops import PolicyWeights

#: Most decisions of one call.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class GreedyOutcomes:
    """The outcome of a policy on each of n traces.

    Attributes:
        tokens: (n,) int64.
        seconds: (n,) float64, by the cost table.
        cycles: (n,) int64.
        decisions: (n,) int64 calls of the policy.
    """

    tokens: np.ndarray
    seconds: np.ndarray
    cycles: np.ndarray
    decisions: np.ndarray


def greedy_outcomes(weights: PolicyWeights, windows: TraceWindows) -> GreedyOutcomes:
    """Replay every trace with the policy's best actions.

    Args:
        weights: the policy, of the observations and the actions of `windows`.
        windows: the traces.

    Raises:
        ValueError: the policy has other actions, or reads observations of another width.
    """
    if not torch.equal(weights.actions.cpu(), windows.actions.tensor):
        raise ValueError(
            f"weights must choose from the {len(windows.actions)} actions of windows, got "
            f"{weights.num_actions} that differ"
        )
    if weights.mlp_in_features != windows.observation_size:
        raise ValueError(
            f"weights must read observations of width {windows.observation_size}, got "
            f"{weights.mlp_in_features}"
        )
    count = len(windows.starts)
    walk = TraceWalk(windows, np.arange(count))
    tokens, cycles, decisions = (np.zeros(count, dtype=np.int64) for _ in range(3))
    seconds = np.zeros(count)
    left = np.arange(count)
    while len(left):
        rows = torch.from_numpy(walk.observe(left))
        chosen = np.concatenate([decide(weights, part) for part in rows.split(_ROWS)])
        step = walk.advance(chosen, left)
        tokens[left] += step.tokens
        seconds[left] += step.seconds
        cycles[left] += step.cycles
        decisions[left] += 1
        left = left[~step.ended]
    return GreedyOutcomes(tokens, seconds, cycles, decisions)


def greedy_outcome(weights: PolicyWeights, windows: TraceWindows) -> tuple[int, float]:
    """Return the tokens and seconds of all traces together; see `greedy_outcomes`."""
    outcomes = greedy_outcomes(weights, windows)
    return int(outcomes.tokens.sum()), float(outcomes.seconds.sum())
