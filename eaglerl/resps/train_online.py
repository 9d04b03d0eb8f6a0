"""Training as in Re-SpS: the policy learns while traces are replayed, cycle by cycle."""

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
    """Train a policy while traces are replayed; one with checkpoints resumes.

    The traces are repeated, each time in another order, which the policy's seed decides.
    Checkpoints are written between two traces, about every 500 windows, and at the end.

    Args:
        policy: a policy with a ``checkpoint_dir``, and with a tokenizer if it reads text.
        traces: to learn from.
        cost: time of the cycles.
        total_steps: cache windows to learn from, at least.
        progress: called with a stage and the fraction done.

    Raises:
        ValueError: there are no traces, they lack a tree, or the checkpoints are of another policy.
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
