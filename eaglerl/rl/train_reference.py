"""Training as published: the policy watches traces being decoded, cycle by cycle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eaglerl.rl.actions import ActionSpace
from eaglerl.rl.cost import CostTable
from eaglerl.rl.published.base import PublishedTreePolicy
from eaglerl.rl.published.load import POLICIES
from eaglerl.rl.published.settings import PolicySettings
from eaglerl.rl.simulate import simulate
from eaglerl.rl.traces import Trace

#: Windows between two checkpoints.
_CHECKPOINT_WINDOWS = 500


def train_reference(
    algorithm: str,
    traces: Sequence[Trace],
    actions: ActionSpace,
    cost: CostTable,
    output: str | Path,
    *,
    total_steps: int = 20_000,
    action_cache_steps: int = 10,
    seed: int = 0,
    head: str | None = None,
    progress: Callable[[str, float], None] | None = None,
    **options: object,
) -> PublishedTreePolicy:
    """Train a policy with ``reference=True``, for comparison; a folder with checkpoints goes on.

    All defaults are the published ones. Traces hold the draft head's features, so these are the
    state, not the mean of the taps.

    Args:
        algorithm: "ppo" or "dqn".
        traces: to learn from; over and over, each time in another order.
        actions: trees to choose from.
        cost: time of the cycles.
        output: folder of the run; the policy ends in its ``policy/``.
        total_steps: cache windows to learn from, at least.
        seed: of the policy and of the order.
        head: id of the draft head whose traces these are.
        progress: is told a stage and the share done.
        action_cache_steps: cycles of a window.
        options: of the policy's algorithm, see there.

    Returns:
        The policy, saved.

    Raises:
        ValueError: no traces, an unknown algorithm, or a folder of another run.
    """
    if algorithm not in POLICIES:
        raise ValueError(f"algorithm must be one of {sorted(POLICIES)}, got {algorithm!r}")
    if not traces:
        raise ValueError("traces must hold at least one trace")
    run = Path(output)
    settings = PolicySettings(
        hidden_size=traces[0].features.shape[1],
        actions=actions,
        action_cache_steps=action_cache_steps,
        reference=True,
        seed=seed,
    )
    policy = POLICIES[algorithm](
        settings=settings,
        checkpoint_dir=run / "checkpoints",
        # Between two traces, where a run can go on.
        checkpoint_freq=2**31,
        max_checkpoints=2,
        tensorboard_dir=run / "tensorboard",
        **options,
    )
    policy.resume()
    policy.training_mode = True
    saved = policy.get_resume_info()["windows"]
    while (done := policy.get_resume_info())["windows"] < total_steps:
        turn, place = divmod(done["sequences"], len(traces))
        order = np.random.default_rng((seed, turn)).permutation(len(traces))
        simulate(policy, [traces[order[place]]], cost)
        if policy.get_resume_info()["windows"] >= saved + _CHECKPOINT_WINDOWS:
            policy.end_sequence()
            policy.save_checkpoint()
            saved = policy.get_resume_info()["windows"]
        if progress is not None:
            progress(f"{done['windows']:,} windows", min(done["windows"] / total_steps, 1.0))
    policy.end_sequence()
    policy.training_mode = False
    policy.describe(head_id=head, training={"steps": total_steps, "reference": True})
    policy.save(run / "policy")
    policy.close()
    return policy
