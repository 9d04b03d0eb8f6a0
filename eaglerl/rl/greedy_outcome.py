"""What the best actions of a policy come to on traces: all traces side by side."""

from __future__ import annotations

import numpy as np
import torch

from eaglerl.ops import PolicyWeights, fused_encode
from eaglerl.rl.trace_world import TraceWorld, running_acceptance

#: Decisions that one call makes at most.
_ROWS = 1024


def greedy_outcome(weights: PolicyWeights, world: TraceWorld) -> tuple[int, float]:
    """Decode every trace of a world with the policy's best actions.

    Args:
        weights: of observations of that world, one action per action of the world.
        world: the traces, windows included.

    Returns:
        Tokens and seconds of all traces.

    Raises:
        ValueError: the policy has other actions, or reads observations of another width.
    """
    if not torch.equal(weights.bins.cpu(), world.actions.bins):
        raise ValueError(
            f"weights must choose from the world's {len(world.actions)} actions, got "
            f"{weights.num_actions} that differ"
        )
    if weights.mlp_in_features != world.observation_size:
        raise ValueError(
            f"weights must read observations of width {world.observation_size}, got "
            f"{weights.mlp_in_features}"
        )
    nodes = world.starts.astype(np.int64)
    acceptance = np.zeros(len(nodes))
    tokens, seconds = 0, 0.0
    while len(nodes):
        rows = torch.from_numpy(world.observe(nodes, acceptance))
        chosen = torch.cat(
            [
                fused_encode(part, None, None, weights, return_features=False).action
                for part in rows.split(_ROWS)
            ]
        ).numpy()
        following = world.next_node[nodes, chosen].astype(np.int64)
        tokens += int((following - nodes).sum())
        seconds += float(world.seconds[nodes, chosen].astype(np.float64).sum())
        cycles = world.cycles[nodes, chosen]
        acceptance = running_acceptance(acceptance, following - nodes, cycles)
        goes_on = following != world.ends[nodes]
        nodes, acceptance = following[goes_on], acceptance[goes_on]
    return tokens, seconds
