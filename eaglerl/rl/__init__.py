"""Choosing the draft tree: actions, traces, costs, the oracle, baselines and environments.

The environments need the extra ``rl`` (gymnasium and stable-baselines3) and are imported when they
are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.envs.observations import ObservationSpec
from eaglerl.policies.acceptance_file import load_acceptance, save_acceptance
from eaglerl.policies.acceptance_model import AcceptanceModel
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.baselines import (
    DraftConfidencePolicy,
    Exp3Policy,
    RandomPolicy,
    ShuffledStates,
    TierPolicy,
    UCB1Policy,
    best_constant,
)
from eaglerl.policies.fallback import GuardedPolicy
from eaglerl.policies.lookup_rule import LookupRule, best_lookup_rule, lookup_alone
from eaglerl.resps.policies import (
    OptimizedOnlineTreePolicy,
    OptimizedSB3DiscretePPOOnlineTreePolicy,
    load_policy,
)
from eaglerl.traces.oracle import Bounds, bounds
from eaglerl.traces.recording import Prompt, RecordOptions
from eaglerl.traces.simulation import Outcome, StagedPolicy, simulate
from eaglerl.traces.trace_set import Trace, TraceSet

if TYPE_CHECKING:
    from eaglerl.envs.live_env import SpeculativeDecodingEnv
    from eaglerl.envs.trace_env import TraceEnv, TraceVecEnv

_ENVIRONMENTS = {
    "SpeculativeDecodingEnv": "live_env",
    "TraceEnv": "environments",
    "TraceVecEnv": "environments",
}

__all__ = [
    "AcceptanceModel",
    "AcceptancePolicy",
    "ActionSpace",
    "Bounds",
    "CostTable",
    "DraftConfidencePolicy",
    "Exp3Policy",
    "GuardedPolicy",
    "LookupRule",
    "ObservationSpec",
    "OptimizedOnlineTreePolicy",
    "OptimizedSB3DiscretePPOOnlineTreePolicy",
    "Outcome",
    "Prompt",
    "RandomPolicy",
    "RecordOptions",
    "ShuffledStates",
    "SpeculativeDecodingEnv",
    "StagedPolicy",
    "TierPolicy",
    "Trace",
    "TraceEnv",
    "TraceSet",
    "TraceVecEnv",
    "UCB1Policy",
    "best_constant",
    "best_lookup_rule",
    "bounds",
    "load_acceptance",
    "load_policy",
    "lookup_alone",
    "save_acceptance",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _ENVIRONMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"eaglerl.rl.{_ENVIRONMENTS[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("gymnasium", "stable_baselines3"):
            raise
        raise ImportError(
            f"{name} needs {error.name}: install the extra with pip install 'eaglerl[rl]'"
        ) from error
    return getattr(module, name)
