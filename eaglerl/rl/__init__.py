"""Choosing the draft tree: actions, traces, costs, the oracle, baselines and environments.

The environments need the extra ``rl`` (gymnasium and stable-baselines3) and are imported when they
are asked for.
"""

from typing import TYPE_CHECKING, Any

from eaglerl.rl.actions import ActionSpace
from eaglerl.rl.baselines import (
    DraftConfidencePolicy,
    Exp3Policy,
    RandomPolicy,
    ShuffledStates,
    TierPolicy,
    UCB1Policy,
    best_constant,
)
from eaglerl.rl.cost import CostTable
from eaglerl.rl.oracle import Bounds, bounds
from eaglerl.rl.record import Prompt, RecordOptions
from eaglerl.rl.simulate import Outcome, StagedPolicy, simulate
from eaglerl.rl.traces import Trace, TraceSet

if TYPE_CHECKING:
    from eaglerl.rl.environments import TraceEnv, TraceVecEnv

_ENVIRONMENTS = ("TraceEnv", "TraceVecEnv")

__all__ = [
    "ActionSpace",
    "Bounds",
    "CostTable",
    "DraftConfidencePolicy",
    "Exp3Policy",
    "Outcome",
    "Prompt",
    "RandomPolicy",
    "RecordOptions",
    "ShuffledStates",
    "StagedPolicy",
    "TierPolicy",
    "Trace",
    "TraceEnv",
    "TraceSet",
    "TraceVecEnv",
    "UCB1Policy",
    "best_constant",
    "bounds",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _ENVIRONMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from eaglerl.rl import environments
    except ModuleNotFoundError as error:
        if error.name not in ("gymnasium", "stable_baselines3"):
            raise
        raise ImportError(
            f"{name} needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
        ) from error
    return getattr(environments, name)
