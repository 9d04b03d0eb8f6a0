"""Training as in Re-SpS, faults included, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    **options: Any,
) -> ReSpSPolicy:
    """Train a policy with ``reference=True``, for comparison; a folder with checkpoints is resumed.

    All defaults are those of Re-SpS. The state is the draft head's features, which traces hold, not
    the mean of the target's low, mid and high features.

    Args:
        algorithm: "ppo" or "dqn".
        traces: to learn from, repeatedly, each time in another order.
        actions: trees to choose from.
        cost: time of the cycles.
        output: folder of the run; the policy ends in its ``policy/``.
        total_steps: cache windows to learn from, at least.
        action_cache_steps: cycles of a window.
        seed: of the policy and of the order.
        head: id of the draft head whose traces these are.
        progress: called with a stage and the fraction done.
        options: of the policy's algorithm, see there.

    Returns:
        The policy, saved.

    Raises:
        ValueError: there are no traces, the algorithm is unknown, or the folder is of another run.
        AlreadyLockedError: another process uses the folder.
    """
    if algorithm not in POLICIES:
        raise ValueError(f"algorithm must be one of {sorted(POLICIES)}, got {algorithm!r}")
    if not traces:
        raise ValueError("traces must hold at least one trace")
    settings = PolicySettings(
        hidden_size=traces[0].features.shape[1],
        actions=actions,
        action_cache_steps=action_cache_steps,
        reference=True,
        seed=seed,
    )
    run = Path(output)
    with exclusive_folder(run):
        policy = _new_policy(algorithm, settings, run, options)
        learn_from_traces(policy, traces, cost, total_steps=total_steps, progress=progress)
        policy.describe(head_id=head, training={"steps": total_steps, "reference": True})
        policy.save(run / "policy")
        policy.close()
        return policy


def _new_policy(
    algorithm: str, settings: PolicySettings, run: Path, options: Mapping[str, Any]
) -> ReSpSPolicy:
    return POLICIES[algorithm](
        settings=settings,
        checkpoint_dir=run / "checkpoints",
        # Only between two traces, where a run can resume.
        checkpoint_freq=2**31,
        max_checkpoints=2,
        tensorboard_dir=run / "tensorboard",
        **options,
    )
