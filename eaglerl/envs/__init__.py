"""Environments for gymnasium and stable-baselines3, over traces and over a live decoder."""

from typing import TYPE_CHECKING

from eaglerl._lazy import lazy_names

if TYPE_CHECKING:
    from eaglerl.envs.live_env import SpeculativeDecodingEnv
    from eaglerl.envs.observations import ObservationSpec
    from eaglerl.envs.trace_env import TraceEnv, TraceVecEnv

__all__ = [
    "ObservationSpec",
    "SpeculativeDecodingEnv",
    "TraceEnv",
    "TraceVecEnv",
]
__getattr__, __dir__, _ = lazy_names(
    __name__,
    {
        "ObservationSpec": "eaglerl.envs.observations",
        "SpeculativeDecodingEnv": "eaglerl.envs.live_env",
        "TraceEnv": "eaglerl.envs.trace_env",
        "TraceVecEnv": "eaglerl.envs.trace_env",
    },
    {"gymnasium": "rl", "stable_baselines3": "rl"},
)
