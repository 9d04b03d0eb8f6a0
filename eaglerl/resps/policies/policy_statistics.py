"""Counts of what a policy has done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from eaglerl.actions import ActionSpace

_HISTORY = 100


class PolicyStatistics:
    """Counts of a policy's decisions and of what it learned from.

    Attributes:
        counts: "hits" and "misses" of the cached decision, "defaults", "windows", "updates" and
            "sequences".
        actions: how often each action was decided.
        sources: how often decisions were made from what.
        rewards: rewards of the last 100 windows.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.actions: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.rewards: deque[float] = deque(maxlen=_HISTORY)

    @property
    def hit_rate(self) -> float:
        """Share of the cycles that a cached decision served."""
        asked = self.counts["hits"] + self.counts["misses"]
        return self.counts["hits"] / asked if asked else 0.0

    @property
    def mean_reward(self) -> float:
        """Mean reward of the last 100 windows."""
        return float(np.mean(self.rewards)) if self.rewards else 0.0

    def summary(self, actions: ActionSpace) -> dict[str, Any]:
        """Return all of it, actions by their (total_tokens, depth, top_k)."""
        return {
            "decisions": self.counts["misses"],
            "cache_hits": self.counts["hits"],
            "hit_rate": self.hit_rate,
            "defaults": self.counts["defaults"],
            "windows": self.counts["windows"],
            "updates": self.counts["updates"],
            "sequences": self.counts["sequences"],
            "mean_reward": self.mean_reward,
            "actions": {
                tuple(actions.tensor[action].tolist()): count
                for action, count in self.actions.most_common()
            },
            "feature_sources": dict(self.sources),
        }

    def state(self) -> dict[str, Any]:
        """Return JSON values for `load_state`."""
        return {
            "counts": dict(self.counts),
            "actions": {str(action): count for action, count in self.actions.items()},
            "sources": dict(self.sources),
            "rewards": list(self.rewards),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.counts = Counter(state["counts"])
        self.actions = Counter({int(action): n for action, n in state["actions"].items()})
        self.sources = Counter(state["sources"])
        self.rewards = deque(state["rewards"], maxlen=_HISTORY)
