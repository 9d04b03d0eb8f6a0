"""Choosing the draft tree: actions, traces, costs, the oracle, baselines and environments."""

from eaglerl.rl.actions import ActionSpace

__all__ = ["ActionSpace"]
