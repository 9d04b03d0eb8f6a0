"""Training as in Re-SpS, faults included, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.files import exclusive_folder
from eaglerl.resps.policies.load_saved import POLICIES
from eaglerl.resps.policies.policy_settings import PolicySettings
from eaglerl.resps.policies.resps_policy import ReSpSPolicy
from eaglerl.resps.train_online import learn_from_traces
from eaglerl.traces.trace_set import Trace


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
) -> ReSpSPolicy:
    """Train a policy with ``reference=True``, for comparison; a folder with checkpoints goes on.

    All defaults are those of Re-SpS. Traces hold the draft head's features, so these are the
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
        AlreadyLockedError: another process is at work in the folder.
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
    with exclusive_folder(run):
        policy = POLICIES[algorithm](
            settings=settings,
            checkpoint_dir=run / "checkpoints",
            # Between two traces, where a run can go on.
            checkpoint_freq=2**31,
            max_checkpoints=2,
            tensorboard_dir=run / "tensorboard",
            **options,
        )
        learn_from_traces(policy, traces, cost, total_steps=total_steps, progress=progress)
        policy.describe(head_id=head, training={"steps": total_steps, "reference": True})
        policy.save(run / "policy")
        policy.close()
        return policy
