"""`eaglerl train-policy --algorithm acceptance`: fit a policy that predicts what is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from eaglerl.cli.shared.action_options import read_actions
from eaglerl.cli.shared.trace_options import read_trace_sets

if TYPE_CHECKING:
    from eaglerl.cli.train_policy_settings import TrainPolicySettings


def train_acceptance_policy(
    settings: TrainPolicySettings, show: Callable[[str, float], None]
) -> str:
    """Fit an acceptance policy to traces, and return a sentence on where it is and its gain.

    Args:
        settings: with traces and a cost table.
        show: is told a stage and the share done.

    Raises:
        ValueError: traces of different targets or heads; see `train_acceptance`.
    """
    from eaglerl.cost.cost_table import CostTable
    from eaglerl.fitting.train_acceptance import TrainAcceptanceOptions, train_acceptance

    assert settings.traces is not None  # the settings demand both
    assert settings.cost is not None
    actions, cost = read_actions(settings.actions), CostTable.from_json(settings.cost)
    sets = read_trace_sets(settings.traces)
    trained = train_acceptance(
        [trace for traces in sets for trace in traces],
        actions,
        cost,
        settings.output,
        TrainAcceptanceOptions(settings.acceptance_options(), settings.folds),
        target_id=sets[0].target_id,
        head_id=sets[0].head_id,
        progress=show,
    )
    return (
        f"the policy is in {trained.path}; cross-validated: {trained.gain} against the best "
        f"constant tree, penalty {trained.ridge:g}"
    )
