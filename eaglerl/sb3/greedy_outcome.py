"""What the best actions of a policy come to on traces: all traces side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from eaglerl.envs.action_repeat import decide
from eaglerl.envs.trace_windows import TraceWalk, TraceWindows
from eaglerl.ops import PolicyWeights

#: Decisions that one call makes at most.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class GreedyOutcomes:
    """What a policy did with each of n traces.

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


def greedy_outcomes(weights: PolicyWeights, world: TraceWindows) -> GreedyOutcomes:
    """Decode every trace of a world with the policy's best actions.

    Args:
        weights: of observations of that world, one action per action of the world.
        world: the traces, windows included.

    Raises:
        ValueError: the policy has other actions, or reads observations of another width.
    """
    if not torch.equal(weights.bins.cpu(), world.actions.tensor):
        raise ValueError(
            f"weights must choose from the world's {len(world.actions)} actions, got "
            f"{weights.num_actions} that differ"
        )
    if weights.mlp_in_features != world.observation_size:
        raise ValueError(
            f"weights must read observations of width {world.observation_size}, got "
            f"{weights.mlp_in_features}"
        )
    count = len(world.starts)
    walk = TraceWalk(world, np.arange(count))
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


def greedy_outcome(weights: PolicyWeights, world: TraceWindows) -> tuple[int, float]:
    """Tokens and seconds of all traces together; see `greedy_outcomes`."""
    outcomes = greedy_outcomes(weights, world)
    return int(outcomes.tokens.sum()), float(outcomes.seconds.sum())
