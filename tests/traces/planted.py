"""Traces with a planted rule: what the features of a position say decides which tree is best."""

import numpy as np

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.traces.trace_set import ABSENT, Trace

WIDTH = 12
ACTIONS = ActionSpace(
    [
        NO_DRAFT,
        TreeParams(2, 0, 1),
        TreeParams(3, 1, 1),
        TreeParams(5, 3, 1),
        TreeParams(4, 2, 2),
        TreeParams(9, 2, 2),
    ]
)
COST = CostTable(
    machine="made up",
    draft_dtype="float32",
    total_tokens=(1, 4, 16),
    verify_base=(1.0, 1.3, 2.5),
    verify_slope=(0.0, 0.0, 0.0),
    top_ks=(1, 2),
    first_pass=(0.3, 0.3),
    later_pass=(0.3, 0.3),
)
#: Drafted tokens that come true in each of three kinds of position.
ACCEPTED = (0, 1, 4)
#: Positions of one kind in a row.
RUN = 12


def planted_traces(count: int, *, seed: int = 0, positions: int = 120) -> list[Trace]:
    """Traces of three kinds of position; one feature of each kind is large, the rest is noise."""
    draw = np.random.default_rng(seed)
    return [_planted_trace(draw, f"{seed:08x}{index:08x}", positions) for index in range(count)]


def _planted_trace(draw: np.random.Generator, name: str, positions: int) -> Trace:
    # In runs, so that it is worth little to know what comes next: the rule is all there is.
    kinds = np.repeat(draw.integers(len(ACCEPTED), size=positions), RUN)[:positions]
    features = 0.5 * draw.standard_normal((positions, WIDTH))
    features[np.arange(positions), kinds] += 3.0
    levels = 4
    ranks = np.full((positions, 2, levels, levels), ABSENT, dtype=np.int16)
    for position, kind in enumerate(kinds):
        for depth in range(levels):
            true = min(depth + 1, ACCEPTED[kind])
            ranks[position, :, depth, :true] = np.arange(true)
    none = np.full((positions, 2, levels), -1, dtype=np.int16)
    pools = {1: 1 + 3, 2: 2 + 3 * 4}
    return Trace(
        domain="planted",
        prompt_id=name,
        prompt_ids=np.arange(4, dtype=np.int32),
        continuation_ids=np.zeros(positions + 1 + 12, dtype=np.int32),
        top_ks=(1, 2),
        ranks=ranks,
        path=none,
        scores={width: np.zeros((positions, pool), np.float16) for width, pool in pools.items()},
        first_log_probs=np.zeros((positions, 8), dtype=np.float16),
        features=features.astype(np.float16),
        lookup_match=np.zeros(positions, dtype=np.uint8),
        lookup_accepted=np.zeros(positions, dtype=np.uint8),
        lookup_path=none,
        lookup_tokens=12,
    )
