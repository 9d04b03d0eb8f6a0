"""Logs of steps with a known truth: acceptance is drawn, and speeds follow in closed form."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eaglerl.headroom.cost_curve import CostCurve
from eaglerl.headroom.step_log import StepLine, Steps, make_steps
from eaglerl.traces.trace_set import ABSENT, Trace

LEVELS = 5
#: Seconds of verifying a row more, and of drafting a token.
PLAIN, ROW, PASS = 0.030, 0.002, 0.001
COST = CostCurve(
    "made up",
    [(rows, 1, 0, PLAIN + ROW * (rows - 1)) for rows in range(1, 400)],
    [(1, 0, PASS)],
    by_rows_alone=True,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def drawn_lines(
    draw: Draw, *, requests: int = 30, steps: int = 60, seed: int = 0, levels: int = LEVELS
) -> list[StepLine]:
    """Return steps whose tokens are accepted with the drafted probabilities.

    `draw` takes a generator and the number of levels, and returns the probability of each.
    """
    generator = np.random.default_rng(seed)
    lines = []
    for request in range(requests):
        position = 1
        for _ in range(steps):
            probabilities = draw(generator, levels)
            right = generator.random(levels) < probabilities
            accepted = int(np.logical_and.accumulate(right).sum())
            lines.append(
                StepLine(
                    request=f"request {request}",
                    position=position,
                    context=20 + position,
                    logprobs=tuple(np.log(probabilities).tolist()),
                    accepted=accepted,
                )
            )
            position += 1 + accepted
    return lines


def steps_of(lines: Sequence[StepLine]) -> Steps:
    """Return lines as arrays."""
    return make_steps(lines, [line.request for line in lines])


def always(probability: float) -> Draw:
    """Every token is accepted with the same probability."""
    return lambda generator, levels: np.full(levels, probability)


def either(low: float, high: float) -> Draw:
    """Each step is hard or easy, as its probabilities say."""
    return lambda generator, levels: np.full(levels, low if generator.random() < 0.5 else high)


def length_of(probability: float, level: int) -> float:
    """Return the mean tokens of a chain: 1 + q + ... + q^level."""
    return (1.0 - probability ** (level + 1)) / (1.0 - probability)


def speed_of(probability: float, level: int) -> float:
    """Return the tokens per second of a chain by `COST`."""
    return length_of(probability, level) / (PLAIN + (ROW + PASS) * level)


def write_log(path: Path, lines: Sequence[StepLine]) -> None:
    """Write lines as an engine would."""
    rows = [json.dumps(line.model_dump(exclude_none=True)) for line in lines]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def chain_traces(draw: Draw, count: int, *, positions: int = 150, seed: int = 0) -> list[Trace]:
    """Return traces of width 1 whose tokens are accepted with the drafted probabilities."""
    generator = np.random.default_rng(seed)
    return [
        _chain_trace(draw, generator, f"{seed:08x}{index:08x}", positions) for index in range(count)
    ]


def _chain_trace(draw: Draw, generator: np.random.Generator, name: str, positions: int) -> Trace:
    probabilities = np.stack([draw(generator, LEVELS) for _ in range(positions)])
    right = generator.random((positions, LEVELS)) < probabilities
    accepted = np.logical_and.accumulate(right, axis=1)
    level = np.arange(LEVELS)
    ranks = np.full((positions, 1, LEVELS, LEVELS), ABSENT, dtype=np.int16)
    for depth in range(LEVELS):
        inside = accepted & (level <= depth)
        ranks[:, 0, depth] = np.where(inside, level, ABSENT)
    none = np.full((positions, 1, LEVELS), -1, dtype=np.int16)
    return Trace(
        domain="drawn",
        prompt_id=name,
        prompt_ids=np.arange(4, dtype=np.int32),
        continuation_ids=generator.integers(1 << 30, size=positions + 13).astype(np.int32),
        top_ks=(1,),
        ranks=ranks,
        path=np.where(accepted, level, -1).astype(np.int16)[:, None],
        scores={1: np.cumsum(np.log(probabilities), axis=1).astype(np.float16)},
        first_log_probs=np.log(probabilities[:, :1]).astype(np.float16),
        features=np.zeros((positions, 4), dtype=np.float16),
        lookup_match=np.zeros(positions, dtype=np.uint8),
        lookup_accepted=np.zeros(positions, dtype=np.uint8),
        lookup_path=none,
        lookup_tokens=12,
    )
