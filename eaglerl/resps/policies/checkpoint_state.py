"""The state of a policy between two windows, in a checkpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eaglerl.json_file import Count, Items, Schema


class WindowState(Schema):
    """See `RewardWindow.state`."""

    tokens: Count
    seconds: Annotated[float, Field(ge=0.0)]
    rate: Annotated[Items[float], Field(min_length=2, max_length=2)] | None


class StatisticsState(Schema):
    """See `PolicyStatistics.state`."""

    counts: dict[str, Count]
    actions: dict[Annotated[str, Field(pattern=r"^\d{1,4}$")], Count]
    sources: dict[str, Count]
    rewards: Items[float]


class PolicyState(Schema):
    """The policy's own part of a checkpoint, beside the state of the learner."""

    window: WindowState
    statistics: StatisticsState
