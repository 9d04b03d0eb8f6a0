"""Training as in Re-SpS: the policy watches traces being decoded, cycle by cycle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eaglerl.cost.cost_table import CostTable
from eaglerl.resps.policies.resps_policy import ReSpSPolicy
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_set import Trace

#: Windows between two checkpoints.
_CHECKPOINT_WINDOWS = 500


def learn_from_traces(
    policy: ReSpSPolicy,
    traces: Sequence[Trace],
    cost: CostTable,
    *,
    total_steps: int,
    progress: Callable[[str, float], None] | None = None,
) -> None:
    """Let a policy learn while traces are decoded; one with checkpoints goes on.

    The traces come over and over, each time in another order, which the policy's seed decides. A
    checkpoint is written between two traces, every 500 windows or so, and at the end.

    Args:
        policy: with a ``checkpoint_dir``; it needs a tokenizer if it reads text.
        traces: to learn from.
        cost: time of the cycles.
        total_steps: cache windows to learn from, at least.
        progress: is told a stage and the share done.

    Raises:
        ValueError: no traces, a tree that they do not know, or checkpoints of another policy.
    """
    if not traces:
        raise ValueError("traces must hold at least one trace")
    policy.resume()
    policy.training_mode = True
    saved = policy.get_resume_info()["windows"]
    while (done := policy.get_resume_info())["windows"] < total_steps:
        turn, place = divmod(done["sequences"], len(traces))
        order = np.random.default_rng((policy.settings.seed, turn)).permutation(len(traces))
        simulate(policy, [traces[order[place]]], cost)
        if policy.get_resume_info()["windows"] >= saved + _CHECKPOINT_WINDOWS:
            policy.end_sequence()
            policy.save_checkpoint()
            saved = policy.get_resume_info()["windows"]
        if progress is not None:
            progress(f"{done['windows']:,} windows", min(done["windows"] / total_steps, 1.0))
    policy.end_sequence()
    if policy.get_resume_info()["windows"] > saved:
        policy.save_checkpoint()
    policy.training_mode = False
